//! Run directory on S3.
//!
//! Requests run on a runtime of their own, so callers may block any thread without deadlock. A file of up to 8 MiB is
//! uploaded in one request, a larger one in parts; either way it appears at once. If this process has leases, each attempt
//! at a write first checks that it still holds all of them.

mod writer;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use super::lease::Lease;
use super::{Holder, LocalDirectory, failpoint};
use crate::objects::client::{Client, S3};
use crate::objects::read::{RANGE_BYTES, read_range, read_small};
use crate::objects::{Object, Store, StoreError, listing};
use writer::{Writer, read_part};

/// Largest file that is uploaded in one request.
const MAX_SINGLE_PUT_BYTES: u64 = 8 << 20;
/// Requests of one call that are in flight at once.
const CONCURRENT_REQUESTS: usize = 8;

pub(super) struct Remote {
    client: Client,
    s3: S3,
    prefix: Path,
    staging: LocalDirectory,
    fetched: AtomicU64,
    /// Leases that this process has acquired.
    leases: Mutex<Vec<Weak<Lease>>>,
    /// Whether the directory is only read: its staging directory then belongs to this value and is removed with it.
    read_only: bool,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Remote").field("client", &self.client).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.read_only {
            self.staging.clear().ok();
        }
    }
}

/// Returns the runtime shared by all remote directories.
fn shared_runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let built = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("store").enable_all().build()
    });
    built.as_ref().map_err(|error| {
        let source = std::io::Error::new(error.kind(), error.to_string());
        StoreError::io("the run directory", "reached", source)
    })
}

/// Runs a future on the shared runtime and blocks the calling thread until it ends.
fn block_on<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let task = shared_runtime()?.spawn(async move {
        // The caller may be gone.
        sender.send(work.await).ok();
    });
    let answer = || receiver.recv();
    let in_stage = tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    // `block_in_place` moves the other tasks of a stage's thread elsewhere.
    let received = if in_stage { tokio::task::block_in_place(answer) } else { answer() };
    drop(task);
    let received = received.unwrap_or_else(|_| {
        let source = std::io::Error::other("an internal error ended the request");
        Err(StoreError::io("the run directory", "reached", source))
    });
    received.map_err(|error| match error {
        // A run directory is not an input: its name is wrong, not its content.
        StoreError::NoBucket { url, answer } => {
            StoreError::BadUrl { url, reason: format!("its bucket does not exist{answer}") }
        }
        other => other,
    })
}

impl Remote {
    pub(super) fn open(store: &Store, url: &str, staging: &FilePath, read_only: bool) -> Result<Self, StoreError> {
        let (client, key) = store.clients.client_for(url)?;
        let bad_url = |reason: String| StoreError::BadUrl { url: url.to_owned(), reason };
        let Some(s3) = client.s3.clone() else {
            return Err(bad_url("a run directory must be on local disk or on S3".to_owned()));
        };
        let prefix = Path::parse(key.trim_end_matches('/')).map_err(|error| bad_url(error.to_string()))?;
        // Created on first use. Before the lease is held it may belong to another process of the same run on this host.
        let staging = LocalDirectory::read_only(staging);
        Ok(Self { client, s3, prefix, staging, fetched: AtomicU64::new(0), leases: Mutex::default(), read_only })
    }

    pub(super) fn staging(&self) -> &LocalDirectory {
        &self.staging
    }

    pub(super) fn display(&self, name: &str) -> String {
        self.client.url(&self.location(name))
    }

    fn location(&self, name: &str) -> Path {
        let parts =
            self.prefix.parts().chain(name.split('/').filter(|part| !part.is_empty() && *part != ".").map(Into::into));
        parts.collect()
    }

    /// Returns the name of a location relative to this directory.
    fn name(&self, location: &Path) -> String {
        let text = location.as_ref();
        text.strip_prefix(self.prefix.as_ref()).unwrap_or(text).trim_start_matches('/').to_owned()
    }

    /// Returns a writer that checks the leases before each attempt.
    fn writer(&self) -> Writer {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let leases = leases.iter().filter_map(Weak::upgrade).filter(|lease| !lease.is_released()).collect();
        Writer { client: self.client.clone(), s3: self.s3.clone(), leases }
    }

