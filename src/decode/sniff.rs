//! Bytes → format, by content alone, because names and declared types in the corpus are often wrong.

use std::io::Read;

use super::error::DecodeError;

/// A supported raster format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// ITU-T T.81, baseline and progressive.
    Jpeg,
    /// ISO/IEC 15948.
    Png,
    /// 87a and 89a; the first frame.
    Gif,
    /// Lossy, lossless, and the first frame of an animation.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// TIFF 6.0 and `BigTIFF`; the first page.
    Tiff,
}

impl Format {
    /// Returns the usual name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes of a text that are searched for the opening tag; editors put long comments before `<svg`.
const TEXT_HEAD: usize = 4096;

/// Signatures at offset 0 of unsupported formats, which are recognised to be named.
const UNSUPPORTED: &[(&[u8], &str)] = &[
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "PSD"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\x01\0", "ICO"),
    (b"AT&TFORM", "DjVu"),
    (b"gimp xcf", "XCF"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (b"OggS", "Ogg"),
    (b"PK\x03\x04", "ZIP"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"RIFF", "RIFF other than WebP"),
];

/// Recognises the format of `data`, or returns an error that names an unsupported one.
pub(super) fn sniff(data: &[u8]) -> Result<Format, DecodeError> {
    if data.is_empty() {
        return Err(DecodeError::MissingData);
    }
    if let Some(format) = sniff_raster(data) {
        return Ok(format);
    }
    Err(sniff_unsupported(data))
}

fn sniff_raster(data: &[u8]) -> Option<Format> {
    if data.starts_with(b"\xff\xd8\xff") {
        Some(Format::Jpeg)
    } else if data.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some(Format::Png)
    } else if data.starts_with(b"GIF87a") || data.starts_with(b"GIF89a") {
        Some(Format::Gif)
    } else if data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WEBP") {
        Some(Format::WebP)
    } else if is_bmp(data) {
        Some(Format::Bmp)
    } else if matches!(data.get(..4), Some(b"II*\0" | b"MM\0*" | b"II+\0" | b"MM\0+")) {
        Some(Format::Tiff)
    } else {
        None
    }
}

