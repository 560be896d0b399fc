//! Where a run keeps what is durable: a tree of complete files under names, on a disk of this machine or on S3.
//!
//! A name either holds a complete file or nothing. Locally that is a rename after a sync; on S3 an upload is complete
//! or absent by itself. Nothing is appended to and nothing is renamed, so both keep the same promises. One process at a time may
//! [claim](Directory::lock) a directory. Files pass through local disk on their way to S3 and back, in a staging
//! directory that is emptied once the claim is held and holds what is on its way alone.
//!
//! The calls block, and may be made from any thread: they are few beside the work between them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::local::FileLock;
use super::s3::{Claimed, Remote};
use super::{LocalDirectory, Log};
use crate::objects::{Store, StoreError};

/// The root of a tree of durable files. Names are relative and use `/`.
#[derive(Debug, Clone)]
pub struct Directory {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Local(LocalDirectory),
    Remote(Arc<Remote>),
}

/// Proof that this process alone works on a directory; dropping it, or dying, lets the next one in.
#[derive(Debug)]
pub struct Lock {
    _claim: Claim,
}

#[derive(Debug)]
enum Claim {
    File { _lock: FileLock },
    Lease { _lease: Claimed },
}

/// A file or folder of a [`Directory`] on local disk; one that was fetched goes when this is dropped.
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
            // What cannot be removed now goes with the staging directory.
            std::fs::remove_file(&self.path).or_else(|_| std::fs::remove_dir_all(&self.path)).ok();
        }
    }
}

impl Directory {
    /// Opens a local directory, creating it and its parents where absent, or a prefix on S3.
    ///
    /// `staging` is where files on their way to and from S3 are kept; a local directory does not use it.
    ///
    /// # Errors
    /// When the system refuses, or the URL is of a store that cannot be written to.
    pub fn open(store: &Store, name: &str, staging: &Path) -> Result<Self, StoreError> {
        if Store::is_remote(name) {
            return Ok(Self { place: Place::Remote(Arc::new(Remote::open(store, name, staging, false)?)) });
        }
        let place = Place::Local(LocalDirectory::create(name.strip_prefix("file://").unwrap_or(name))?);
        Ok(Self { place })
    }

    /// A directory to look at, which may not exist: nothing is found in it then, and nothing is created.
    ///
    /// # Errors
    /// When the URL makes no sense.
    pub fn at(store: &Store, name: &str) -> Result<Self, StoreError> {
        if Store::is_remote(name) {
            let staging = std::env::temp_dir().join(format!("wikicap-{}", uuid::Uuid::new_v4()));
            return Ok(Self { place: Place::Remote(Arc::new(Remote::open(store, name, &staging, true)?)) });
        }
        Ok(Self { place: Place::Local(LocalDirectory::at(name.strip_prefix("file://").unwrap_or(name))) })
    }

