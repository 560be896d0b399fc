//! Splits a tar archive, fed block by block, into its members.
//!
//! The `tar` crate reads the headers: ustar, GNU with long names and large numbers, and PAX with its extensions. This module
//! streams the bytes between them, holds only members that are asked for, and bounds every length that a header states. Names
//! are text alone: nothing is extracted, so a path such as `../x` has no effect.

use tar::{EntryType, Header, PaxExtensions};

use crate::corpus::rows::{PushParser, ResumePoint};

const BLOCK_BYTES: usize = 512;
/// Upper bound on a long name or on PAX extensions. A path of Linux has at most 4,096 bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Position of the checksum in a header.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Regular file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Name as stored.
    pub(super) name: Vec<u8>,
    /// Size in bytes.
    pub(super) size: u64,
    /// Content; `None` if it was not asked for.
    pub(super) content: Option<Vec<u8>>,
    /// Offset of its first header in the archive.
    pub(super) offset: u64,
}

/// Content of the bytes after a header.
#[derive(Debug)]
enum Body {
    /// Content of a member.
    Member(Member),
    /// PAX extensions of the next member.
    Extensions(Vec<u8>),
    /// Long name of the next member.
    LongName(Vec<u8>),
    /// Anything else.
    Skipped,
}

#[derive(Debug)]
struct Data {
    body: Body,
    /// Bytes of the content that have not been read.
    remaining: u64,
    /// Bytes after the content, up to the next block.
    padding: u64,
}

/// Splits the bytes of one archive into members.
///
/// Call `feed`, then `next` until it returns `None`, and repeat.
#[derive(Debug)]
pub(super) struct TarMembers {
    buffer: Vec<u8>,
    start: usize,
    /// Offset of the first byte in the buffer.
    base: u64,
    finished: bool,
    data: Option<Data>,
    /// Offset of the first header of the next member.
    member_offset: Option<u64>,
    long_name: Option<Vec<u8>>,
    extensions: Option<Vec<u8>>,
    /// True if a block of zeros was read, which ends an archive. Another archive may follow.
    ended: bool,
    /// True if anything else followed, which means nothing.
    closed: bool,
}