/// Recognises a BMP by its signature and a known header size, because many texts begin with `BM`.
fn is_bmp(data: &[u8]) -> bool {
    data.starts_with(b"BM") && matches!(data.get(14..18), Some(&[12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

fn sniff_unsupported(data: &[u8]) -> DecodeError {
    if data.starts_with(b"\x1f\x8b") {
        return sniff_gzip(data);
    }
    if let Some(brand) = data.get(4..8).filter(|at| *at == b"ftyp").and(data.get(8..12)) {
        let name = match brand {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => "HEIF",
            _ => "MP4",
        };
        return DecodeError::UnsupportedFormat { name };
    }
    if let Some((_, name)) = UNSUPPORTED.iter().find(|(magic, _)| data.starts_with(magic)) {
        return DecodeError::UnsupportedFormat { name };
    }
    sniff_text(data).unwrap_or(DecodeError::UnsupportedFormat { name: "unknown data" })
}

/// Recognises a compressed drawing (`.svgz`); inflates at most [`TEXT_HEAD`] bytes.
fn sniff_gzip(data: &[u8]) -> DecodeError {
    let mut head = Vec::with_capacity(TEXT_HEAD);
    let limit = u64::try_from(TEXT_HEAD).unwrap_or(u64::MAX);
    // Bytes that were inflated before an error are searched too.
    let is_sound = flate2::read::GzDecoder::new(data).take(limit).read_to_end(&mut head).is_ok();
    match sniff_text(&head) {
        Some(error @ (DecodeError::UnsupportedSvg | DecodeError::UnsupportedHtml)) => error,
        _ if is_sound => DecodeError::UnsupportedFormat { name: "gzip" },
        _ => DecodeError::UnsupportedFormat { name: "damaged gzip" },
    }
}

/// Recognises markup. Byte order marks, white space, prologs, comments and doctypes may precede the tag.
fn sniff_text(data: &[u8]) -> Option<DecodeError> {
    let head = &data[..data.len().min(TEXT_HEAD)];
    // UTF-16 markup is ASCII with a zero beside each byte; dropping the zeros is enough to see the tag.
    let ascii: Vec<u8> = if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        head[2..].iter().copied().filter(|&byte| byte != 0).collect()
    } else {
        head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).to_vec()
    };
    let body = ascii.trim_ascii_start().to_ascii_lowercase();
    if !body.starts_with(b"<") {
        let printable = body.iter().all(|&byte| byte >= 0x20 || byte.is_ascii_whitespace());
        return (printable && std::str::from_utf8(&body[..body.len().min(64)]).is_ok())
            .then_some(DecodeError::UnsupportedFormat { name: "text" });
    }
    let tag = opening_tag(&body);
    if tag.starts_with(b"<svg") || tag.starts_with(b"<!doctype svg") {
        Some(DecodeError::UnsupportedSvg)
    } else if tag.starts_with(b"<!doctype html")
        || [&b"<html"[..], b"<head", b"<body", b"<title", b"<meta", b"<script"].iter().any(|name| tag.starts_with(name))
    {
        Some(DecodeError::UnsupportedHtml)
    } else if memchr::memmem::find(&body, b"<svg").is_some() && !body.starts_with(b"<html") {
        // A namespace prefix, an entity declaration or an unusual prolog before the root.
        Some(DecodeError::UnsupportedSvg)
    } else {
        Some(DecodeError::UnsupportedFormat { name: "XML" })
    }
}

/// Returns the text from the first tag on, behind prologs (`<?…?>`) and comments; empty if one of those does not end.
fn opening_tag(mut body: &[u8]) -> &[u8] {
    loop {
        let end: &[u8] = if body.starts_with(b"<?") {
            b"?>"
        } else if body.starts_with(b"<!--") {
            b"-->"
        } else {
            return body;
        };
        match memchr::memmem::find(body, end) {
            Some(at) => body = body[at + end.len()..].trim_ascii_start(),
            None => return b"",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn reason_name(data: &[u8]) -> &'static str {
        sniff(data).unwrap_err().reason().as_str()
    }

    #[test]
    fn svg_is_recognised_behind_prologs() {
        for data in [
            &b"<svg xmlns='http://www.w3.org/2000/svg'/>"[..],
            b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- Generator -->\n<!DOCTYPE svg PUBLIC ''>\n<svg>",
            b"  \r\n<SVG>",
            b"\xff\xfe<\0s\0v\0g\0>\0",
            b"<?xml version='1.0'?><!-- <html> --><svg:svg><svg>",
        ] {
            assert_eq!(reason_name(data), "unsupported_svg", "{}", data.escape_ascii());
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"<?xml version='1.0'?><svg/>").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(reason_name(&gzip), "unsupported_svg");
        assert_eq!(reason_name(&gzip[..gzip.len() - 6]), "unsupported_svg");
    }

    #[test]
    fn html_is_told_from_svg() {
        assert_eq!(reason_name(b"<!DOCTYPE html><html><body><svg/></body></html>"), "unsupported_html");
        assert_eq!(reason_name(b"\n<html>429 Too Many Requests"), "unsupported_html");
        assert_eq!(reason_name(b"<?xml version='1.0'?><Error/>"), "unsupported_format");
    }

    #[test]
    fn unsupported_formats_are_named() {
        for (data, name) in [
            (&b"%PDF-1.7"[..], "PDF"),
            (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x18ftypheic", "HEIF"),
            (b"RIFF\0\0\0\0WAVE", "RIFF other than WebP"),
            (b"not found", "text"),
            (b"BM was a band", "text"),
            (b"\x01\x02\x03", "unknown data"),
        ] {
            let error = sniff(data).unwrap_err();
            assert_eq!(error, DecodeError::UnsupportedFormat { name });
            assert_eq!(error.to_string(), format!("image format `{name}` is not supported"));
        }
        assert_eq!(reason_name(b""), "missing_data");
    }
}
