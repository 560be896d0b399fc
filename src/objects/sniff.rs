//! Recognises the format of a file by its first bytes.

/// Bytes of a block of a TAR archive, the longest header that is recognised.
const SNIFF_BYTES: usize = 512;

/// Bytes of a TAR header: its checksum field, and the mark of POSIX and GNU archives.
const TAR_CHECKSUM: std::ops::Range<usize> = 148..156;
const TAR_MARK: std::ops::Range<usize> = 257..262;

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Text, or anything that is not recognised.
    Text,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// LZ4 frame.
    Lz4,
    /// lzip.
    Lzip,
    /// Unix `compress`.
    Compress,
    /// ZIP archive; also a spreadsheet or an archive of arrays.
    Zip,
    /// 7-Zip archive.
    SevenZip,
    /// RAR archive.
    Rar,
    /// TAR archive.
    Tar,
    /// Parquet.
    Parquet,
    /// Arrow file, also called Feather.
    Arrow,
    /// Avro.
    Avro,
    /// ORC.
    Orc,
    /// HDF5.
    Hdf5,
    /// Array of `NumPy`.
    Npy,
    /// `SQLite` database.
    Sqlite,
    /// PDF document.
    Pdf,
    /// JSON objects, one a line.
    JsonLines,
    /// JSON array of objects.
    JsonArray,
    /// HTML page.
    Html,
    /// Git LFS pointer.
    LfsPointer,
    /// Text in UTF-16 or UTF-32.
    WideText,
    /// JPEG, PNG, GIF or WebP image.
    Image,
}

/// Content of an object, after decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Compression of the stored object, gzip or zstd, if any.
    pub compression: Option<FileFormat>,
    /// Format of the decompressed bytes.
    pub format: FileFormat,
}

/// Signatures at the start of a file. Each is long, or holds bytes that no text has.
const SIGNATURES: &[(&[u8], FileFormat)] = &[
    (b"\x1f\x8b", FileFormat::Gzip),
    (b"\x28\xb5\x2f\xfd", FileFormat::Zstd),
    (b"\xfd7zXZ\0", FileFormat::Xz),
    (b"\x04\x22\x4d\x18", FileFormat::Lz4),
    (b"LZIP\x01", FileFormat::Lzip),
    (b"\x1f\x9d", FileFormat::Compress),
    (b"PK\x03\x04", FileFormat::Zip),
    (b"PK\x05\x06", FileFormat::Zip),
    (b"PK\x07\x08", FileFormat::Zip),
    (b"7z\xbc\xaf\x27\x1c", FileFormat::SevenZip),
    (b"Rar!\x1a\x07", FileFormat::Rar),
    // A page header or the metadata follows; both start with an integer as their first field.
    (b"PAR1\x15", FileFormat::Parquet),
    (b"ARROW1\0\0", FileFormat::Arrow),
    (b"Obj\x01", FileFormat::Avro),
    (b"\x89HDF\r\n\x1a\n", FileFormat::Hdf5),
    (b"\x93NUMPY", FileFormat::Npy),
    (b"SQLite format 3\0", FileFormat::Sqlite),
    (b"%PDF-", FileFormat::Pdf),
    (b"\xff\xd8\xff", FileFormat::Image),
    (b"\x89PNG\r\n\x1a\n", FileFormat::Image),
    (b"GIF87a", FileFormat::Image),
    (b"GIF89a", FileFormat::Image),
    (b"\xff\xfe", FileFormat::WideText),
    (b"\xfe\xff", FileFormat::WideText),
    (b"\0\0\xfe\xff", FileFormat::WideText),
];

/// Returns the format of a file that starts with `head`: its first 512 bytes or more, or all of a shorter file.
///
/// Fewer bytes never give a wrong format, only [`FileFormat::Text`] in place of another one.
pub fn sniff(head: &[u8]) -> FileFormat {
    let signature = SIGNATURES.iter().find(|(bytes, _)| head.starts_with(bytes));
    match (signature, head) {
        (Some((_, format)), _) => *format,
        (_, [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..]) if is_bzip2_block(rest) => FileFormat::Bzip2,
        // Frames that a decompressor skips come first in files of `pzstd`.
        (_, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) => FileFormat::Zstd,
        (_, [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..]) => FileFormat::Image,
        // Protocol buffers follow, which hold control characters.
        (_, [b'O', b'R', b'C', rest @ ..]) if rest.iter().take(16).any(|byte| matches!(byte, 0..=8 | 14..=31)) => {
            FileFormat::Orc
        }
        _ if is_tar(head) => FileFormat::Tar,
        _ => sniff_text(head),
    }
}

