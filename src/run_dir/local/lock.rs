//! Locks of a local directory, and what a process that gives the directory up restores.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::LocalDirectory;
use crate::objects::StoreError;
use crate::run_dir::{Holder, Process};

/// Attempts at a lock beyond the first one.
const LOCK_ATTEMPTS: u32 = 5;
/// Time between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Network file systems by the magic numbers of `statfs(2)`.
#[cfg(target_os = "linux")]
const NETWORK_FILE_SYSTEMS: [(u64, &str); 9] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0bd0_0bd0, "Lustre"),
    (0x00c3_6400, "Ceph"),
    (0x4750_4653, "GPFS"),
    (0x0102_1997, "9P"),
    (0x5346_414f, "AFS"),
    (0x6573_5546, "FUSE"),
];

/// Kernel lock on a local directory; it ends with the process.
#[derive(Debug)]
pub(in crate::run_dir) struct FileLock {
    file: File,
    /// Name of the lock file.
    name: String,
    /// Content of the lock file before this process; `None` if this process created it.
    earlier: Option<Vec<u8>>,
}

impl LocalDirectory {
    /// Gives the directory up before anything was written: restores the lock file and removes the folders that
    /// [`Self::create`] created, unless they hold something by now. What cannot be restored stays.
    pub(in crate::run_dir) fn abandon(&self, lock: Option<FileLock>) {
        if let Some(FileLock { file, name, earlier }) = lock {
            let path = self.path(&name);
            match earlier {
                // Removed while it is locked, so that no other process can hold it.
                None => fs::remove_file(&path).ok(),
                Some(earlier) => fs::write(&path, earlier).ok(),
            };
            drop(file);
            // Folders of a part's lock, which stay if they hold anything else.
            let folders = path.ancestors().skip(1).take_while(|folder| *folder != self.root);
            folders.for_each(|folder| _ = fs::remove_dir(folder));
        }
        for folder in self.created.iter().rev() {
            fs::remove_dir(folder).ok();
        }
    }

    /// Takes the lock `name` for this process. `work` says what for; it is empty for a whole run.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that holds the lock.
    pub(in crate::run_dir) fn lock(&self, name: &str, work: &str) -> Result<FileLock, StoreError> {
        let path = self.path(name);
        let failed = |error| StoreError::io(&path, "locked", error);
        loop {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(failed)?;
            }
            let existed = path.exists();
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
            let lock = self.lock_file(file, name, work, existed)?;
            // A process that gave the directory up may have removed the file between the two calls.
            let is_same = fs::metadata(&path).is_ok_and(|named| {
                lock.file.metadata().is_ok_and(|locked| (named.dev(), named.ino()) == (locked.dev(), locked.ino()))
            });
            if is_same {
                return Ok(lock);
            }
        }
    }

    fn lock_file(&self, mut file: File, name: &str, work: &str, existed: bool) -> Result<FileLock, StoreError> {
        let failed = |error| StoreError::io(self.path(name), "locked", error);
        let mut attempts = 0;
        while let Err(error) = file.try_lock() {
            match error {
                // Another process may only be looking whether the lock is held.
                fs::TryLockError::WouldBlock if attempts < LOCK_ATTEMPTS => std::thread::sleep(LOCK_PAUSE),
                fs::TryLockError::WouldBlock => {
                    let path = self.root.display().to_string();
                    return Err(StoreError::InUse { path, holder: read_holder(&mut file).to_string() });
                }
                fs::TryLockError::Error(error) => return Err(failed(error)),
            }
            attempts += 1;
        }
        let mut earlier = Vec::new();
        file.read_to_end(&mut earlier).map_err(failed)?;
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{} since {now}\n{work}", Process::current()).map_err(failed)?;
        Ok(FileLock { file, name: name.to_owned(), earlier: existed.then_some(earlier) })
    }

    /// Returns the kind of network file system that the directory is on; `None` on a local disk.
    pub(in crate::run_dir) fn network_file_system(&self) -> Option<&'static str> {
        #[cfg(target_os = "linux")]
        {
            let kind = rustix::fs::statfs(&self.root).ok()?.f_type as u64 & 0xffff_ffff;
            NETWORK_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Returns the process that holds the lock `name`; `None` if it is free.
    ///
    /// # Errors
    /// When the system refuses.
    pub(in crate::run_dir) fn holder(&self, name: &str) -> Result<Option<Holder>, StoreError> {
        let path = self.path(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io(&path, "read", error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(fs::TryLockError::WouldBlock) => Ok(Some(read_holder(&mut file))),
            Err(fs::TryLockError::Error(error)) => Err(StoreError::io(&path, "locked", error)),
        }
    }
}

/// Reads who holds a lock. A lock may be held even if that cannot be read.
fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    file.read_to_string(&mut text).ok();
    let mut lines = text.lines().map(str::trim);
    let process = lines.next().filter(|line| !line.is_empty()).unwrap_or("another process").to_owned();
    Holder { process, work: lines.next().unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_directory_is_as_it_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let new = LocalDirectory::create(dir.path().join("a/b")).unwrap();
        new.abandon(Some(new.lock("lock", "").unwrap()));
        assert!(!dir.path().join("a").exists());
        let part = LocalDirectory::create(dir.path().join("a")).unwrap();
        part.abandon(Some(part.lock("parts/0-of-2/lock", "part 0/2").unwrap()));
        assert!(!dir.path().join("a").exists());
        fs::create_dir(dir.path().join("c")).unwrap();
        let found = LocalDirectory::create(dir.path().join("c")).unwrap();
        drop(found.lock("lock", "").unwrap());
        let earlier = fs::read(found.path("lock")).unwrap();
        let lock = found.lock("lock", "").unwrap();
        fs::write(found.path("kept"), "x").unwrap();
        found.abandon(Some(lock));
        assert_eq!(
            (fs::read(found.path("lock")).unwrap(), fs::read(found.path("kept")).unwrap()),
            (earlier, b"x".to_vec())
        );
    }

    #[test]
    fn locked_directory_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path()).unwrap();
        let lock = directory.lock("lock", "part 1/3").unwrap();
        let error = directory.lock("lock", "").unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())) && error.contains("(part 1/3)"), "{error}");
        assert_eq!(directory.holder("lock").unwrap().unwrap().work, "part 1/3");
        drop(lock);
        assert!(directory.holder("lock").unwrap().is_none() && directory.holder("nothing").unwrap().is_none());
        directory.lock("parts/1-of-3/lock", "").unwrap();
    }
}