impl TarMembers {
    /// Creates a splitter whose first block starts at a header, at `byte_offset` of the archive.
    pub(super) fn new(byte_offset: u64) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            base: byte_offset,
            finished: false,
            data: None,
            member_offset: None,
            long_name: None,
            extensions: None,
            ended: false,
            closed: false,
        }
    }

    /// Returns the next regular file; `None` if another block is needed or the archive has ended. `wants` tells by name and size
    /// whether its content is needed.
    ///
    /// # Errors
    /// When the archive is damaged, ends early, or has a member that cannot be read.
    pub(super) fn next(&mut self, wants: impl Fn(&[u8], u64) -> bool) -> Result<Option<Member>, String> {
        loop {
            if self.data.is_some() {
                if !self.read_data()? {
                    return Ok(None);
                }
                match self.data.take().map(|data| data.body) {
                    Some(Body::Member(member)) => return Ok(Some(member)),
                    Some(Body::Extensions(bytes)) => self.extensions = Some(bytes),
                    Some(Body::LongName(mut name)) => {
                        // The name ends with a zero.
                        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                        self.long_name = Some(name);
                    }
                    Some(Body::Skipped) | None => {}
                }
                continue;
            }
            if self.closed {
                self.start = self.buffer.len();
                return Ok(None);
            }
            let offset = self.base + self.start as u64;
            let Some(block) = self.buffer.get(self.start..self.start + BLOCK_BYTES) else {
                let rest = self.buffer.get(self.start..).unwrap_or_default();
                let is_cut = self.member_offset.is_some() || (!self.ended && rest.iter().any(|byte| *byte != 0));
                if self.finished && is_cut {
                    return Err(format!(
                        "it ends in the middle of a header, at byte {offset}: it is truncated, fetch it again"
                    ));
                }
                return Ok(None);
            };
            if block.iter().all(|byte| *byte == 0) {
                self.start += BLOCK_BYTES;
                self.ended = true;
                continue;
            }
            let header = Header::from_byte_slice(block).clone();
            if !has_right_checksum(&header) {
                if self.ended {
                    self.closed = true;
                    continue;
                }
                return Err(format!("the bytes at {offset} are not a header: the file is damaged, fetch it again"));
            }
            self.ended = false;
            self.start += BLOCK_BYTES;
            self.member_offset.get_or_insert(offset);
            self.open_data(&header, offset, &wants)?;
        }
    }

    /// Starts to read what follows a header.
    fn open_data(&mut self, header: &Header, offset: u64, wants: impl Fn(&[u8], u64) -> bool) -> Result<(), String> {
        let unreadable =
            |what: &str| format!("the header at byte {offset} {what}: the file is damaged, fetch it again");
        let mut size = header.entry_size().map_err(|_| unreadable("states no size"))?;
        let body = match header.entry_type() {
            EntryType::XHeader | EntryType::GNULongName => {
                if size > MAX_EXTENSION_BYTES {
                    return Err(unreadable(&format!("announces a name or extensions of {size} bytes")));
                }
                let room = Vec::with_capacity(size as usize);
                if header.entry_type() == EntryType::XHeader { Body::Extensions(room) } else { Body::LongName(room) }
            }
            EntryType::GNULongLink | EntryType::XGlobalHeader => Body::Skipped,
            EntryType::GNUSparse => return Err(sparse(&header.path_bytes())),
            kind => {
                let extensions = self.extensions.take();
                let extended = Extended::read(extensions.as_deref().unwrap_or_default())
                    .ok_or_else(|| unreadable("follows malformed PAX extensions"))?;
                let name = extended.path.or(self.long_name.take()).unwrap_or_else(|| header.path_bytes().into_owned());
                self.long_name = None;
                if extended.sparse {
                    return Err(sparse(&name));
                }
                let offset = self.member_offset.take().unwrap_or(offset);
                if matches!(kind, EntryType::Regular | EntryType::Continuous) || kind.as_byte() == 0 {
                    size = extended.size.unwrap_or(size);
                    let content = wants(&name, size).then(Vec::new);
                    Body::Member(Member { name, size, content, offset })
                } else {
                    // Links and folders have no content, whatever their size says.
                    size = 0;
                    Body::Skipped
                }
            }
        };
        let padding = (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
        self.data = Some(Data { body, remaining: size, padding });
        Ok(())
    }

    /// Reads the bytes that follow a header as far as they are there. Returns whether they are complete.
    fn read_data(&mut self) -> Result<bool, String> {
        let Some(data) = &mut self.data else { return Ok(true) };
        let available = self.buffer.get(self.start..).unwrap_or_default();
        let taken = available.len().min(usize::try_from(data.remaining).unwrap_or(usize::MAX));
        let target = match &mut data.body {
            Body::Member(member) => member.content.as_mut(),
            Body::Extensions(bytes) | Body::LongName(bytes) => Some(bytes),
            Body::Skipped => None,
        };
        if let Some(target) = target {
            if target.capacity() < data.remaining as usize && target.is_empty() {
                target.reserve_exact(data.remaining as usize);
            }
            target.extend_from_slice(&available[..taken]);
        }
        data.remaining -= taken as u64;
        let padding = (available.len() - taken).min(data.padding as usize);
        if data.remaining == 0 {
            data.padding -= padding as u64;
            self.start += padding;
        }
        self.start += taken;
        let is_complete = data.remaining == 0 && (data.padding == 0 || self.finished);
        if !is_complete && self.finished {
            let name = match &data.body {
                Body::Member(member) => String::from_utf8_lossy(&member.name).into_owned(),
                Body::Extensions(_) | Body::LongName(_) | Body::Skipped => "a header".to_owned(),
            };
            return Err(format!("it ends in the middle of `{name}`: it is truncated, fetch it again"));
        }
        Ok(is_complete)
    }
}

impl PushParser for TarMembers {
    fn feed(&mut self, block: &[u8]) {
        self.buffer.drain(..self.start);
        self.base += self.start as u64;
        self.start = 0;
        self.buffer.extend_from_slice(block);
    }

    fn finish(&mut self) {
        self.finished = true;
    }
}

