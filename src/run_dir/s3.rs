//! A [`super::Directory`] on S3.
//!
//! Work goes to a runtime of its own, so that the calls may block any thread without ever waiting for themselves. A file is
//! uploaded whole, or in parts beyond 8 MiB, which appear at once. Each attempt at a write asks first whether this process still
//! holds the directory, if it was claimed.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use super::lease::Lease;
use super::{LocalDirectory, failpoint};
use crate::objects::client::{Client, S3};
use crate::objects::http_error::{explain, is_conflict, is_not_found, is_unsupported};
use crate::objects::read::{RANGE_BYTES, read_range, read_small};
use crate::objects::{Object, Store, StoreError, listing};

/// Files up to this size are uploaded in one request.
const WHOLE_BYTES: u64 = 8 << 20;
/// Bytes of one part beyond that, at least: S3 wants 5 MiB, and allows 10,000 parts.
const PART_BYTES: u64 = 8 << 20;
/// Parts of one object, at most.
const PARTS: u64 = 10_000;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 2;
/// Requests in flight for one call.
const AT_ONCE: usize = 8;

pub(super) struct Remote {
    client: Client,
    s3: S3,
    prefix: Path,
    staging: LocalDirectory,
    fetched: AtomicU64,
    lease: Mutex<Weak<Lease>>,
    /// Whether nobody will claim it: what is fetched is this process's own then, and goes with this.
    visited: bool,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Remote").field("client", &self.client).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.visited {
            self.staging.clear().ok();
        }
    }
}

/// The runtime of all remote directories.
fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let built = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("store").enable_all().build()
    });
    built.as_ref().map_err(|error| StoreError::Io {
        path: "the run directory".to_owned(),
        action: "reached",
        source: std::io::Error::new(error.kind(), error.to_string()),
    })
}

/// Waits for work on the runtime of the directories, from any thread.
fn wait<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let task = runtime()?.spawn(async move {
        // A caller that is gone wants no answer.
        sender.send(work.await).ok();
    });
    let answer = || receiver.recv();
    let in_stage = tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    // The other tasks of this thread go on elsewhere meanwhile.
    let received = if in_stage { tokio::task::block_in_place(answer) } else { answer() };
    drop(task);
    received.unwrap_or_else(|_| {
        let source = std::io::Error::other("an internal error ended the request");
        Err(StoreError::Io { path: "the run directory".to_owned(), action: "reached", source })
    })
}

impl Remote {
    pub(super) fn open(store: &Store, url: &str, staging: &FilePath, visited: bool) -> Result<Self, StoreError> {
        let (client, key) = store.clients.client_for(url)?;
        let bad = |reason: String| StoreError::BadUrl { url: url.to_owned(), reason };
        let Some(s3) = client.s3.clone() else {
            return Err(bad("a run can be kept on local disk or on S3 alone".to_owned()));
        };
        let prefix = Path::parse(key.trim_end_matches('/')).map_err(|error| bad(error.to_string()))?;
        // Made when it is first used. It may be another process's, of the same run on this host, until the claim is held.
        let staging = LocalDirectory::at(staging);
        Ok(Self { client, s3, prefix, staging, fetched: AtomicU64::new(0), lease: Mutex::default(), visited })
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

    /// A location's name relative to this directory.
    fn name(&self, location: &Path) -> String {
        let text = location.as_ref();
        text.strip_prefix(self.prefix.as_ref()).unwrap_or(text).trim_start_matches('/').to_owned()
    }

    /// Who writes: nothing is written by a process that may have lost the directory.
    fn writer(&self) -> Writer {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        Writer { client: self.client.clone(), s3: self.s3.clone(), lease }
    }

    pub(super) fn lock(&self) -> Result<Claimed, StoreError> {
        let (client, location, directory) = (self.client.clone(), self.location("lock"), self.display(""));
        let lease = wait(Lease::acquire(client, location, directory))?;
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&lease);
        let claimed = Claimed { lease, staging: self.staging.clone() };
        // What an earlier process had on its way is of no use to this one.
        self.staging.clear()?;
        Ok(claimed)
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        failpoint::point("put", name);
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        wait(async move { writer.put(&location, content).await })?;
        failpoint::point("put-done", name);
        Ok(())
    }

