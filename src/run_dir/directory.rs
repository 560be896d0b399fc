//! Durable storage of a run: complete files under names, on a local disk or on S3.
//!
//! A name holds a complete file or nothing. Locally a file is synced and then renamed; on S3 an upload is complete or
//! absent. Nothing is appended or renamed afterwards, so both give the same guarantees. One process at a time may
//! hold a [lock](Directory::lock). Files pass through a staging directory on local disk on their way to S3 and back; it is
//! emptied when the first lock is acquired.
//!
//! Calls block and are allowed on any thread; they are few compared with the work between them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::local::FileLock;
use super::s3::{HeldLease, Remote};
use super::{Holder, LocalDirectory, Log};
use crate::objects::{Store, StoreError};

/// Root of a tree of durable files. Names are relative and use `/`.
#[derive(Debug, Clone)]
pub struct Directory {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Local(LocalDirectory),
    Remote(Arc<Remote>),
}

/// Exclusive lock; dropping it, or the end of the process, releases it.
#[derive(Debug)]
pub struct Lock {
    kind: LockKind,
}

#[derive(Debug)]
enum LockKind {
    File(FileLock),
    Lease { _lease: HeldLease },
}

/// File or folder of a [`Directory`] on local disk; a downloaded one is removed when this is dropped.
#[derive(Debug)]
pub struct LocalCopy {
    path: PathBuf,
    fetched: bool,
}

impl Deref for LocalCopy {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for LocalCopy {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalCopy {
    fn drop(&mut self) {
        if self.fetched {
            // What remains is removed with the staging directory.
            std::fs::remove_file(&self.path).or_else(|_| std::fs::remove_dir_all(&self.path)).ok();
        }
    }
}

impl Directory {
    /// Opens a local directory, creating it and its parents if absent, or a prefix on S3.
    ///
    /// `staging` holds files on their way to and from S3; a local directory does not use it.
    ///
    /// # Errors
    /// When the system refuses, or the URL belongs to a store that cannot be written to.
    pub fn open(store: &Store, name: &str, staging: &Path) -> Result<Self, StoreError> {
        if Store::is_remote(name) {
            return Ok(Self { backend: Backend::Remote(Arc::new(Remote::open(store, name, staging, false)?)) });
        }
        let backend = Backend::Local(LocalDirectory::create(name.strip_prefix("file://").unwrap_or(name))?);
        Ok(Self { backend })
    }

    /// Opens a directory for reading. It may not exist; it is then empty, and nothing is created.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn read_only(store: &Store, name: &str) -> Result<Self, StoreError> {
        if Store::is_remote(name) {
            let staging = std::env::temp_dir().join(format!("wikicap-{}", uuid::Uuid::new_v4()));
            return Ok(Self { backend: Backend::Remote(Arc::new(Remote::open(store, name, &staging, true)?)) });
        }
        Ok(Self { backend: Backend::Local(LocalDirectory::read_only(name.strip_prefix("file://").unwrap_or(name))) })
    }

    /// Returns whether the directory is on S3.
    pub fn is_remote(&self) -> bool {
        matches!(self.backend, Backend::Remote(_))
    }

    /// Returns the path of a local directory.
    pub fn local_root(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Local(local) => Some(local.root()),
            Backend::Remote(_) => None,
        }
    }

    /// Returns the path or URL of a name, for messages; an empty name stands for the directory itself.
    pub fn display(&self, name: &str) -> String {
        match &self.backend {
            Backend::Local(local) if name.is_empty() => local.root().display().to_string(),
            Backend::Local(local) => local.path(name).display().to_string(),
            Backend::Remote(remote) => remote.display(name),
        }
    }

    /// Takes the lock `name` for this process. `work` says what for; it is empty for a whole run. On S3 this takes up to
    /// 15 s if the lease of a dead process has to expire. From then on, this process writes only while it holds all of its
    /// locks.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that holds the lock.
    pub fn lock(&self, name: &str, work: &str) -> Result<Lock, StoreError> {
        let kind = match &self.backend {
            Backend::Local(local) => LockKind::File(local.lock(name, work)?),
            Backend::Remote(remote) => LockKind::Lease { _lease: remote.lock(name, work)? },
        };
        Ok(Lock { kind })
    }

    /// Gives the directory up before anything was written to it. A local one is left as it was found; on S3 only the lease
    /// ends.
    pub fn abandon(&self, lock: Option<Lock>) {
        if let Backend::Local(local) = &self.backend {
            let file = lock.and_then(|lock| match lock.kind {
                LockKind::File(file) => Some(file),
                LockKind::Lease { .. } => None,
            });
            local.abandon(file);
        }
    }

    /// Logs a warning if the directory is on a network file system, where locks of other machines may go unnoticed.
    pub fn warn_of_network_disk(&self) {
        if let Backend::Local(local) = &self.backend
            && let Some(kind) = local.network_file_system()
        {
            tracing::warn!(
                "`{}` is on {kind}, where a lock of another machine may go unnoticed: two processes may then write the same \
                 part. A run directory on S3 keeps them apart; here, make sure that each part runs only once",
                local.root().display()
            );
        }
    }

    /// Returns the processes that hold locks, in the order of `names`; `None` for each lock that is free. On S3, a lease
    /// may be that of a dead process, unless `watch` asks to wait for up to 15 s whether it is renewed.
    ///
    /// # Errors
    /// When a lock cannot be read.
    pub fn holders(&self, names: &[String], watch: bool) -> Result<Vec<Option<Holder>>, StoreError> {
        match &self.backend {
            Backend::Local(local) => names.iter().map(|name| local.holder(name)).collect(),
            Backend::Remote(remote) => remote.holders(names, watch),
        }
    }

