//! Gzip files (RFC 1952): members one behind the other, each a Deflate stream (RFC 1951) with its checksum and length.
//!
//! What is read is mostly base64, in which Deflate finds little to repeat: nearly every symbol is a letter. `fdeflate`, made for
//! PNG, takes several letters a step and unpacks such files 1.6 times as fast as zlib-rs does, and text 1.4 times. It knows zlib
//! streams (RFC 1950) alone, so it is given the header of one, and its checksum is passed over for that of gzip. When it says that
//! it is done it has read up to seven bytes beyond the end of the stream, four of which it took for a checksum.

use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crc32fast::Hasher;
use fdeflate::Decompressor;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

/// How far back a stream refers.
const WINDOW_BYTES: usize = 32 << 10;
/// Bytes of checksum and length behind a stream.
const TRAILER_BYTES: usize = 8;
/// Bytes of them that the inflater leaves, at most.
const LEFT_BYTES: usize = 4;
/// A zlib header: Deflate with the largest window.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
/// Bytes of a header, at most: an extra field of 64 KiB, a name, a comment.
const MAX_HEADER_BYTES: usize = 256 << 10;
/// Bytes looked at for the end of a header at a time.
const HEADER_STEP: usize = 512;

/// What a header says that it has (RFC 1952, section 2.3.1).
mod flag {
    pub(super) const CHECKSUM: u8 = 2;
    pub(super) const EXTRA: u8 = 4;
    pub(super) const NAME: u8 = 8;
    pub(super) const COMMENT: u8 = 16;
    pub(super) const UNKNOWN: u8 = 0xE0;
}

/// The unpacked bytes of a gzip file. An end within a member is [`ErrorKind::UnexpectedEof`], damage is [`ErrorKind::InvalidData`]; of an
/// end within the last bytes of a member it is either.
pub(super) struct Gunzip<R> {
    packed: R,
    unpacker: Unpacker,
}

impl<R> Gunzip<R> {
    /// `block_bytes` are unpacked at a time.
    pub(super) fn new(packed: R, block_bytes: usize) -> Self {
        let unpacker = Unpacker {
            part: Part::Header,
            header: Vec::new(),
            inflater: Decompressor::new(),
            sum: Hasher::new(),
            length: 0,
            taken: [0; TRAILER_BYTES],
            left: Vec::with_capacity(LEFT_BYTES),
            zeros: 0,
            unpacked: vec![0; WINDOW_BYTES + block_bytes],
            waiting: 0..0,
        };
        Self { packed, unpacker }
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for Gunzip<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<&[u8]>> {
        let Self { packed, unpacker } = self.get_mut();
        while unpacker.waiting.is_empty() {
            let bytes = ready!(Pin::new(&mut *packed).poll_fill_buf(context))?;
            if bytes.is_empty() && unpacker.ends()? {
                break;
            }
            let taken = unpacker.take(bytes)?;
            Pin::new(&mut *packed).consume(taken);
        }
        Poll::Ready(Ok(&unpacker.unpacked[unpacker.waiting.clone()]))
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.unpacker.waiting.start += count;
    }
}

impl<R: AsyncBufRead + Unpin> AsyncRead for Gunzip<R> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(context))?;
        let count = bytes.len().min(out.remaining());
        out.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// Part of a member that comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Header,
    Stream,
    Trailer,
}

/// Packed bytes → unpacked ones.
struct Unpacker {
    part: Part,
    /// What there is of the member's header.
    header: Vec<u8>,
    inflater: Decompressor,
    /// Of what is unpacked of the member; its length counts modulo 2³².
    sum: Hasher,
    length: u32,
    /// The last bytes that the inflater took, and those that followed.
    taken: [u8; TRAILER_BYTES],
    left: Vec<u8>,
    /// Zeros that may follow a member of nothing, as the end of its trailer.
    zeros: usize,
    /// What is unpacked, behind as much of what was before it as the stream may refer to.
    unpacked: Vec<u8>,
    /// Where in it what has not been read yet is.
    waiting: Range<usize>,
}