    /// As [`Self::write`], without the tests' kill points: nothing depends on it.
    pub(super) fn post(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        wait(async move { writer.put(&location, content).await })
    }

    pub(super) fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        failpoint::point("put", name);
        let (writer, location, content) = (self.writer(), self.location(name), Bytes::copy_from_slice(content));
        let created = wait(async move { writer.create(&location, content).await })?;
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
        wait(async move {
            if bytes <= WHOLE_BYTES {
                let content = read_part(path, 0, bytes).await?;
                return writer.put(&location, content).await;
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
        wait(async move {
            stream::iter(locations)
                .map(|location| {
                    let client = client.clone();
                    async move { Ok(read_small(&client, &location).await?.map(|(content, _)| content.to_vec())) }
                })
                .buffered(4 * AT_ONCE)
                .try_collect()
                .await
        })
    }

    /// Brings objects into files of the staging directory.
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

    /// A path of its own for each fetch: the same object may be wanted twice at once.
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
        wait(async move {
            stream::iter(targets)
                .map(Ok)
                .try_for_each_concurrent(AT_ONCE, |(location, path)| {
                    let client = client.clone();
                    async move { download(&client, &location, &path).await }
                })
                .await
        })
    }

    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let (client, location) = (self.client.clone(), self.location(name));
        wait(async move {
            let found = listing::list_folder(&client, &client.url(&location), &location).await?;
            let files = found.objects.iter().map(|meta| &meta.location);
            let mut names: Vec<String> =
                files.chain(&found.folders).filter_map(|path| path.filename().map(str::to_owned)).collect();
            names.sort_unstable();
            Ok(names)
        })
    }

    pub(super) fn tree(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let (client, location) = (self.client.clone(), self.location(name));
        let found = wait(async move { listing::list_below(&client, &client.url(&location), &location).await })?;
        Ok(found.into_iter().map(|meta| (self.name(&meta.location), meta.size)).collect())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        failpoint::point("remove", name);
        let (writer, location) = (self.writer(), self.location(name));
        wait(async move {
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
        let all: Vec<Path> = self.tree(name)?.into_keys().filter(unwanted).map(|file| self.location(&file)).collect();
        failpoint::point("remove", name);
        let writer = self.writer();
        wait(async move { writer.delete(all).await })?;
        failpoint::point("removed", name);
        Ok(())
    }
}

/// A lease that is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Claimed {
    lease: Arc<Lease>,
    staging: LocalDirectory,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // While the claim still keeps others away from it. What stays goes when the next process has the claim.
        self.staging.clear().ok();
        let lease = Arc::clone(&self.lease);
        // A claim that could not be given up is void a little later.
        wait(async move {
            tokio::time::timeout(std::time::Duration::from_secs(3), lease.release()).await.ok();
            Ok(())
        })
        .ok();
    }
}

/// Writes on behalf of whoever holds the directory.
struct Writer {
    client: Client,
    s3: S3,
    lease: Option<Arc<Lease>>,
}

impl Writer {
    /// Waits until this process holds the lease again; returns at once where the directory has none.
    async fn may_write(&self) -> Result<(), StoreError> {
        match &self.lease {
            Some(lease) => lease.held().await,
            None => Ok(()),
        }
    }

    async fn put(&self, location: &Path, content: Bytes) -> Result<(), StoreError> {
        let url = self.client.url(location);
        let put = || self.s3.upload.put(location, PutPayload::from(content.clone()));
        let answer = self.client.retry_upload(&url, content.len(), || self.may_write(), put).await?;
        answer.map_err(|error| explain(&url, "written", &error))?;
        self.client.traffic.add_written(content.len());
        Ok(())
    }