    /// Returns the temporary path at which a writer fills the file or folder `name`, and creates its parent.
    ///
    /// # Errors
    /// When the parent cannot be created.
    pub fn temporary(&self, name: &str) -> Result<PathBuf, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.temporary(name),
            Backend::Remote(remote) => remote.staging().temporary(name),
        }
    }

    /// Publishes the file filled at [`Self::temporary`] under its name, durable and complete; replaces an older one.
    ///
    /// # Errors
    /// When syncing, renaming or uploading fails; the name then still holds its earlier content.
    pub fn publish(&self, name: &str) -> Result<u64, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.publish(name),
            Backend::Remote(remote) => remote.publish(name),
        }
    }

    /// Publishes the folder filled at [`Self::temporary`] under its name; replaces an older one.
    ///
    /// Locally the folder appears at once. On S3 its files appear one by one; [`Self::list_recursive`] shows whether all of
    /// them exist.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn publish_folder(&self, name: &str) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.publish_folder(name),
            Backend::Remote(remote) => remote.publish_folder(name),
        }
    }

    /// Writes a small file in one step, replacing an older one.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.write(name, content),
            Backend::Remote(remote) => remote.write(name, content),
        }
    }

    /// Writes a small file in one step, replacing an older one. It may be lost with the machine.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn write_volatile(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.write_volatile(name, content),
            Backend::Remote(remote) => remote.write_volatile(name, content),
        }
    }

    /// Opens a log of JSON lines: `STEM.jsonl` on local disk, numbered parts on S3.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open_log(&self, stem: &str) -> Result<Log, StoreError> {
        match &self.backend {
            Backend::Local(local) => Log::local(local, stem),
            Backend::Remote(_) => Ok(Log::remote(self.clone(), stem)),
        }
    }

    /// Writes a small durable file if its name is free; returns whether it was.
    ///
    /// On S3 a file with the same content counts as written by this call, whose first answer may have been lost.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.create_new(name, content),
            Backend::Remote(remote) => remote.create_new(name, content),
        }
    }

    /// Reads a small file; `None` if it is absent.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.read(name),
            Backend::Remote(remote) => remote.read(name),
        }
    }

    /// Reads several small files, in the order of `names`; absent ones are `None`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match &self.backend {
            Backend::Local(local) => names.iter().map(|name| local.read(name)).collect(),
            Backend::Remote(remote) => remote.read_all(names),
        }
    }

    /// Returns a file on local disk, downloading it if necessary.
    ///
    /// # Errors
    /// When it is absent or cannot be read.
    pub fn fetch(&self, name: &str) -> Result<LocalCopy, StoreError> {
        match &self.backend {
            Backend::Local(local) => Ok(LocalCopy { path: local.path(name), fetched: false }),
            Backend::Remote(_) => {
                let mut copies = self.fetch_all(std::slice::from_ref(&name.to_owned()))?;
                copies.pop().ok_or_else(|| StoreError::NotFound { url: self.display(name), answer: String::new() })
            }
        }
    }

    /// Returns several files on local disk, in the order of `names`.
    ///
    /// # Errors
    /// When one is absent or cannot be read.
    pub fn fetch_all(&self, names: &[String]) -> Result<Vec<LocalCopy>, StoreError> {
        match &self.backend {
            Backend::Local(_) => names.iter().map(|name| self.fetch(name)).collect(),
            Backend::Remote(remote) => {
                Ok(remote.fetch(names)?.into_iter().map(|path| LocalCopy { path, fetched: true }).collect())
            }
        }
    }

    /// Returns a folder on local disk with the given files, downloading them if necessary.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_folder(&self, name: &str, files: &[&str]) -> Result<LocalCopy, StoreError> {
        match &self.backend {
            Backend::Local(local) => Ok(LocalCopy { path: local.path(name), fetched: false }),
            Backend::Remote(remote) => Ok(LocalCopy { path: remote.fetch_folder(name, files)?, fetched: true }),
        }
    }

    /// Lists the complete files and the folders in the folder `name`, sorted; nothing if it is absent.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.list(name),
            Backend::Remote(remote) => remote.list(name),
        }
    }

    /// Lists the complete files below the folder `name` with their sizes in bytes, by their names relative to this
    /// directory; nothing if it is absent.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn list_recursive(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        match &self.backend {
            Backend::Local(local) => local.list_recursive(name),
            Backend::Remote(remote) => remote.list_recursive(name),
        }
    }

    /// Removes a file, or a folder with its content; an absent one is not an error.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.remove(name),
            Backend::Remote(remote) => remote.remove(name),
        }
    }

    /// Removes leftovers of a killed writer from the folder `name`: temporary files, and files that `keep` rejects.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn sweep(&self, name: &str, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.sweep(name, keep),
            Backend::Remote(remote) => remote.sweep(name, keep),
        }
    }

    /// Sweeps the files of the folder `name` whose names `is_own` accepts; other processes may write the others.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn sweep_own(
        &self,
        name: &str,
        is_own: impl Fn(&str) -> bool,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Local(local) => local.sweep_own(name, is_own, keep),
            // A remote directory has no temporary files.
            Backend::Remote(remote) => remote.sweep(name, |file| !is_own(file) || keep(file)),
        }
    }
}

impl From<LocalDirectory> for Directory {
    fn from(local: LocalDirectory) -> Self {
        Self { backend: Backend::Local(local) }
    }
}
