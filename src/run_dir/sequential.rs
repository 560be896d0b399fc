//! A file that is written from its start to its end and that nobody is about to read: past the system's cache, where that is of use.
//!
//! Through the cache each byte is copied by the kernel into pages that it has to find first and to write out and to forget later. With
//! `O_DIRECT` the device takes the bytes from the program's memory. It wants them in whole blocks at whole blocks' addresses: those of a
//! [`PageBuffer`](super::PageBuffer) that go to a place which is a multiple of [`PLACE_BYTES`] are taken from where they lie, and others
//! are gathered first.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Result, Write};
use std::path::Path;

use super::pages::{HUGE_PAGE_BYTES, Pages};

/// What places of large writes in a file should be multiples of. A device's blocks are smaller, but what is behind it (a disk's own
/// pages, a RAID's stripes, the pages in which a host keeps an image) is not: on a virtual disk, places that were multiples of 4 KiB
/// alone took 4 % more of two processors at 490 MB/s, of 32 KiB 1 %, of 64 KiB and more nothing.
pub const PLACE_BYTES: usize = 64 << 10;
/// Bytes from which on they are not gathered.
const TAKEN_AS_THEY_LIE_BYTES: usize = 512 << 10;
/// Bytes that are handed to the device at once where they are gathered, which are one huge page: more is no faster.
const GATHERED_BYTES: usize = HUGE_PAGE_BYTES;
/// The same, as long as so much is never between two writes that are not gathered; a huge page would be cleared for it in every file,
/// which takes up to 2 ms on a virtual machine.
const FEW_GATHERED_BYTES: usize = 256 << 10;
/// Bytes at the start of a file that go through the cache, so that small files cost no huge pages; whole blocks.
const CACHED_BYTES: usize = 1 << 20;
/// Bytes gathered at a time, so that whoever else looks at them finds them in the processor's cache.
const COPIED_BYTES: usize = 128 << 10;
/// A multiple of the blocks of most devices; one that has larger ones refuses, and gets the file through the cache.
const BLOCK_BYTES: usize = 4096;

/// What the system calls filesystems (`statfs(2)`).
#[cfg(target_os = "linux")]
const EXT4: rustix::fs::FsWord = 0xEF53;
#[cfg(target_os = "linux")]
const XFS: rustix::fs::FsWord = 0x5846_5342;
#[cfg(target_os = "linux")]
const OVERLAY: rustix::fs::FsWord = 0x794C_7630;

/// Which way a file takes to the disk: through what the system keeps of files in memory, or past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCache {
    /// The file is about to be read.
    Through,
    /// It is not. Filesystems that are not made for this have it go through the cache all the same.
    Past,
}

/// Writes one file. Nothing of it may be relied upon before [`SequentialWriter::finish`], nor ever after an error.
pub struct SequentialWriter {
    file: File,
    /// Bytes after which the file goes past the cache; 0: it does, or never will.
    cached_left: usize,
    /// There while it does.
    gathered: Option<Gathered>,
}

/// Bytes for which the file waits.
struct Gathered {
    memory: Pages,
    bytes: usize,
}

impl SequentialWriter {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(path: &Path, cache: PageCache) -> Result<Self> {
        let cached_left = if cache == PageCache::Past { CACHED_BYTES } else { 0 };
        Ok(Self { file: File::create(path)?, cached_left, gathered: None })
    }

    /// Another handle to the file, which has all but the last bytes that were written.
    ///
    /// # Errors
    /// When the process has too many.
    pub fn handle(&self) -> Result<File> {
        self.file.try_clone()
    }

    /// Hands the last bytes to the system. The file is complete afterwards, and not yet synced.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    pub fn finish(mut self) -> Result<()> {
        let Some(gathered) = self.gathered.take() else { return Ok(()) };
        let whole = gathered.bytes / BLOCK_BYTES * BLOCK_BYTES;
        put(&mut self.file, [&gathered.memory[..whole], &[]])?;
        set_direct(&self.file, false)?;
        self.file.write_all(&gathered.memory[whole..gathered.bytes])
    }

    /// Goes past the cache from here on, if that is of use; the file has whole blocks.
    fn go_past_cache(&mut self) {
        if can_go_past_cache(&self.file)
            && let Ok(gathered) = Gathered::new()
            && set_direct(&self.file, true).is_ok()
        {
            self.gathered = Some(gathered);
        }
    }
}

