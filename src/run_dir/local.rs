//! Local directory in which a name holds a complete file or nothing at every instant.
//!
//! A file is first written under a temporary name, unique to the process, that ends in `.tmp`. It is synced and then
//! renamed or linked to its own name, and its directory is synced. Files that are not trusted after a reboot are not
//! synced. A crash leaves `.tmp` files at most, which [`LocalDirectory::sweep`] removes. Several processes may write
//! different names at once.

mod lock;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::failpoint;
use crate::objects::StoreError;

pub(super) use lock::FileLock;

/// Extension of files that are being written.
const TEMPORARY: &str = "tmp";
/// Root of a tree of durable files on a local disk. Names are relative and use `/`.
#[derive(Debug, Clone)]
pub struct LocalDirectory {
    root: PathBuf,
    /// Folders that [`Self::create`] has created, the outermost first.
    created: Vec<PathBuf>,
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

    /// Returns the path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
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
}
