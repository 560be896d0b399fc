//! Gzip (RFC 1952): a sequence of members, each a Deflate stream (RFC 1951) with checksum and length.
//!
//! Inputs are mostly base64, in which Deflate finds few repetitions, so nearly every symbol is a literal. `fdeflate`, made
//! for PNG, decodes several literals per step; it decompresses such files 1.6 times as fast as zlib-rs, and text 1.4 times.
//! It supports only zlib streams (RFC 1950), so it is given a zlib header, and the checksum of gzip is verified here. At the
//! end of a stream it has read up to seven bytes too many, four of which it took for a zlib checksum.

use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crc32fast::Hasher;
use fdeflate::Decompressor;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

/// Distance that a stream may refer back.
const WINDOW_BYTES: usize = 32 << 10;
/// Bytes of checksum and length after a stream.
const TRAILER_BYTES: usize = 8;
/// Upper bound on the trailer bytes that the inflater leaves unread.
const MAX_TRAILER_LEFT: usize = 4;
/// zlib header: Deflate with the largest window.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// Upper bound on a member's header: an extra field of 64 KiB, a name and a comment.
const MAX_HEADER_BYTES: usize = 256 << 10;
/// Header bytes searched for its end at a time.
const HEADER_STEP: usize = 512;

/// Flags of a member's header (RFC 1952, section 2.3.1).
mod flag {
    pub(super) const CHECKSUM: u8 = 2;
    pub(super) const EXTRA: u8 = 4;
    pub(super) const NAME: u8 = 8;
    pub(super) const COMMENT: u8 = 16;
    pub(super) const UNKNOWN: u8 = 0xE0;
}

/// Reader of the decompressed bytes of a gzip file.
///
/// A file that ends within a member is [`ErrorKind::UnexpectedEof`] and damaged data is [`ErrorKind::InvalidData`]. A file
/// that ends within the trailer of a member may be either. Zero bytes between and after members are padding, as for
/// `gzip` and Python's `gzip` module.
pub(super) struct GzipReader<R> {
    input: R,
    decoder: Decoder,
}

impl<R> GzipReader<R> {
    /// Decompresses `input`, up to `block_bytes` at a time.
    pub(super) fn new(input: R, block_bytes: usize) -> Self {
        let decoder = Decoder {
            section: Section::Header,
            header: Vec::new(),
            inflater: Decompressor::new(),
            checksum: Hasher::new(),
            length: 0,
            consumed: [0; TRAILER_BYTES],
            left: Vec::with_capacity(MAX_TRAILER_LEFT),
            output: vec![0; WINDOW_BYTES + block_bytes],
            unread: 0..0,
        };
        Self { input, decoder }
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for GzipReader<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<&[u8]>> {
        let Self { input, decoder } = self.get_mut();
        while decoder.unread.is_empty() {
            let bytes = ready!(Pin::new(&mut *input).poll_fill_buf(context))?;
            if bytes.is_empty() && decoder.is_at_end()? {
                break;
            }
            let consumed = decoder.consume(bytes)?;
            Pin::new(&mut *input).consume(consumed);
        }
        Poll::Ready(Ok(&decoder.output[decoder.unread.clone()]))
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.decoder.unread.start += count;
    }
}

impl<R: AsyncBufRead + Unpin> AsyncRead for GzipReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(context))?;
        let count = bytes.len().min(out.remaining());
        out.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// Next section of a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Header,
    Stream,
    Trailer,
}

/// State of the decompression.
struct Decoder {
    section: Section,
    /// Bytes of the member's header so far.
    header: Vec<u8>,
    inflater: Decompressor,
    /// Checksum of the member's decompressed bytes.
    checksum: Hasher,
    /// Number of the member's decompressed bytes modulo 2³².
    length: u32,
    /// Last bytes that the inflater consumed.
    consumed: [u8; TRAILER_BYTES],
    /// Bytes after those.
    left: Vec<u8>,
    /// Window of earlier output that the stream may refer to, then the latest output.
    output: Vec<u8>,
    /// Part of `output` that the consumer has not read.
    unread: Range<usize>,
}