impl Unpacker {
    /// No more bytes follow, and nothing waits: whether the file ends here.
    fn ends(&self) -> Result<bool> {
        match self.part {
            Part::Header if self.header.is_empty() => Ok(true),
            // The inflater may have more to give.
            Part::Stream => Ok(false),
            // Seven bytes of the trailer were taken before, unless the input was cut among them.
            Part::Trailer if !self.left.is_empty() => Err(wrong_checksum()),
            Part::Header | Part::Trailer => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes some of `packed`, which is empty at the end of the file, when nothing waits; returns how much.
    fn take(&mut self, packed: &[u8]) -> Result<usize> {
        match self.part {
            Part::Header => self.take_header(packed),
            Part::Stream => self.inflate(packed),
            Part::Trailer => self.take_trailer(packed).map(|()| 1),
        }
    }

    fn take_header(&mut self, packed: &[u8]) -> Result<usize> {
        if self.header.is_empty() && self.zeros > 0 && packed.first() == Some(&0) {
            self.zeros -= 1;
            return Ok(1);
        }
        let before = self.header.len();
        let step = packed.len().min(HEADER_STEP);
        self.header.extend_from_slice(&packed[..step]);
        let Some(end) = header_end(&self.header)? else {
            return if self.header.len() <= MAX_HEADER_BYTES {
                Ok(step)
            } else {
                Err(damaged("its header has no end"))
            };
        };
        self.header = Vec::new();
        (self.sum, self.length) = (Hasher::new(), 0);
        self.left.clear();
        // A stream cannot refer to the member before it.
        self.waiting = 0..0;
        self.inflater = Decompressor::new();
        self.inflater.ignore_adler32();
        self.inflater.read(&ZLIB_HEADER, &mut self.unpacked, 0, false).map_err(inflating)?;
        self.part = Part::Stream;
        Ok(end - before)
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<usize> {
        let mut end = self.waiting.end;
        if end > WINDOW_BYTES {
            self.unpacked.copy_within(end - WINDOW_BYTES..end, 0);
            end = WINDOW_BYTES;
        }
        let (taken, made) = self.inflater.read(packed, &mut self.unpacked, end, false).map_err(inflating)?;
        self.waiting = end..end + made;
        self.sum.update(&self.unpacked[end..end + made]);
        self.length = self.length.wrapping_add(made as u32);
        let last = &packed[taken.saturating_sub(TRAILER_BYTES)..taken];
        self.taken.rotate_left(last.len());
        self.taken[TRAILER_BYTES - last.len()..].copy_from_slice(last);
        if self.inflater.is_done() {
            self.part = Part::Trailer;
        } else if packed.is_empty() && made == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(taken)
    }

    /// Takes one byte. How many of the trailer the inflater took depends on where its input was cut, so the trailer is complete
    /// when the last eight bytes are the right ones; that other ones are by accident is one chance in 2⁶⁴, and bytes before it that
    /// do not belong there are passed over. Of nothing all eight are zero, and so may the end of the stream be: then zeros that
    /// follow, where a header cannot be, belong to it.
    fn take_trailer(&mut self, packed: &[u8]) -> Result<()> {
        self.left.extend(packed.first());
        let found = self.taken[self.left.len()..].iter().chain(&self.left);
        if found.eq(self.sum.clone().finalize().to_le_bytes().iter().chain(&self.length.to_le_bytes())) {
            self.part = Part::Header;
            self.zeros = if self.length == 0 { LEFT_BYTES - self.left.len() } else { 0 };
        } else if self.left.len() >= LEFT_BYTES {
            return Err(wrong_checksum());
        }
        Ok(())
    }
}

/// Where the header ends that `bytes` start with; `None` if that is beyond them.
fn header_end(bytes: &[u8]) -> Result<Option<usize>> {
    if !bytes.iter().zip([0x1f, 0x8b]).all(|(byte, magic)| *byte == magic) {
        return Err(damaged("what follows a member is not a member"));
    }
    let Some(&[_, _, method, flags, ..]) = bytes.first_chunk::<10>() else { return Ok(None) };
    if method != 8 || flags & flag::UNKNOWN != 0 {
        return Err(damaged("its header is of another method than Deflate"));
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
        let Some(announced) = bytes.get(end..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
        if crc32fast::hash(&bytes[..end]) & 0xffff != u32::from(u16::from_le_bytes(*announced)) {
            return Err(damaged("its header does not have the checksum that it announces"));
        }
        end += 2;
    }
    Ok((end <= bytes.len()).then_some(end))
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn inflating(error: fdeflate::DecompressionError) -> Error {
    damaged(format!("its Deflate stream is invalid ({error:?})"))
}

fn wrong_checksum() -> Error {
    damaged("what is unpacked does not have the checksum and length that it announces")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, BufReader};

    use super::*;

    /// Unpacks `packed`, which comes in pieces of `piece` bytes.
    fn gunzip(packed: &[u8], piece: usize, block: usize) -> Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        let mut reader = Gunzip::new(BufReader::with_capacity(piece, packed), block);
        futures::executor::block_on(reader.read_to_end(&mut unpacked)).map(|_| unpacked)
    }

    fn gzip(data: &[u8], level: u32) -> Vec<u8> {
        let mut packer = GzBuilder::new().write(Vec::new(), Compression::new(level));
        packer.write_all(data).unwrap();
        packer.finish().unwrap()
    }

    /// From letters alone to what repeats itself.
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
    fn a_header_may_have_everything_and_be_cut_anywhere() {
        let data = text(1, 5000, 1);
        let builder = GzBuilder::new().extra(vec![7; 1000]).filename("part-0.tsv").comment("a comment").mtime(1);
        let mut packer = builder.write(Vec::new(), Compression::fast());
        packer.write_all(&data).unwrap();
        let mut packed = packer.finish().unwrap();
        // The checksum of the header, which this writer leaves out.
        let end = header_end(&packed).unwrap().unwrap();
        packed[3] |= flag::CHECKSUM;
        let sum = crc32fast::hash(&packed[..end]);
        packed.splice(end..end, (sum as u16).to_le_bytes());
        for piece in [1, 2, 3, 511, 512, 513, 4096, 1 << 20] {
            assert!(gunzip(&packed, piece, 4096).unwrap() == data, "{piece}");
        }
        packed[20] ^= 1;
        assert_eq!(gunzip(&packed, 4096, 4096).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn every_cut_is_seen_and_every_wrong_trailer() {
        let data = text(1, 300, 2);
        let packed = gzip(&data, 6);
        for member in [Vec::new(), gzip(b"before", 6)] {
            for cut in 1..packed.len() {
                let bytes = [member.as_slice(), &packed[..cut]].concat();
                assert_eq!(gunzip(&bytes, 1 << 20, 100).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut}");
                for piece in [1, 5] {
                    assert!(gunzip(&bytes, piece, 100).is_err(), "{cut} in pieces of {piece}");
                }
            }
        }
        for at in packed.len() - 8..packed.len() {
            let mut bytes = packed.clone();
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
    fn members_of_nothing_are_read_wherever_the_input_is_cut() {
        for lens in [&[0][..], &[0, 0], &[0, 5, 0], &[5, 0], &[5000, 0, 5000]] {
            for level in [0, 6] {
                let members: Vec<Vec<u8>> = lens.iter().map(|len| text(1, *len, 3)).collect();
                let packed: Vec<u8> = members.iter().flat_map(|data| gzip(data, level)).collect();
                for piece in (1..=64).chain([1 << 20]) {
                    assert!(gunzip(&packed, piece, 100).unwrap() == members.concat(), "{lens:?} in pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_member_behind_a_member_is_refused() {
        for behind in [&b"\0"[..], b"\x1f\x8c", b"\x1f\x8b\x07\0\0\0\0\0\0\0", b"text behind"] {
            let error = gunzip(&[&gzip(b"data", 6), behind].concat(), 100, 100).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{behind:?}");
        }
        let endless = [&[0x1f, 0x8b, 8, flag::NAME, 0, 0, 0, 0, 0, 0][..], &vec![b'x'; 2 * MAX_HEADER_BYTES]].concat();
        assert_eq!(gunzip(&endless, 4096, 100).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn members_of_any_size_in_pieces_of_any_size_give_the_data(
            members in prop::collection::vec((0u32..4, prop_oneof![0usize..3, 0usize..100_000], 0u32..10), 1..5),
            (piece, block) in (1usize..10_000, 1usize..300_000),
            seed: u32,
        ) {
            let (mut data, mut packed) = (Vec::new(), Vec::new());
            for (kind, len, level) in members {
                let one = text(kind, len, seed);
                packed.extend(gzip(&one, level));
                data.extend(one);
            }
            prop_assert!(gunzip(&packed, piece, block).unwrap() == data);
        }
    }
}