impl Write for SequentialWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if let Some(gathered) = &mut self.gathered {
            let whole = bytes.len() / PLACE_BYTES * PLACE_BYTES;
            let lies_well = whole >= TAKEN_AS_THEY_LIE_BYTES
                && bytes.as_ptr().align_offset(PLACE_BYTES) == 0
                && gathered.bytes.is_multiple_of(PLACE_BYTES);
            let taken = if lies_well { whole } else { gathered.add(bytes) };
            if lies_well || gathered.is_full() {
                let before = std::mem::take(&mut gathered.bytes);
                let as_they_lie = if lies_well { &bytes[..whole] } else { &[] };
                if !put(&mut self.file, [&gathered.memory[..before], as_they_lie])? {
                    self.gathered = None;
                }
            }
            return Ok(taken);
        }
        if self.cached_left == 0 {
            return self.file.write(bytes);
        }
        let written = self.file.write(&bytes[..bytes.len().min(self.cached_left)])?;
        self.cached_left -= written;
        if self.cached_left == 0 {
            self.go_past_cache();
        }
        Ok(written)
    }

    /// Does nothing: what is gathered is not a whole block.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Gathered {
    fn new() -> Result<Self> {
        Ok(Self { memory: Pages::small(FEW_GATHERED_BYTES)?, bytes: 0 })
    }

    /// Whether there is no room, not even if it is made.
    fn is_full(&mut self) -> bool {
        if self.bytes == FEW_GATHERED_BYTES
            && self.memory.len() == FEW_GATHERED_BYTES
            && let Ok(mut memory) = Pages::huge(GATHERED_BYTES)
        {
            memory[..self.bytes].copy_from_slice(&self.memory);
            self.memory = memory;
        }
        self.bytes == self.memory.len()
    }

    /// Takes some of the bytes, at least one; there is room.
    fn add(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.memory.len() - self.bytes).min(COPIED_BYTES);
        self.memory[self.bytes..self.bytes + taken].copy_from_slice(&bytes[..taken]);
        self.bytes += taken;
        taken
    }
}

/// Writes both parts, through the cache if the filesystem has thought better of it; returns whether it has not.
fn put(file: &mut File, parts: [&[u8]; 2]) -> Result<bool> {
    let (mut parts, mut direct) = (parts.map(IoSlice::new), true);
    let mut left = &mut parts[..];
    // Empty ones go.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::InvalidInput && direct => {
                set_direct(file, false)?;
                direct = false;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(direct)
}

/// Whether the file is on a filesystem whose direct writes are what they are called, and there are huge pages. Others copy in any case,
/// or have each write wait for a server.
#[cfg(target_os = "linux")]
fn can_go_past_cache(file: &File) -> bool {
    let filesystem = rustix::fs::fstatfs(file).map(|about| about.f_type);
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    filesystem.is_ok_and(|kind| [EXT4, XFS, OVERLAY].contains(&kind)) && huge.is_ok_and(|how| !how.contains("[never]"))
}

#[cfg(not(target_os = "linux"))]
fn can_go_past_cache(_file: &File) -> bool {
    false
}