impl Decoder {
    /// Returns whether the file may end here: no input remains and no output is unread.
    fn is_at_end(&self) -> Result<bool> {
        match self.section {
            Section::Header if self.header.is_empty() => Ok(true),
            // The inflater may hold more output.
            Section::Stream => Ok(false),
            // A complete input has seven trailer bytes that were consumed earlier.
            Section::Trailer if !self.left.is_empty() => Err(wrong_checksum()),
            Section::Header | Section::Trailer => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Processes some of `input` and returns the number of bytes consumed. An empty `input` is the end of the file.
    fn consume(&mut self, input: &[u8]) -> Result<usize> {
        match self.section {
            Section::Header => self.read_header(input),
            Section::Stream => self.inflate(input),
            Section::Trailer => self.read_trailer(input).map(|()| 1),
        }
    }

    fn read_header(&mut self, input: &[u8]) -> Result<usize> {
        if self.header.is_empty() && input.first() == Some(&0) {
            return Ok(input.iter().take_while(|byte| **byte == 0).count());
        }
        let before = self.header.len();
        let step = input.len().min(HEADER_STEP);
        self.header.extend_from_slice(&input[..step]);
        let Some(end) = header_end(&self.header)? else {
            return if self.header.len() <= MAX_HEADER_BYTES {
                Ok(step)
            } else {
                Err(invalid("its header has no end"))
            };
        };
        self.header = Vec::new();
        (self.checksum, self.length) = (Hasher::new(), 0);
        self.left.clear();
        // A stream cannot refer to the member before it.
        self.unread = 0..0;
        self.inflater = Decompressor::new();
        self.inflater.ignore_adler32();
        self.inflater.read(&ZLIB_HEADER, &mut self.output, 0, false).map_err(invalid_deflate)?;
        self.section = Section::Stream;
        Ok(end - before)
    }

    fn inflate(&mut self, input: &[u8]) -> Result<usize> {
        let mut end = self.unread.end;
        if end > WINDOW_BYTES {
            self.output.copy_within(end - WINDOW_BYTES..end, 0);
            end = WINDOW_BYTES;
        }
        let (consumed, produced) = self.inflater.read(input, &mut self.output, end, false).map_err(invalid_deflate)?;
        self.unread = end..end + produced;
        self.checksum.update(&self.output[end..end + produced]);
        self.length = self.length.wrapping_add(produced as u32);
        let last = &input[consumed.saturating_sub(TRAILER_BYTES)..consumed];
        self.consumed.rotate_left(last.len());
        self.consumed[TRAILER_BYTES - last.len()..].copy_from_slice(last);
        if self.inflater.is_done() {
            self.section = Section::Trailer;
        } else if input.is_empty() && produced == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(consumed)
    }

    /// Reads one byte of the trailer.
    ///
    /// The number of trailer bytes that the inflater has consumed depends on where its input was split. The trailer is
    /// therefore complete when the last eight bytes are the expected checksum and length, which happens by accident once in
    /// 2⁶⁴. All eight bytes of an empty member are zero, and so may be the end of its stream; the rest of its trailer is
    /// then skipped like zero padding.
    fn read_trailer(&mut self, input: &[u8]) -> Result<()> {
        self.left.extend(input.first());
        let found = self.consumed[self.left.len()..].iter().chain(&self.left);
        if found.eq(self.checksum.clone().finalize().to_le_bytes().iter().chain(&self.length.to_le_bytes())) {
            self.section = Section::Header;
        } else if self.left.len() >= MAX_TRAILER_LEFT {
            return Err(wrong_checksum());
        }
        Ok(())
    }
}

/// Returns the end of the header at the start of `bytes`; `None` if it lies beyond them.
fn header_end(bytes: &[u8]) -> Result<Option<usize>> {
    if !bytes.iter().zip([0x1f, 0x8b]).all(|(byte, magic)| *byte == magic) {
        return Err(invalid("the bytes after a member do not start another one"));
    }
    let Some(&[_, _, method, flags, ..]) = bytes.first_chunk::<10>() else { return Ok(None) };
    if method != 8 || flags & flag::UNKNOWN != 0 {
        return Err(invalid("its header names another method than Deflate"));
    }
    let mut end = 10;
    if flags & flag::EXTRA != 0 {
        let Some(length) = bytes[end..].first_chunk() else { return Ok(None) };
        end += 2 + usize::from(u16::from_le_bytes(*length));
    }
    for text in [flag::NAME, flag::COMMENT] {
        if flags & text != 0 {
            let Some(length) = bytes.get(end..).and_then(|rest| memchr::memchr(0, rest)) else { return Ok(None) };
            end += length + 1;
        }
    }
    if flags & flag::CHECKSUM != 0 {
        let Some(expected) = bytes.get(end..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
        if crc32fast::hash(&bytes[..end]) & 0xffff != u32::from(u16::from_le_bytes(*expected)) {
            return Err(invalid("the checksum of its header is wrong"));
        }
        end += 2;
    }
    Ok((end <= bytes.len()).then_some(end))
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn invalid_deflate(error: fdeflate::DecompressionError) -> Error {
    invalid(format!("its Deflate stream is invalid ({error:?})"))
}

fn wrong_checksum() -> Error {
    invalid("the decompressed bytes do not have the checksum and length that its trailer states")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, BufReader};

    use super::*;

    /// Decompresses `input`, which arrives in pieces of `piece` bytes.
    fn gunzip(input: &[u8], piece: usize, block: usize) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        let mut reader = GzipReader::new(BufReader::with_capacity(piece, input), block);
        futures::executor::block_on(reader.read_to_end(&mut output)).map(|_| output)
    }

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut packer = GzBuilder::new().write(Vec::new(), Compression::new(level));
        packer.write_all(data).unwrap();
        packer.finish().unwrap()
    }

    /// Returns test data: random bytes, letters, text, or one repeated byte.
    fn text(kind: u32, len: usize, seed: u32) -> Vec<u8> {
        let step = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = (*state >> 24) as u8;
            Some(match kind {
                0 => byte,
                1 => b'A' + byte % 64,
                2 => b'a' + byte / 100,
                _ => 7,
            })
        };
        std::iter::repeat_n((), len).scan(seed, |state, ()| step(state)).collect()
    }