    pub(super) fn lock(&self, name: &str, work: &str) -> Result<HeldLease, StoreError> {
        let (client, location, directory) = (self.client.clone(), self.location(name), self.display(""));
        let work = work.to_owned();
        let lease = block_on(async move { Lease::acquire(client, location, directory, &work).await })?;
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|lease| lease.strong_count() > 0);
        let is_first = leases.is_empty();
        leases.push(Arc::downgrade(&lease));
        drop(leases);
        let held = HeldLease { lease, staging: is_first.then(|| self.staging.clone()) };
        if is_first {
            // Leftovers of an earlier process.
            self.staging.clear()?;
        }
        Ok(held)
    }

    pub(super) fn holders(&self, names: &[String], watch: bool) -> Result<Vec<Option<Holder>>, StoreError> {
        let (client, locations) = (self.client.clone(), names.iter().map(|name| self.location(name)));
        let locations: Vec<Path> = locations.collect();
        block_on(async move {
            let find = |location: &Path| {
                let (client, location) = (client.clone(), location.clone());
                async move { Lease::find_holder(&client, &location, watch).await }
            };
            futures::future::try_join_all(locations.iter().map(find)).await
        })
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        failpoint::point("put", name);
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        block_on(async move { writer.write_object(&location, content).await })?;
        failpoint::point("put-done", name);
        Ok(())
    }

    /// Writes a small file like [`Self::write`], without failpoints: nothing depends on it.
    pub(super) fn write_volatile(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        block_on(async move { writer.write_object(&location, content).await })
    }

    pub(super) fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        failpoint::point("put", name);
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        let created = block_on(async move { writer.create(&location, content).await })?;
        failpoint::point("put-done", name);
        Ok(created)
    }

    pub(super) fn publish(&self, name: &str) -> Result<u64, StoreError> {
        failpoint::point("put", name);
        let path = self.staging.temporary(name)?;
        let bytes = self.upload(&path, name)?;
        failpoint::point("put-done", name);
        std::fs::remove_file(&path).map_err(|error| StoreError::io(&path, "removed", error))?;
        Ok(bytes)
    }

    pub(super) fn publish_folder(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.staging.temporary(name)?;
        self.remove(name)?;
        let failed = |error| StoreError::io(&folder, "listed", error);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            files.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        files.sort_unstable();
        for file in files {
            let own = format!("{name}/{file}");
            failpoint::point("put", &own);
            self.upload(&folder.join(&file), &own)?;
            failpoint::point("put-done", &own);
        }
        std::fs::remove_dir_all(&folder).map_err(|error| StoreError::io(&folder, "removed", error))
    }

    fn upload(&self, path: &FilePath, name: &str) -> Result<u64, StoreError> {
        let bytes = path.metadata().map_err(|error| StoreError::io(path, "read", error))?.len();
        let (writer, location, path) = (self.writer(), self.location(name), path.to_owned());
        block_on(async move {
            if bytes <= MAX_SINGLE_PUT_BYTES {
                let content = read_part(path, 0, bytes).await?;
                return writer.write_object(&location, content).await;
            }
            writer.put_parts(&location, &path, bytes).await
        })?;
        Ok(bytes)
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read_all(&[name.to_owned()])?.pop().flatten())
    }

    pub(super) fn read_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let client = self.client.clone();
        let locations: Vec<Path> = names.iter().map(|name| self.location(name)).collect();
        block_on(async move {
            stream::iter(locations)
                .map(|location| {
                    let client = client.clone();
                    async move { Ok(read_small(&client, &location).await?.map(|(content, _)| content.to_vec())) }
                })
                .buffered(4 * CONCURRENT_REQUESTS)
                .try_collect()
                .await
        })
    }

    /// Downloads objects into files of the staging directory.
    pub(super) fn fetch(&self, names: &[String]) -> Result<Vec<PathBuf>, StoreError> {
        let paths = names.iter().map(|name| self.fetch_path(name)).collect::<Result<Vec<_>, _>>()?;
        let targets = names.iter().map(|name| self.location(name)).zip(paths.clone()).collect();
        self.download(targets)?;
        Ok(paths)
    }

    pub(super) fn fetch_folder(&self, name: &str, files: &[&str]) -> Result<PathBuf, StoreError> {
        let path = self.fetch_path(name)?;
        std::fs::create_dir_all(&path).map_err(|error| StoreError::io(&path, "created", error))?;
        let target = |file: &&str| (self.location(&format!("{name}/{file}")), path.join(file));
        self.download(files.iter().map(target).collect())?;
        Ok(path)
    }

    /// Returns a new path for each download: the same object may be downloaded twice at once.
    fn fetch_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        let number = self.fetched.fetch_add(1, Ordering::Relaxed);
        let own = name.rsplit('/').next().unwrap_or(name);
        let path = self.staging.path(&format!("fetched/{number}-{own}"));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| StoreError::io(parent, "created", error))?;
        }
        Ok(path)
    }

    fn download(&self, targets: Vec<(Path, PathBuf)>) -> Result<(), StoreError> {
        let client = self.client.clone();
        block_on(async move {
            stream::iter(targets)
                .map(Ok)
                .try_for_each_concurrent(CONCURRENT_REQUESTS, |(location, path)| {
                    let client = client.clone();
                    async move { download(&client, &location, &path).await }
                })
                .await
        })
    }

    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let (client, location) = (self.client.clone(), self.location(name));
        block_on(async move {
            let listed = listing::list_folder(&client, &client.url(&location), &location).await?;
            let files = listed.objects.iter().map(|meta| &meta.location);
            let mut names: Vec<String> =
                files.chain(&listed.folders).filter_map(|path| path.filename().map(str::to_owned)).collect();
            names.sort_unstable();
            Ok(names)
        })
    }

    pub(super) fn list_recursive(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let (client, location) = (self.client.clone(), self.location(name));
        let listed = block_on(async move { listing::list_below(&client, &client.url(&location), &location).await })?;
        Ok(listed.into_iter().map(|meta| (self.name(&meta.location), meta.size)).collect())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        failpoint::point("remove", name);
        let (writer, location) = (self.writer(), self.location(name));
        block_on(async move {
            let url = writer.client.url(&location);
            let all = listing::list_at_or_below(&writer.client, &url, &location).await?;
            writer.delete(all.into_iter().map(|meta| meta.location).collect()).await
        })?;
        failpoint::point("removed", name);
        Ok(())
    }

    pub(super) fn sweep(&self, name: &str, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        let name = if name == "." { "" } else { name };
        if self.list(name)?.iter().all(|file| keep(file)) {
            return Ok(());
        }
        let start = if name.is_empty() { 0 } else { name.len() + 1 };
        let unwanted =
            |file: &String| file.get(start..).and_then(|own| own.split('/').next()).is_some_and(|own| !keep(own));
        let all: Vec<Path> =
            self.list_recursive(name)?.into_keys().filter(unwanted).map(|file| self.location(&file)).collect();
        failpoint::point("remove", name);
        let writer = self.writer();
        block_on(async move { writer.delete(all).await })?;
        failpoint::point("removed", name);
        Ok(())
    }
}

/// Lease that is released when this is dropped.
#[derive(Debug)]
pub(super) struct HeldLease {
    lease: Arc<Lease>,
    /// Set for the first lease of the process: emptied before the lease is released.
    staging: Option<LocalDirectory>,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        // While the lease still keeps other processes away. What cannot be removed now, the next process removes.
        if let Some(staging) = &self.staging {
            staging.clear().ok();
        }
        let lease = Arc::clone(&self.lease);
        // A lease that cannot be released expires.
        block_on(async move {
            tokio::time::timeout(std::time::Duration::from_secs(3), lease.release()).await.ok();
            Ok(())
        })
        .ok();
    }
}

/// Downloads an object into a file, one range after the other.
async fn download(client: &Client, location: &Path, path: &FilePath) -> Result<(), StoreError> {
    let url = client.url(location);
    let meta = client.request(&url, "read", || client.inner.head(location)).await?;
    let object = Object::new(url, client, meta);
    let failed = |error| StoreError::io(path, "written", error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    for start in (0..object.size).step_by(RANGE_BYTES as usize) {
        let block = read_range(&object, start..(start + RANGE_BYTES).min(object.size)).await?;
        file.write_all(&block).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}