/// Has writes go past the cache, or through it again.
#[cfg(target_os = "linux")]
fn set_direct(file: &File, direct: bool) -> Result<()> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_file: &File, _direct: bool) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::super::PageBuffer;
    use super::*;

    /// Bytes that differ from one block to the next.
    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect()
    }

    #[test]
    fn a_file_has_what_was_written_whichever_way_it_took() {
        let dir = tempfile::tempdir().unwrap();
        for cache in [PageCache::Through, PageCache::Past] {
            let edges = [0, 1, CACHED_BYTES - 1, CACHED_BYTES, CACHED_BYTES + 1, CACHED_BYTES + BLOCK_BYTES];
            let full = [FEW_GATHERED_BYTES, GATHERED_BYTES].map(|full| [full - 1, full, full + 1]);
            let behind = full.into_iter().flatten().chain([2 * GATHERED_BYTES + 5 * BLOCK_BYTES + 7]);
            for len in edges.into_iter().chain(behind.map(|bytes| CACHED_BYTES + bytes)) {
                let (path, content) = (dir.path().join("file"), bytes(len));
                let mut file = SequentialWriter::create(&path, cache).unwrap();
                for piece in content.chunks(1_000_003) {
                    file.write_all(piece).unwrap();
                }
                file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == content, "{cache:?}, {len}");
            }
        }
    }

    /// Whether files below `dir` are written directly, and not from an odd address; some filesystems and devices take that too.
    #[cfg(target_os = "linux")]
    fn is_strict(dir: &Path) -> bool {
        let mut file = File::create(dir.join("probe")).unwrap();
        let mut from_odd = Pages::huge(BLOCK_BYTES).unwrap();
        from_odd.start = 1;
        let refused = |error: std::io::Error| error.kind() == ErrorKind::InvalidInput;
        can_go_past_cache(&file)
            && set_direct(&file, true).is_ok()
            && file.write(&from_odd[..BLOCK_BYTES]).is_err_and(refused)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_that_refuses_gets_the_rest_through_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let strict = is_strict(dir.path());
        let content = bytes(CACHED_BYTES + 3 * GATHERED_BYTES + 5 * BLOCK_BYTES + 5);
        // At once, behind a part that it took, and with the last part alone.
        for parts in [0, 1, 3] {
            let path = dir.path().join("file");
            let mut file = SequentialWriter::create(&path, PageCache::Past).unwrap();
            let (before, after) = content.split_at(CACHED_BYTES + parts * GATHERED_BYTES);
            file.write_all(before).unwrap();
            if let Some(gathered) = &mut file.gathered {
                assert_eq!(gathered.bytes, 0);
                gathered.memory = Pages::huge(GATHERED_BYTES).unwrap();
                gathered.memory.start = 1;
            }
            file.write_all(after).unwrap();
            let ends_gathered = file.gathered.is_some();
            file.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == content, "{parts}");
            if strict {
                assert_eq!(ends_gathered, parts == 3, "{parts}: the odd address was taken");
            }
        }
    }

    #[test]
    fn bytes_that_lie_well_are_not_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (mut buffer, content) = (PageBuffer::default(), bytes(2 * GATHERED_BYTES + 5));
        buffer.resize(content.len());
        buffer.copy_from_slice(&content);
        let mut file = SequentialWriter::create(&path, PageCache::Past).unwrap();
        let before = bytes(CACHED_BYTES + PLACE_BYTES);
        file.write_all(&before).unwrap();
        let taken = file.write(&buffer).unwrap();
        if let Some(gathered) = &file.gathered {
            assert_eq!((taken, gathered.bytes), (2 * GATHERED_BYTES, 0));
        }
        // The place behind is no good one any more.
        file.write_all(&buffer[taken..]).unwrap();
        if let Some(gathered) = &file.gathered {
            assert_eq!((gathered.bytes, gathered.memory.len()), (5, FEW_GATHERED_BYTES));
        }
        file.write_all(&buffer).unwrap();
        if let Some(gathered) = &file.gathered {
            assert_eq!((gathered.bytes, gathered.memory.len()), (10, GATHERED_BYTES));
        }
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == [before, content.clone(), content].concat());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_refused_in_the_second_part_goes_through_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let strict = is_strict(dir.path());
        let path = dir.path().join("file");
        let (mut file, content) = (File::create(&path).unwrap(), bytes(4 * BLOCK_BYTES));
        let (mut first, mut second) = (Pages::huge(1).unwrap(), Pages::huge(1).unwrap());
        second.start = 1;
        first[..BLOCK_BYTES].copy_from_slice(&content[..BLOCK_BYTES]);
        second[..3 * BLOCK_BYTES].copy_from_slice(&content[BLOCK_BYTES..]);
        if strict {
            set_direct(&file, true).unwrap();
        }
        let direct = put(&mut file, [&first[..BLOCK_BYTES], &second[..3 * BLOCK_BYTES]]).unwrap();
        assert!(!(strict && direct), "the odd address was taken");
        assert!(std::fs::read(&path).unwrap() == content);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_large_file_on_a_disk_goes_past_the_cache_until_its_end() {
        use rustix::fs::{OFlags, fcntl_getfl};

        let dir = tempfile::tempdir().unwrap();
        let mut file = SequentialWriter::create(&dir.path().join("file"), PageCache::Past).unwrap();
        let (handle, strict) = (file.handle().unwrap(), is_strict(dir.path()));
        let direct = || fcntl_getfl(&handle).unwrap().contains(OFlags::DIRECT);
        file.write_all(&bytes(CACHED_BYTES - 1)).unwrap();
        assert!(!direct());
        file.write_all(&bytes(2)).unwrap();
        assert!(direct() || !strict);
        file.finish().unwrap();
        assert!(!direct());
    }
}