    /// Writes an object if there is none; one of the same content is ours, whose answer was lost.
    async fn create(&self, location: &Path, content: Bytes) -> Result<bool, StoreError> {
        let (client, url) = (&self.client, self.client.url(location));
        let mut retry_budget = client.retry_budget();
        loop {
            let put = || {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                self.s3.upload.put_opts(location, PutPayload::from(content.clone()), options)
            };
            match client.retry_upload(&url, content.len(), || self.may_write(), put).await? {
                Ok(_) => {
                    client.traffic.add_written(content.len());
                    return Ok(true);
                }
                // 409 too arrives as this, and stands for a write that was going on, perhaps our own.
                Err(error) if is_conflict(&error) => match read_small(client, location).await? {
                    Some((there, _)) => return Ok(there == content),
                    None => retry_budget.wait(&url, "written", "another write was going on".to_owned()).await?,
                },
                Err(error) if is_unsupported(&error) => {
                    if let Some((there, _)) = read_small(client, location).await? {
                        return Ok(there == content);
                    }
                    // The lease keeps everybody else away.
                    self.put(location, content).await?;
                    return Ok(true);
                }
                Err(error) => return Err(explain(&url, "written", &error)),
            }
        }
    }

    /// Uploads a file in parts. The object appears when all are there.
    async fn put_parts(&self, location: &Path, path: &FilePath, bytes: u64) -> Result<(), StoreError> {
        let (client, s3) = (&self.client, &self.s3.upload);
        let url = client.url(location);
        let head = || client.retry(&url, "read", || self.s3.store.head(location));
        // What is there may be as long as what is to come.
        let before = head().await?.ok().and_then(|meta| meta.e_tag);
        let create = || s3.create_multipart(location);
        let id = client.retry_upload(&url, 0, || self.may_write(), create).await?;
        let id = id.map_err(|error| explain(&url, "written", &error))?;
        let part_bytes = PART_BYTES.max(bytes.div_ceil(PARTS));
        let upload = async {
            let starts = (0..bytes).step_by(part_bytes as usize).enumerate();
            let parts: Vec<_> = stream::iter(starts)
                .map(|(index, start)| {
                    let (id, url) = (&id, &url);
                    async move {
                        let part = read_part(path.to_owned(), start, part_bytes.min(bytes - start)).await?;
                        let put = || s3.put_part(location, id, index, PutPayload::from(part.clone()));
                        let done = client.retry_upload(url, part.len(), || self.may_write(), put).await?;
                        client.traffic.add_written(part.len());
                        done.map_err(|error| explain(url, "written", &error))
                    }
                })
                .buffered(PARTS_AT_ONCE)
                .try_collect()
                .await?;
            let complete = || s3.complete_multipart(location, &id, parts.clone());
            // The store puts the parts together, which takes it a while.
            match client.retry_upload(&url, bytes as usize, || self.may_write(), complete).await? {
                Ok(_) => Ok(()),
                // The upload is gone when it was completed by a request whose answer was lost.
                Err(error) => match head().await? {
                    Ok(meta) if meta.size == bytes && (before.is_none() || meta.e_tag != before) => Ok(()),
                    _ => Err(explain(&url, "written", &error)),
                },
            }
        };
        let uploaded = upload.await;
        if uploaded.is_err() {
            // Its parts would be stored, and paid for, until somebody looks.
            self.s3.store.abort_multipart(location, &id).await.ok();
        }
        uploaded
    }

    /// Deletes objects; one that is not there is fine.
    async fn delete(&self, locations: Vec<Path>) -> Result<(), StoreError> {
        stream::iter(locations)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |location| async move {
                let url = self.client.url(&location);
                if let Some(lease) = &self.lease {
                    lease.held().await?;
                }
                match self.client.retry(&url, "removed", || self.client.inner.delete(&location)).await? {
                    Ok(()) => Ok(()),
                    Err(error) if is_not_found(&error) => Ok(()),
                    Err(error) => Err(explain(&url, "removed", &error)),
                }
            })
            .await
    }
}

async fn read_part(path: PathBuf, start: u64, bytes: u64) -> Result<Bytes, StoreError> {
    let read = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt as _;
        let mut part = vec![0; bytes as usize];
        std::fs::File::open(&path)
            .and_then(|file| file.read_exact_at(&mut part, start))
            .map_err(|error| StoreError::io(&path, "read", error))?;
        Ok(Bytes::from(part))
    });
    read.await.unwrap_or_else(|error| {
        Err(StoreError::Io { path: "the upload".to_owned(), action: "read", source: std::io::Error::other(error) })
    })
}

/// Brings an object into a file, one range after the other.
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