/// Values of PAX extensions that change how a member is read.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Extended {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut read = Self::default();
        for extension in PaxExtensions::new(bytes) {
            let extension = extension.ok()?;
            match extension.key_bytes() {
                b"path" => read.path = Some(extension.value_bytes().to_vec()),
                b"size" => read.size = Some(extension.value().ok()?.parse().ok()?),
                key => read.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Some(read)
    }
}

fn sparse(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name.get(..200).unwrap_or(name)).into_owned();
    format!("`{name}` is a sparse file, which is not supported: pack the files without `--sparse`")
}

/// Compares the checksum of a header, which sums its bytes with the checksum itself as spaces.
fn has_right_checksum(header: &Header) -> bool {
    let sum =
        header.as_bytes().iter().enumerate().fold(0_u32, |sum, (at, byte)| {
            sum + if CHECKSUM.contains(&at) { u32::from(b' ') } else { u32::from(*byte) }
        });
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// Returns the point at which reading can resume, which is that of a header.
pub(super) fn point(byte_offset: u64, number: u64) -> ResumePoint {
    ResumePoint { byte_offset, number }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs files with the `tar` crate, whose long names are GNU's.
    fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read_all(archive: &[u8], block: usize) -> Result<Vec<Member>, String> {
        let mut members = TarMembers::new(0);
        let mut seen = Vec::new();
        for block in archive.chunks(block) {
            members.feed(block);
            while let Some(member) = members.next(|_, size| size <= 2000)? {
                seen.push(member);
            }
        }
        members.finish();
        while let Some(member) = members.next(|_, _| true)? {
            seen.push(member);
        }
        Ok(seen)
    }

    #[test]
    fn members_are_independent_of_blocks() {
        let long = format!("{}/x.jpg", "folder".repeat(60));
        let big = vec![7; 5000];
        let archive = pack(&[("a.jpg", b"one"), (&long, &[1; 1024]), ("empty.txt", b""), ("big.bin", &big)]);
        let whole = read_all(&archive, archive.len()).unwrap();
        let names: Vec<&[u8]> = whole.iter().map(|member| member.name.as_slice()).collect();
        assert_eq!(names, [b"a.jpg".as_slice(), long.as_bytes(), b"empty.txt", b"big.bin"]);
        assert_eq!(whole[1].content.as_deref(), Some(&[1; 1024][..]));
        assert_eq!((whole[3].size, &whole[3].content), (5000, &None));
        for block in [1, 100, 511, 512, 513, 4096] {
            assert_eq!(read_all(&archive, block).unwrap(), whole, "blocks of {block}");
        }
        // Reading can start at the first header of any member.
        let offset = whole[1].offset as usize;
        let mut members = TarMembers::new(offset as u64);
        members.feed(&archive[offset..]);
        assert_eq!(members.next(|_, _| true).unwrap().as_ref(), Some(&whole[1]));
    }

    #[test]
    fn damage_is_refused_by_place() {
        let archive = pack(&[("a.jpg", &[1; 600]), ("b.jpg", b"two")]);
        let error = |archive: &[u8]| read_all(archive, 100).unwrap_err();
        assert!(error(&archive[..900]).contains("in the middle of `a.jpg`"));
        assert!(error(&archive[..1600]).contains("in the middle of a header, at byte 1536"));
        let mut damaged = archive.clone();
        damaged[1540] ^= 1;
        assert!(error(&damaged).contains("the bytes at 1536 are not a header"));
        let mut header = Header::new_gnu();
        header.set_size(u64::MAX / 2);
        header.set_entry_type(EntryType::GNULongName);
        header.set_cksum();
        assert!(error(header.as_bytes()).contains("announces a name or extensions of"));
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        assert!(error(header.as_bytes()).contains("it is truncated"));
        header.set_entry_type(EntryType::GNUSparse);
        header.set_cksum();
        assert!(error(header.as_bytes()).contains("is a sparse file"));
        // Without its end mark, or with foreign bytes after it, the archive is whole.
        assert_eq!(read_all(&archive[..2560], 100).unwrap().len(), 2);
        assert_eq!(read_all(&[&archive[..], b"more"].concat(), 100).unwrap().len(), 2);
        assert_eq!(
            read_all(&[&archive[..], &archive[..]].concat(), 100).unwrap().len(),
            4,
            "archives may follow each other"
        );
    }
}
