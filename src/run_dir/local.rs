//! Local directory in which a name holds a complete file or nothing at every instant.
//!
//! A file is written under a name of this process that ends in `.tmp`, synced, and renamed or linked to its own name; then its directory is
//! synced. Files that only this boot of the machine uses are not synced. A crash leaves `.tmp` files at most, which
//! [`LocalDirectory::sweep`] removes. Several processes may write different names at once.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::{Holder, Process, failpoint};
use crate::objects::StoreError;

/// Extension of files that are being written.
const TEMPORARY: &str = "tmp";
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

/// Root of a tree of durable files on a local disk. Names are relative and use `/`.
#[derive(Debug, Clone)]
pub struct LocalDirectory {
    root: PathBuf,
    /// Folders that [`Self::create`] has created, the outermost first.
    created: Vec<PathBuf>,
}

/// Kernel lock on a local directory; it ends with the process.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
    /// Name of the lock file.
    name: String,
    /// Content of the lock file before this process; `None` if this process created it.
    earlier: Option<Vec<u8>>,
}

impl LocalDirectory {
    /// Opens a directory, creating it and its parents if absent.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let mut created: Vec<PathBuf> = root.ancestors().take_while(absent).map(Path::to_owned).collect();
        created.reverse();
        fs::create_dir_all(&root).map_err(|error| StoreError::io(&root, "created", error))?;
        Ok(Self { root, created })
    }

    /// Opens a directory for reading; it may not exist.
    pub fn read_only(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), created: Vec::new() }
    }

    /// Gives the directory up before anything was written: restores the lock file and removes the folders that
    /// [`Self::create`] created, unless they hold something by now. What cannot be restored stays.
    pub(super) fn abandon(&self, lock: Option<FileLock>) {
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

    /// Returns the path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes the lock `name` for this process. `work` says what for; it is empty for a whole run.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that holds the lock.
    pub(super) fn lock(&self, name: &str, work: &str) -> Result<FileLock, StoreError> {
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
    pub(super) fn network_file_system(&self) -> Option<&'static str> {
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
    pub(super) fn holder(&self, name: &str) -> Result<Option<Holder>, StoreError> {
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

    /// Returns the temporary path at which a writer fills the file `name`, and creates its directory.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn temporary(&self, name: &str) -> Result<PathBuf, StoreError> {
        if let Some(parent) = self.path(name).parent() {
            fs::create_dir_all(parent).map_err(|error| StoreError::io(parent, "created", error))?;
        }
        failpoint::point("fill", name);
        Ok(self.temporary_path(name))
    }

    /// Returns a path that no other process uses.
    fn temporary_path(&self, name: &str) -> PathBuf {
        let mut temporary = self.path(name).into_os_string();
        temporary.push(format!(".{}.{TEMPORARY}", process_tag()));
        temporary.into()
    }

    /// Publishes the folder filled at [`Self::temporary`], whose files are synced, under its name; replaces an older one.
    ///
    /// # Errors
    /// When the system refuses. A crash during a replacement may leave neither folder.
    pub fn publish_folder(&self, name: &str) -> Result<(), StoreError> {
        let (temporary, path) = (self.temporary_path(name), self.path(name));
        failpoint::point("filled", name);
        if path.exists() {
            // Moved away under a temporary name first, then removed.
            let aside = self.temporary_path(&format!("{name}.old"));
            let failed = |error| StoreError::io(&path, "replaced", error);
            fs::rename(&path, &aside).map_err(failed)?;
            fs::remove_dir_all(&aside).map_err(failed)?;
        }
        failpoint::point("rename", name);
        fs::rename(&temporary, &path).map_err(|error| StoreError::io(&path, "written", error))?;
        failpoint::point("renamed", name);
        sync_parent(&path)
    }

    /// Publishes the file filled at [`Self::temporary`] under its name, durable and complete; replaces an older one.
    ///
    /// # Errors
    /// When syncing or renaming fails; the name then still holds its earlier content.
    pub fn publish(&self, name: &str) -> Result<u64, StoreError> {
        failpoint::point("filled", name);
        let synced = File::open(self.temporary_path(name)).and_then(|file| file.sync_all());
        synced.map_err(|error| StoreError::io(self.path(name), "written", error))?;
        let bytes = self.rename(name)?;
        sync_parent(&self.path(name))?;
        Ok(bytes)
    }

    /// Publishes the file filled at [`Self::temporary`] under its name without a sync, replacing an older one.
    ///
    /// It is complete while the machine runs; for files that are removed before the system would write them to disk.
    ///
    /// # Errors
    /// When renaming fails; the name then still holds its earlier content.
    pub fn publish_unsynced(&self, name: &str) -> Result<u64, StoreError> {
        failpoint::point("filled", name);
        self.rename(name)
    }

    fn rename(&self, name: &str) -> Result<u64, StoreError> {
        let (temporary, path) = (self.temporary_path(name), self.path(name));
        let failed = |error| StoreError::io(&path, "written", error);
        let bytes = temporary.metadata().map_err(failed)?.len();
        failpoint::point("rename", name);
        fs::rename(&temporary, &path).map_err(failed)?;
        failpoint::point("renamed", name);
        Ok(bytes)
    }

    /// Writes a small file in one step, replacing an older one.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.fill(name, content)?;
        self.publish(name).map(|_| ())
    }

    /// Writes a small file in one step without a sync; it is complete while the machine runs.
    ///
    /// # Errors
    /// As [`Self::publish_unsynced`].
    pub fn write_unsynced(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.fill(name, content)?;
        self.publish_unsynced(name).map(|_| ())
    }

    /// Writes a small file in one step, replacing an older one. It may be lost with the machine.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_volatile(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let (temporary, path) = (self.temporary_path(name), self.path(name));
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        let posted = folder.and_then(|()| fs::write(&temporary, content)).and_then(|()| fs::rename(&temporary, &path));
        posted.map_err(|error| StoreError::io(&path, "written", error))
    }

    /// Writes a small durable file if its name is free; returns whether it was.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        let temporary = self.fill(name, content)?;
        let path = self.path(name);
        let failed = |error| StoreError::io(&path, "written", error);
        File::open(&temporary).and_then(|file| file.sync_all()).map_err(failed)?;
        failpoint::point("link", name);
        // Unlike a rename, a hard link fails if the name is taken.
        let created = match fs::hard_link(&temporary, &path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        failpoint::point("linked", name);
        fs::remove_file(&temporary).map_err(failed)?;
        sync_parent(&path)?;
        Ok(created)
    }

    fn fill(&self, name: &str, content: &[u8]) -> Result<PathBuf, StoreError> {
        let temporary = self.temporary(name)?;
        fs::write(&temporary, content).map_err(|error| StoreError::io(self.path(name), "written", error))?;
        Ok(temporary)
    }

    /// Reads a small file; `None` if it is absent.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io(path, "read", error)),
        }
    }

    /// Lists the complete files and the folders in the folder `name`, sorted; nothing if it is absent.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(name);
        let failed = |error| StoreError::io(&path, "listed", error);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if !is_temporary(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Lists the complete files below the folder `name` with their sizes in bytes, by their names relative to this
    /// directory; nothing if it is absent.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn list_recursive(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut found = BTreeMap::new();
        let mut folders = vec![name.to_owned()];
        while let Some(folder) = folders.pop() {
            let path = self.path(&folder);
            let failed = |error| StoreError::io(&path, "listed", error);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let own = entry.file_name().to_string_lossy().into_owned();
                if is_temporary(&own) {
                    continue;
                }
                let own = if folder.is_empty() { own } else { format!("{folder}/{own}") };
                let metadata = fs::metadata(entry.path()).map_err(failed)?;
                if metadata.is_dir() {
                    folders.push(own);
                } else {
                    found.insert(own, metadata.len());
                }
            }
        }
        Ok(found)
    }

    /// Removes a file, or a folder with its content; an absent one is not an error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        if !path.exists() {
            return Ok(());
        }
        failpoint::point("remove", name);
        let removed = if path.is_dir() && !is_temporary(name) {
            // Renamed first, so that a kill never leaves half a folder under its name.
            let aside = self.temporary_path(name);
            fs::remove_dir_all(&aside)
                .or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })
                .and_then(|()| fs::rename(&path, &aside))
                .and_then(|()| fs::remove_dir_all(&aside))
        } else if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        failpoint::point("removed", name);
        match removed {
            Ok(()) => sync_parent(&path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io(path, "removed", error)),
        }
    }

    /// Removes the directory itself with its content; an absent one is not an error.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(&self.root, "removed", error))
            }
            _ => Ok(()),
        }
    }

    /// Removes leftovers of a killed writer from the folder `name`: temporary files, and files that `keep` rejects.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn sweep(&self, name: &str, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        self.sweep_own(name, |_| true, keep)
    }

    /// Sweeps the files of the folder `name` whose names `is_own` accepts; other processes may write the others.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn sweep_own(
        &self,
        name: &str,
        is_own: impl Fn(&str) -> bool,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let path = self.path(name);
        let failed = |error| StoreError::io(&path, "swept", error);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if is_own(&file) && (is_temporary(&file) || !keep(&file)) {
                self.remove(&format!("{name}/{file}"))?;
            }
        }
        Ok(())
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

