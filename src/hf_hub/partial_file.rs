//! Partial file of a download: hashed while it is written, and renamed to its blob once the hash matches.
//!
//! The hash covers the bytes of earlier processes too, so the number of processes and attempts does not matter.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::cache::BlobLock;
use super::headers::FileMetadata;
use crate::objects::StoreError;
use crate::run_dir::local::sync_parent;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Hash in the form that the `ETag` announces.
enum Hash {
    Sha256(Sha256),
    /// git's hash of a blob.
    Git(Sha1),
    /// Tag of a mirror, which is not a known hash.
    Unknown,
}

impl Hash {
    fn new(metadata: &FileMetadata) -> Self {
        let hex = metadata.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match metadata.etag.len() {
            64 if hex => Self::Sha256(Sha256::new()),
            40 if hex => Self::Git(Sha1::new().chain_update(format!("blob {}\0", metadata.size))),
            _ => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::Unknown => {}
        }
    }

    /// Returns the hash in hexadecimal; `None` if there is nothing to compare with.
    fn finish(&self) -> Option<String> {
        match self {
            Self::Sha256(hash) => Some(hex(hash.clone().finalize().as_slice())),
            Self::Git(hash) => Some(hex(hash.clone().finalize().as_slice())),
            Self::Unknown => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Partial file on disk. It holds the blob's lock until its last write has ended.
pub(super) struct PartialFile {
    path: PathBuf,
    file: File,
    pub(super) written_bytes: u64,
    hash: Hash,
    metadata: FileMetadata,
    _lock: BlobLock,
}

impl PartialFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the partial file of an earlier process, or an empty one, and hashes its content.
    pub(super) fn open(path: PathBuf, metadata: FileMetadata, lock: BlobLock) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(&path, "written", error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| StoreError::io(parent, "created", error))?;
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut partial = Self { path, file, written_bytes: 0, hash: Hash::new(&metadata), metadata, _lock: lock };
        if bytes > partial.metadata.size {
            partial.restart()?;
            return Ok(partial);
        }
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            let count = partial.file.read(&mut buffer).map_err(|error| StoreError::io(&partial.path, "read", error))?;
            if count == 0 {
                return Ok(partial);
            }
            partial.hash.update(&buffer[..count]);
            partial.written_bytes += count as u64;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| StoreError::io(&self.path, "written", error))?;
        self.hash.update(bytes);
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io(&self.path, "written", error);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        (self.written_bytes, self.hash) = (0, Hash::new(&self.metadata));
        Ok(())
    }

    /// Renames the complete file to its blob; the inner error describes how it differs from the stated hash.
    pub(super) fn publish(&self, blob: &Path) -> Result<Result<(), String>, StoreError> {
        match self.hash.finish() {
            Some(hash) if !hash.eq_ignore_ascii_case(&self.metadata.etag) => {
                return Ok(Err(format!("the hash `{hash}` instead of `{}`", self.metadata.etag)));
            }
            Some(_) => {}
            None => {
                tracing::warn!(blob = %blob.display(), "the hub states no known hash; only the size was verified");
            }
        }
        let failed = |error| StoreError::io(blob, "written", error);
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, blob).map_err(failed)?;
        sync_parent(blob)?;
        Ok(Ok(()))
    }
}

/// [`PartialFile`] shared with blocking threads.
#[derive(Clone)]
pub(super) struct SharedPartialFile(Arc<Mutex<PartialFile>>);

impl SharedPartialFile {
    pub(super) fn new(partial: PartialFile) -> Self {
        Self(Arc::new(Mutex::new(partial)))
    }

    /// Runs a job on a blocking thread. A job whose caller is dropped still ends, and then releases the lock.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut PartialFile) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let partial = Arc::clone(&self.0);
        run_blocking(move || job(&mut partial.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

/// Runs a job on a blocking thread.
pub(super) async fn run_blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|error| StoreError::io("the cache", "written", std::io::Error::other(error)))?
}

#[cfg(test)]
mod tests {
    use super::super::cache::Cache;
    use super::*;

    fn hash(etag: &str, content: &[u8]) -> Option<String> {
        let mut hash = Hash::new(&FileMetadata { etag: etag.to_owned(), size: content.len() as u64 });
        let (head, tail) = content.split_at(content.len() / 2);
        hash.update(head);
        hash.update(tail);
        hash.finish()
    }

    #[test]
    fn hash_is_that_of_git_or_sha256() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for etag in [git, sha256] {
            assert_eq!(hash(etag, b"hello\n").as_deref(), Some(etag));
            assert_ne!(hash(etag, b"hello!").as_deref(), Some(etag));
        }
        assert_eq!(hash("a-tag-of-a-mirror", b"hello\n"), None);
    }

    #[test]
    fn partial_file_is_resumed_and_a_longer_one_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        let etag = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let metadata = FileMetadata { etag: etag.to_owned(), size: 6 };
        let path = dir.path().join("part");
        let open = || {
            PartialFile::open(path.clone(), metadata.clone(), cache.try_lock(etag).unwrap().expect("the lock is free"))
                .unwrap()
        };
        fs::write(&path, "hel").unwrap();
        let mut partial = open();
        assert_eq!(partial.written_bytes, 3);
        partial.write(b"lo\n").unwrap();
        let blob = dir.path().join("blob");
        assert_eq!(partial.publish(&blob).unwrap(), Ok(()));
        assert_eq!(fs::read(&blob).unwrap(), b"hello\n");
        drop(partial);
        fs::write(&path, "longer than it").unwrap();
        let mut partial = open();
        assert_eq!(partial.written_bytes, 0);
        partial.write(b"HELLO\n").unwrap();
        let mismatch = partial.publish(&blob).unwrap().unwrap_err();
        assert!(mismatch.contains("the hash") && mismatch.contains(etag), "{mismatch}");
        assert_eq!(fs::read(&blob).unwrap(), b"hello\n");
    }
}