/// Returns whether a block, or the end of an empty file, follows the header of a bzip2 file.
fn is_bzip2_block(rest: &[u8]) -> bool {
    [[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], [0x17, 0x72, 0x45, 0x38, 0x50, 0x90]]
        .iter()
        .any(|mark| rest.starts_with(mark))
}

/// Returns whether a block is the header of an archive's member: of a POSIX or GNU archive by its mark, of older ones by
/// the checksum.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk::<SNIFF_BYTES>() else { return false };
    if block[0] == 0 {
        return false;
    }
    let digits = block[TAR_CHECKSUM].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    let stated = digits.fold(0, |sum, digit| sum * 8 + u32::from(digit - b'0'));
    let sum = |(at, byte): (usize, &u8)| if TAR_CHECKSUM.contains(&at) { u32::from(b' ') } else { u32::from(*byte) };
    &block[TAR_MARK] == b"ustar" || block.iter().enumerate().map(sum).sum::<u32>() == stated
}

fn sniff_text(head: &[u8]) -> FileFormat {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins_with =
        |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
    match text {
        _ if begins_with("version https://git-lfs.github.com/spec/") => FileFormat::LfsPointer,
        _ if begins_with("<!doctype html") || begins_with("<html") => FileFormat::Html,
        [b'[', rest @ ..] if is_json_object(rest.trim_ascii_start()) => FileFormat::JsonArray,
        _ if is_json_object(text) => FileFormat::JsonLines,
        _ => FileFormat::Text,
    }
}

/// Returns whether a text starts like a JSON object with at least one key.
fn is_json_object(text: &[u8]) -> bool {
    let Some(text) = text.strip_prefix(b"{") else { return false };
    let Some(key) = text.trim_ascii_start().strip_prefix(b"\"") else { return false };
    let mut is_escaped = false;
    let end = key.iter().position(|byte| {
        let ends = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    });
    end.is_some_and(|end| key[end + 1..].trim_ascii_start().starts_with(b":"))
}