/// Returns a random tag of this process. It makes the names of temporary files unique.
fn process_tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| uuid::Uuid::new_v4().simple().to_string()[..12].to_owned())
}

fn is_temporary(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == TEMPORARY)
}

/// Syncs the directory of `path`, which makes a rename or link durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io(parent, "synced", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, LocalDirectory) {
        let dir = tempfile::tempdir().unwrap();
        let directory = LocalDirectory::create(dir.path().join("run")).unwrap();
        (dir, directory)
    }

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
    fn name_is_created_once() {
        let (_guard, directory) = temporary();
        assert!(directory.create_new("journal/a.json", b"first").unwrap());
        assert!(!directory.create_new("journal/a.json", b"second").unwrap());
        assert_eq!(directory.read("journal/a.json").unwrap().unwrap(), b"first");
        assert_eq!(directory.list("journal").unwrap(), ["a.json"]);
    }

    #[test]
    fn leftovers_are_hidden_and_swept() {
        let (_guard, directory) = temporary();
        directory.write("chunks/a", b"whole").unwrap();
        directory.write("chunks/b", b"without entry").unwrap();
        fs::write(directory.temporary("chunks/c").unwrap(), b"half").unwrap();
        assert_eq!(directory.list("chunks").unwrap(), ["a", "b"]);
        directory.sweep("chunks", |name| name == "a").unwrap();
        assert_eq!(fs::read_dir(directory.path("chunks")).unwrap().count(), 1);
    }

    #[test]
    fn locked_directory_names_its_holder() {
        let (_guard, directory) = temporary();
        let lock = directory.lock("lock", "part 1/3").unwrap();
        let error = directory.lock("lock", "").unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())) && error.contains("(part 1/3)"), "{error}");
        assert_eq!(directory.holder("lock").unwrap().unwrap().work, "part 1/3");
        drop(lock);
        assert!(directory.holder("lock").unwrap().is_none() && directory.holder("nothing").unwrap().is_none());
        directory.lock("parts/1-of-3/lock", "").unwrap();
    }
}
