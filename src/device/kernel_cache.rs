//! Folder of compiled kernels and tuning results, on disk between runs.
//!
//! `CubeCL` appends to one file for each kind of entry and guards it by a lock file. A killed process leaves that lock
//! behind, perhaps with half an entry, and a process that waits too long steals it, so two processes must not share the
//! files. Each process therefore takes a slot for itself: the first numbered folder whose `in-use` file it can lock. The
//! lock belongs to the open file, ends with the process, and holds across containers that mount the same volume. A new
//! slot starts with the kernels of the fullest other one.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Upper bound on the processes that share a folder. Further ones keep no kernels.
const MAX_SLOTS: usize = 64;

/// Name of the file that marks a slot as taken.
const MARK: &str = "in-use";

/// A folder of kernels that no other process uses, for as long as the value lives.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) folder: PathBuf,
    _mark: File,
}

impl Slot {
    /// Takes the first free slot below `folder`, and prepares it.
    ///
    /// # Errors
    /// When the folder cannot be written to or locked, or all slots are taken.
    pub(super) fn acquire(folder: &Path) -> io::Result<Self> {
        for number in 0..MAX_SLOTS {
            let slot = folder.join(number.to_string());
            std::fs::create_dir_all(&slot)?;
            let mark = File::options().create(true).truncate(false).write(true).open(slot.join(MARK))?;
            match mark.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if size(&slot) == 0 {
                copy_fullest(folder, &slot);
            }
            repair(&slot)?;
            return Ok(Self { folder: slot, _mark: mark });
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{MAX_SLOTS} processes use it")))
    }
}

/// Returns the bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// Copies the files of the fullest slot. Its owner may be appending to them; [`repair`] removes an entry that is cut off. A
/// kernel that is not copied is compiled again.
fn copy_fullest(folder: &Path, slot: &Path) {
    let slots = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    if let Some(fullest) = slots.filter(|other| other != slot).max_by_key(|other| size(other)) {
        copy_files(&fullest, slot).ok();
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy_files(&entry.path(), &target)?;
        } else if entry.file_name() != MARK && !is_lock(&entry.path()) {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Removes what a killed process left: lock files, each of which would delay this one by half a minute, and entries that are
/// cut off. `CubeCL` would append behind such an entry and then read it together with the beginning of the next one.
fn repair(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            repair(&path)?;
        } else if is_lock(&path) {
            std::fs::remove_file(&path)?;
        } else if let Some(whole) = path.extension().and_then(|extension| match extension.to_str()? {
            "cbor" => Some(whole_items as fn(&[u8]) -> usize),
            "log" => Some(whole_lines as fn(&[u8]) -> usize),
            _ => None,
        }) {
            let content = std::fs::read(&path)?;
            let length = whole(&content);
            if length < content.len() {
                File::options().write(true).open(&path)?.set_len(length as u64)?;
            }
        }
    }
    Ok(())
}

/// Returns the length of the complete lines.
fn whole_lines(content: &[u8]) -> usize {
    content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// Returns the length of the complete CBOR items (RFC 8949). Items of indefinite length, which `CubeCL` does not write, count
/// as incomplete.
fn whole_items(content: &[u8]) -> usize {
    let mut end = 0;
    while let Some(next) = skip_item(content, end) {
        end = next;
    }
    end
}

/// Returns the position behind the item at `at`; `None` if it is not complete.
fn skip_item(content: &[u8], mut at: usize) -> Option<usize> {
    // Items that are still to come, those inside of others included.
    let mut missing: u64 = 1;
    while missing > 0 {
        let head = *content.get(at)?;
        let width = match head & 31 {
            0..24 => 0,
            short @ 24..28 => 1 << (short - 24),
            _ => return None,
        };
        let argument = content.get(at + 1..at + 1 + width)?;
        let value = match width {
            0 => u64::from(head & 31),
            _ => argument.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        at += 1 + width;
        missing -= 1;
        match head >> 5 {
            // Byte and text strings.
            2 | 3 => at = at.checked_add(usize::try_from(value).ok()?).filter(|end| *end <= content.len())?,
            // Arrays, maps and tags.
            4 => missing = missing.checked_add(value)?,
            5 => missing = missing.checked_add(value.checked_mul(2)?)?,
            6 => missing += 1,
            _ => {}
        }
    }
    Some(at)
}

fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_have_slots_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = Slot::acquire(dir.path()).unwrap();
        std::fs::create_dir(first.folder.join("cuda")).unwrap();
        std::fs::write(first.folder.join("cuda/ptx.json.log"), "kernels\nhalf").unwrap();
        std::fs::write(first.folder.join("cuda/ptx.json.log.lock"), "").unwrap();
        let second = Slot::acquire(dir.path()).unwrap();
        assert_ne!(first.folder, second.folder);
        // The second starts with the kernels of the first, but not with its locks.
        assert_eq!(std::fs::read(second.folder.join("cuda/ptx.json.log")).unwrap(), b"kernels\n");
        assert!(!second.folder.join("cuda/ptx.json.log.lock").exists());
        assert!(first.folder.join("cuda/ptx.json.log.lock").exists());
    }

    #[test]
    fn slot_of_an_ended_process_is_taken_again_without_its_locks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Slot::acquire(dir.path()).unwrap().folder;
        for name in ["ptx.json.log", "ptx.json.log.lock"] {
            std::fs::write(folder.join(name), "x").unwrap();
        }
        let again = Slot::acquire(dir.path()).unwrap();
        assert_eq!(again.folder, folder);
        assert!(folder.join("ptx.json.log").exists() && !folder.join("ptx.json.log.lock").exists());
    }

    #[test]
    fn entry_that_is_cut_off_is_removed() {
        // {"key": 1, "value": [300, "ab", h'000102', null]}, twice.
        let item = b"\xa2\x63key\x01\x65value\x84\x19\x01\x2c\x62ab\x43\x00\x01\x02\xf6";
        let both = [item.as_slice(), item.as_slice()].concat();
        for length in 0..=both.len() {
            assert_eq!(whole_items(&both[..length]), length / item.len() * item.len(), "{length} bytes");
        }
        // A length beyond the memory, and an item of indefinite length.
        assert_eq!(whole_items(b"\x01\x5b\xff\xff\xff\xff\xff\xff\xff\xff"), 1);
        assert_eq!(whole_items(b"\x01\x9f\x01\xff"), 1);
        assert_eq!((whole_lines(b"a\nb"), whole_lines(b"ab"), whole_lines(b"a\n")), (2, 0, 2));
    }

    #[test]
    fn unwritable_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(Slot::acquire(&dir.path().join("file")).is_err());
    }
}