    /// Whether it is on S3.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote(_))
    }

    /// Where it is on this machine, if it is.
    pub fn local_root(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(local) => Some(local.root()),
            Place::Remote(_) => None,
        }
    }

    /// A name in it as a path or URL, for people; empty: the directory itself.
    pub fn display(&self, name: &str) -> String {
        match &self.place {
            Place::Local(local) if name.is_empty() => local.root().display().to_string(),
            Place::Local(local) => local.path(name).display().to_string(),
            Place::Remote(remote) => remote.display(name),
        }
    }

    /// Claims the directory for this process. On S3 that takes as long as an older claim may still be alive, some 15 s at most.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the process that has it. A dead holder's claim is void.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let claim = match &self.place {
            Place::Local(local) => Claim::File { _lock: local.lock()? },
            Place::Remote(remote) => Claim::Lease { _lease: remote.lock()? },
        };
        Ok(Lock { _claim: claim })
    }

    /// The temporary path under which a writer fills the file or folder `name`; its parent exists afterwards.
    ///
    /// # Errors
    /// When the parent cannot be created.
    pub fn temporary(&self, name: &str) -> Result<PathBuf, StoreError> {
        match &self.place {
            Place::Local(local) => local.temporary(name),
            Place::Remote(remote) => remote.staging().temporary(name),
        }
    }

    /// Makes the file filled under [`Self::temporary`] appear under its name, durable and complete, replacing an older one.
    ///
    /// # Errors
    /// When syncing, renaming or uploading fails; the name then holds what it held before.
    pub fn publish(&self, name: &str) -> Result<u64, StoreError> {
        match &self.place {
            Place::Local(local) => local.publish(name),
            Place::Remote(remote) => remote.publish(name),
        }
    }

    /// Makes the folder filled under [`Self::temporary`] appear under its name, replacing an older one.
    ///
    /// Locally the folder is whole or absent. On S3 its files appear one by one; a reader looks with [`Self::tree`] whether all
    /// are there.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn publish_folder(&self, name: &str) -> Result<(), StoreError> {
        match &self.place {
            Place::Local(local) => local.publish_folder(name),
            Place::Remote(remote) => remote.publish_folder(name),
        }
    }

    /// Writes a small file in one step, replacing an older one.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        match &self.place {
            Place::Local(local) => local.write(name, content),
            Place::Remote(remote) => remote.write(name, content),
        }
    }

    /// Puts a small file in the place of an older one, whole but not durable: for what may be lost with the machine.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn post(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        match &self.place {
            Place::Local(local) => local.post(name, content),
            Place::Remote(remote) => remote.post(name, content),
        }
    }

    /// Starts a log of JSON lines, `STEM.jsonl`, or numbered parts of it on S3.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn log(&self, stem: &str) -> Result<Log, StoreError> {
        match &self.place {
            Place::Local(local) => Log::local(local, stem),
            Place::Remote(_) => Ok(Log::remote(self.clone(), stem)),
        }
    }

    /// Writes a small file if its name is free, durable once this returns; says whether it was.
    ///
    /// On S3 a file of the same content counts as this one: the answer to the request that wrote it may have been lost.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        match &self.place {
            Place::Local(local) => local.create_new(name, content),
            Place::Remote(remote) => remote.create_new(name, content),
        }
    }

    /// Reads a small file; `None` where it is absent.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.place {
            Place::Local(local) => local.read(name),
            Place::Remote(remote) => remote.read(name),
        }
    }

    /// Reads the small files of the given names, in their order; absent ones are `None`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match &self.place {
            Place::Local(local) => names.iter().map(|name| local.read(name)).collect(),
            Place::Remote(remote) => remote.read_all(names),
        }
    }

    /// Brings a file to local disk, where it is not there anyway.
    ///
    /// # Errors
    /// When it is absent or cannot be read.
    pub fn fetch(&self, name: &str) -> Result<LocalCopy, StoreError> {
        match &self.place {
            Place::Local(local) => Ok(LocalCopy { path: local.path(name), fetched: false }),
            Place::Remote(_) => {
                let mut copies = self.fetch_all(std::slice::from_ref(&name.to_owned()))?;
                copies.pop().ok_or_else(|| StoreError::NotFound { url: self.display(name) })
            }
        }
    }

    /// As [`Self::fetch`], for several files at once, in their order.
    ///
    /// # Errors
    /// When one is absent or cannot be read.
    pub fn fetch_all(&self, names: &[String]) -> Result<Vec<LocalCopy>, StoreError> {
        match &self.place {
            Place::Local(_) => names.iter().map(|name| self.fetch(name)).collect(),
            Place::Remote(remote) => {
                Ok(remote.fetch(names)?.into_iter().map(|path| LocalCopy { path, fetched: true }).collect())
            }
        }
    }

    /// Brings files of a folder to local disk, where they are not there anyway; the copy is the folder.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_folder(&self, name: &str, files: &[&str]) -> Result<LocalCopy, StoreError> {
        match &self.place {
            Place::Local(local) => Ok(LocalCopy { path: local.path(name), fetched: false }),
            Place::Remote(remote) => Ok(LocalCopy { path: remote.fetch_folder(name, files)?, fetched: true }),
        }
    }

    /// The names of the complete files and the folders in the folder `name`, sorted; none where it is absent.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        match &self.place {
            Place::Local(local) => local.list(name),
            Place::Remote(remote) => remote.list(name),
        }
    }

    /// The complete files in the folder `name` and the folders in it, at any depth, with their sizes in bytes, by their names
    /// relative to this directory; none where it is absent.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn tree(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        match &self.place {
            Place::Local(local) => local.tree(name),
            Place::Remote(remote) => remote.tree(name),
        }
    }

    /// Removes a file or a folder with all that is in it; an absent one is fine.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        match &self.place {
            Place::Local(local) => local.remove(name),
            Place::Remote(remote) => remote.remove(name),
        }
    }

    /// Removes what a killed writer left in the folder `name`: temporary files, and files that `keep` does not want.
    ///
    /// # Errors
    /// When the system or the store refuses.
    pub fn sweep(&self, name: &str, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        match &self.place {
            Place::Local(local) => local.sweep(name, keep),
            Place::Remote(remote) => remote.sweep(name, keep),
        }
    }
}

impl From<LocalDirectory> for Directory {
    fn from(local: LocalDirectory) -> Self {
        Self { place: Place::Local(local) }
    }
}