    #[test]
    fn header_with_every_field_may_be_split_anywhere() {
        let data = text(1, 5000, 1);
        let builder = GzBuilder::new().extra(vec![7; 1000]).filename("section-0.tsv").comment("a comment").mtime(1);
        let mut packer = builder.write(Vec::new(), Compression::fast());
        packer.write_all(&data).unwrap();
        let mut input = packer.finish().unwrap();
        // This writer omits the checksum of the header.
        let end = header_end(&input).unwrap().unwrap();
        input[3] |= flag::CHECKSUM;
        let checksum = crc32fast::hash(&input[..end]);
        input.splice(end..end, (checksum as u16).to_le_bytes());
        for piece in [1, 2, 3, 511, 512, 513, 4096, 1 << 20] {
            assert!(gunzip(&input, piece, 4096).unwrap() == data, "{piece}");
        }
        input[20] ^= 1;
        assert_eq!(gunzip(&input, 4096, 4096).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn truncation_and_wrong_trailers_are_errors() {
        let data = text(1, 300, 2);
        let input = gzip(&data, 6);
        for member in [Vec::new(), gzip(b"before", 6)] {
            for cut in 1..input.len() {
                let bytes = [member.as_slice(), &input[..cut]].concat();
                assert_eq!(gunzip(&bytes, 1 << 20, 100).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut}");
                for piece in [1, 5] {
                    assert!(gunzip(&bytes, piece, 100).is_err(), "{cut} in pieces of {piece}");
                }
            }
        }
        for at in input.len() - 8..input.len() {
            let mut bytes = input.clone();
            bytes[at] ^= 1;
            for follows in [Vec::new(), gzip(b"behind", 6)] {
                for piece in [1, 5, 1 << 20] {
                    let error = gunzip(&[bytes.as_slice(), &follows].concat(), piece, 100).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::InvalidData, "{at} in pieces of {piece}: {error}");
                }
            }
        }
    }

    #[test]
    fn empty_members_may_be_split_anywhere() {
        for lens in [&[0][..], &[0, 0], &[0, 5, 0], &[5, 0], &[5000, 0, 5000]] {
            for level in [0, 6] {
                let members: Vec<Vec<u8>> = lens.iter().map(|len| text(1, *len, 3)).collect();
                let input: Vec<u8> = members.iter().flat_map(|data| gzip(data, level)).collect();
                for piece in (1..=64).chain([1 << 20]) {
                    assert!(gunzip(&input, piece, 100).unwrap() == members.concat(), "{lens:?} in pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn zero_padding_between_and_after_members_is_skipped() {
        let (one, other) = (gzip(b"one ", 6), gzip(b"other", 6));
        for zeros in [1, 7, 512, 100_000] {
            let padding = vec![0; zeros];
            for piece in [1, 5, 4096] {
                let input = [&one[..], &padding, &other, &padding].concat();
                assert_eq!(gunzip(&input, piece, 100).unwrap(), b"one other", "{zeros} zeros in pieces of {piece}");
            }
        }
    }

    #[test]
    fn trailing_garbage_is_refused() {
        for behind in [&b"\0\0x"[..], b"\x1f\x8c", b"\x1f\x8b\x07\0\0\0\0\0\0\0", b"text behind"] {
            let error = gunzip(&[&gzip(b"data", 6), behind].concat(), 100, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{behind:?}");
        }
        let endless = [&[0x1f, 0x8b, 8, flag::NAME, 0, 0, 0, 0, 0, 0][..], &vec![b'x'; 2 * MAX_HEADER_BYTES]].concat();
        assert_eq!(gunzip(&endless, 4096, 100).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn members_of_any_size_in_pieces_of_any_size_decompress(
            members in prop::collection::vec((0u32..4, prop_oneof![0usize..3, 0usize..100_000], 0u32..10), 1..5),
            (piece, block) in (1usize..10_000, 1usize..300_000),
            seed: u32,
        ) {
            let (mut data, mut input) = (Vec::new(), Vec::new());
            for (kind, len, level) in members {
                let one = text(kind, len, seed);
                input.extend(gzip(&one, level));
                data.extend(one);
            }
            prop_assert!(gunzip(&input, piece, block).unwrap() == data);
        }
    }
}