impl FileFormat {
    /// Returns the name of the format, with its article.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Gzip => "a gzip file",
            Self::Zstd => "a zstd file",
            Self::Bzip2 => "a bzip2 file",
            Self::Xz => "an xz file",
            Self::Lz4 => "an LZ4 file",
            Self::Lzip => "an lzip file",
            Self::Compress => "a file of Unix `compress`",
            Self::Zip => "a ZIP archive",
            Self::SevenZip => "a 7-Zip archive",
            Self::Rar => "a RAR archive",
            Self::Tar => "a TAR archive",
            Self::Parquet => "a Parquet file",
            Self::Arrow => "an Arrow file",
            Self::Avro => "an Avro file",
            Self::Orc => "an ORC file",
            Self::Hdf5 => "an HDF5 file",
            Self::Npy => "a NumPy array",
            Self::Sqlite => "an SQLite database",
            Self::Pdf => "a PDF document",
            Self::JsonLines => "JSON lines",
            Self::JsonArray => "a JSON array",
            Self::Html => "an HTML page",
            Self::LfsPointer => "a Git LFS pointer",
            Self::WideText => "text in UTF-16 or UTF-32",
            Self::Image => "an image",
        }
    }

    /// Describes a file in a format that cannot be used, where `compression` is that of the stored object; and says what
    /// to do.
    pub fn explain(self, compression: Option<Self>) -> (String, &'static str) {
        match compression {
            Some(outer) => (format!("{} inside {}", self.name(), outer.name()), self.advice_inside()),
            None => (self.name().to_owned(), self.advice()),
        }
    }

    fn advice_inside(self) -> &'static str {
        match self {
            Self::Gzip | Self::Zstd | Self::Bzip2 | Self::Xz | Self::Lz4 | Self::Lzip | Self::Compress => {
                "decompress it once, so that gzip or zstd alone remains"
            }
            other => other.advice(),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Text => "use it as it is",
            Self::Gzip | Self::Zstd => "decompress it",
            Self::Bzip2 => "decompress it with `bunzip2`; only gzip and zstd are read compressed",
            Self::Xz => "decompress it with `unxz`; only gzip and zstd are read compressed",
            Self::Lz4 => "decompress it with `unlz4`; only gzip and zstd are read compressed",
            Self::Lzip => "decompress it with `lzip -d`; only gzip and zstd are read compressed",
            Self::Compress => "decompress it with `uncompress`; only gzip and zstd are read compressed",
            Self::Zip => "unpack it with `unzip` and name the files inside",
            Self::SevenZip => "unpack it with `7z x` and name the files inside",
            Self::Rar => "unpack it with `unrar x` and name the files inside",
            Self::Tar => {
                "set `format = \"webdataset\"` for an archive of images; otherwise unpack it with `tar -x` and name the files inside"
            }
            Self::Parquet => "set `format = \"parquet\"` for images or captions; otherwise convert it to text",
            Self::JsonLines => "set `format = \"jsonl\"` for images or captions; otherwise convert it to text",
            Self::Arrow
            | Self::Avro
            | Self::Orc
            | Self::Hdf5
            | Self::Npy
            | Self::Sqlite
            | Self::Pdf
            | Self::JsonArray => "convert it to rows of text, as docs/inputs.md describes them",
            Self::Html => "download the file again, and check its address and your access",
            Self::LfsPointer => "run `git lfs pull`",
            Self::WideText => "convert it to UTF-8, for example with `iconv -t UTF-8`",
            Self::Image => {
                "name the folder of the pictures, or convert them to rows with base64, as docs/inputs.md describes"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
        let cases: &[(&[u8], FileFormat)] = &[
            (b"BZh91AY&SY\x12\x34", FileFormat::Bzip2),
            (b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0", FileFormat::Bzip2),
            (b"\xfd7zXZ\0\0\x04", FileFormat::Xz),
            (b"PK\x03\x04\x14\0", FileFormat::Zip),
            (b"PAR1\x15\x04\x15", FileFormat::Parquet),
            (b"\x28\xb5\x2f\xfd\x04", FileFormat::Zstd),
            (b"\x50\x2a\x4d\x18\x04\0\0\0", FileFormat::Zstd),
            (b"{\"image_url\": \"a\"}\n{\"image_url\": \"b\"}\n", FileFormat::JsonLines),
            (b"{ \"a\\\"b\" : 1", FileFormat::JsonLines),
            (b"\xef\xbb\xbf[\n  {\n \"a\": 1", FileFormat::JsonArray),
            (b"\n<!DOCTYPE HTML><html>", FileFormat::Html),
            (b"version https://git-lfs.github.com/spec/v1\noid", FileFormat::LfsPointer),
            (b"\xff\xfea\0b\0", FileFormat::WideText),
            (b"\xff\xd8\xff\xe0", FileFormat::Image),
            (b"RIFF\x10\0\0\0WEBPVP8 ", FileFormat::Image),
            (b"ORC\x0a\x03", FileFormat::Orc),
        ];
        for (head, format) in cases {
            assert_eq!(sniff(head), *format, "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn text_that_resembles_a_signature_stays_text() {
        for head in [
            "",
            "BZh9 is a street\t/9j/",
            "PAR1 de Paris\t/9j/",
            "PK\tx",
            "{curly} caption\n",
            "{\"quoted\" caption}\n",
            "[1] caption\n",
            "7z\n",
            "ORC army\n",
            "GIF format\n",
            "https://a/b.jpg\t/9j/4AAQ\t\n",
            "<b>bold</b>\n",
        ] {
            assert_eq!(sniff(head.as_bytes()), FileFormat::Text, "{head}");
        }
        assert_eq!(sniff(&[0; 1024]), FileFormat::Text);
        assert_eq!(sniff("https://a/b.jpg\t".repeat(100).as_bytes()), FileFormat::Text);
    }

    /// Returns the header of a member; old archives lack the mark.
    fn tar_header(mark: &[u8]) -> Vec<u8> {
        let mut block = vec![0; SNIFF_BYTES];
        block[..5].copy_from_slice(b"a.jpg");
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(b"00000000012");
        block[257..257 + mark.len()].copy_from_slice(mark);
        block[TAR_CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    #[test]
    fn archives_with_and_without_mark_are_recognised() {
        for mark in [&b"ustar\x0000"[..], b"ustar  \0", b""] {
            let mut header = tar_header(mark);
            assert_eq!(sniff(&header), FileFormat::Tar, "{mark:?}");
            header[0] ^= 1;
            assert_eq!(sniff(&header) == FileFormat::Tar, !mark.is_empty(), "a wrong checksum");
        }
    }

    proptest::proptest! {
        #[test]
        fn fewer_bytes_never_give_another_format(which in 0..SIGNATURES.len(), rest: [u8; 32], cut in 0usize..40) {
            let whole = [SIGNATURES[which].0, &rest].concat();
            let part = sniff(&whole[..cut.min(whole.len())]);
            proptest::prop_assert!(part == FileFormat::Text || part == sniff(&whole));
        }
    }
}
