//! A [`super::Directory`] on S3.
//!
//! Work goes to a runtime of its own, so that the calls may block any thread without ever waiting for themselves. A file is
//! uploaded whole (in parts beyond 16 MiB, which appear at once) and its size asked for afterwards.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use super::client::Client;
use super::lease::Lease;
use super::read::{RANGE_BYTES, read_range, small};
use super::retry::explain;
use super::{LocalDirectory, Object, Store, StoreError, kill};

/// Files up to this size are uploaded in one request.
const WHOLE_BYTES: u64 = 16 << 20;
/// Bytes of one part beyond that; S3 allows 10,000 parts.
const PART_BYTES: u64 = 16 << 20;
/// Requests in flight for one call.
const AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    s3: Arc<AmazonS3>,
    prefix: Path,
    staging: LocalDirectory,
    fetched: AtomicU64,
    lease: Mutex<Weak<Lease>>,
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
    pub(super) fn open(store: &Store, url: &str, staging: &FilePath) -> Result<Self, StoreError> {
        let (client, key) = store.clients.at(url)?;
        let bad = |reason: String| StoreError::BadUrl { url: url.to_owned(), reason };
        let Some(s3) = client.s3.clone() else {
            return Err(bad("a run can be kept on local disk or on S3 alone".to_owned()));
        };
        let prefix = Path::parse(key.trim_end_matches('/')).map_err(|error| bad(error.to_string()))?;
        // What an earlier process had on its way is of no use to this one; the directory is made when it is first used.
        let staging = LocalDirectory::at(staging);
        staging.remove("")?;
        Ok(Self { client, s3, prefix, staging, fetched: AtomicU64::new(0), lease: Mutex::default() })
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

    /// Nothing is written by a process that may have lost the directory.
    fn check(&self) -> Result<(), StoreError> {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        lease.map_or(Ok(()), |lease| lease.check())
    }

    pub(super) fn lock(&self) -> Result<Claimed, StoreError> {
        let (client, location, directory) = (self.client.clone(), self.location("lock"), self.display(""));
        let lease = wait(Lease::acquire(client, location, directory))?;
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&lease);
        Ok(Claimed { lease })
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        kill::point("put", name);
        let (client, location, content) = (self.client.clone(), self.location(name), Bytes::copy_from_slice(content));
        wait(async move { put(&client, &location, content).await })?;
        kill::point("put-done", name);
        Ok(())
    }

    /// As [`Self::write`], without the tests' kill points: nothing depends on it.
    pub(super) fn post(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        let (client, location, content) = (self.client.clone(), self.location(name), Bytes::copy_from_slice(content));
        wait(async move { put(&client, &location, content).await })
    }

    pub(super) fn create_new(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        self.check()?;
        kill::point("put", name);
        let (client, location, content) = (self.client.clone(), self.location(name), Bytes::copy_from_slice(content));
        let created = wait(async move { create(&client, &location, content).await })?;
        kill::point("put-done", name);
        Ok(created)
    }

    pub(super) fn publish(&self, name: &str) -> Result<u64, StoreError> {
        self.check()?;
        kill::point("put", name);
        let path = self.staging.temporary(name)?;
        let bytes = self.upload(&path, name)?;
        kill::point("put-done", name);
        std::fs::remove_file(&path).map_err(|error| StoreError::io(&path, "removed", error))?;
        Ok(bytes)
    }

    pub(super) fn publish_folder(&self, name: &str) -> Result<(), StoreError> {
        self.check()?;
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
            kill::point("put", &own);
            self.upload(&folder.join(&file), &own)?;
            kill::point("put-done", &own);
        }
        std::fs::remove_dir_all(&folder).map_err(|error| StoreError::io(&folder, "removed", error))
    }

    fn upload(&self, path: &FilePath, name: &str) -> Result<u64, StoreError> {
        let failed = |error| StoreError::io(path, "read", error);
        let bytes = path.metadata().map_err(failed)?.len();
        let (client, s3, location) = (self.client.clone(), Arc::clone(&self.s3), self.location(name));
        if bytes <= WHOLE_BYTES {
            let content = Bytes::from(std::fs::read(path).map_err(failed)?);
            wait(async move { put(&client, &location, content).await })?;
        } else {
            let path = path.to_owned();
            wait(async move { put_parts(&client, &s3, &location, &path, bytes).await })?;
        }
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
                    async move { Ok(small(&client, &location).await?.map(|(content, _)| content.to_vec())) }
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
            let url = client.url(&location);
            let answer = client.answer(&url, "listed", || client.inner.list_with_delimiter(Some(&location))).await?;
            let found = match answer {
                Ok(found) => found,
                Err(error) => return Err(explain(&url, "listed", error)),
            };
            let files = found.objects.iter().map(|meta| &meta.location);
            let mut names: Vec<String> =
                files.chain(&found.common_prefixes).filter_map(|path| path.filename().map(str::to_owned)).collect();
            names.sort_unstable();
            Ok(names)
        })
    }

    pub(super) fn tree(&self, name: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let (client, location) = (self.client.clone(), self.location(name));
        let found = wait(async move { below(&client, &location).await })?;
        Ok(found.into_iter().map(|meta| (self.name(&meta.location), meta.size)).collect())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.check()?;
        kill::point("remove", name);
        let (client, location) = (self.client.clone(), self.location(name));
        wait(async move {
            let mut all: Vec<Path> = below(&client, &location).await?.into_iter().map(|meta| meta.location).collect();
            all.push(location);
            stream::iter(all)
                .map(Ok)
                .try_for_each_concurrent(AT_ONCE, |location| {
                    let client = client.clone();
                    async move { delete(&client, &location).await }
                })
                .await
        })?;
        kill::point("removed", name);
        Ok(())
    }

    pub(super) fn sweep(&self, name: &str, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
        for file in self.list(name)? {
            if !keep(&file) {
                self.remove(&format!("{name}/{file}"))?;
            }
        }
        Ok(())
    }
}

/// A lease that is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Claimed {
    lease: Arc<Lease>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let lease = Arc::clone(&self.lease);
        // A claim that could not be given up is void a little later.
        wait(async move {
            tokio::time::timeout(std::time::Duration::from_secs(3), lease.release()).await.ok();
            Ok(())
        })
        .ok();
    }
}

async fn put(client: &Client, location: &Path, content: Bytes) -> Result<(), StoreError> {
    let url = client.url(location);
    client.ask(&url, "written", || client.inner.put(location, PutPayload::from(content.clone()))).await?;
    client.traffic.written(content.len());
    Ok(())
}

/// Writes an object if there is none; one of the same content is ours, whose answer was lost.
async fn create(client: &Client, location: &Path, content: Bytes) -> Result<bool, StoreError> {
    let url = client.url(location);
    let mut patience = client.patience();
    loop {
        let answer = client
            .answer(&url, "written", || {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                client.inner.put_opts(location, PutPayload::from(content.clone()), options)
            })
            .await?;
        match answer {
            Ok(_) => {
                client.traffic.written(content.len());
                return Ok(true);
            }
            // 409 too arrives as this, and stands for a write that was going on, perhaps our own.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match small(client, location).await? {
                Some((there, _)) => return Ok(there == content),
                None => patience.wait(&url, "written", "another write was going on".to_owned()).await?,
            },
            Err(Error::NotImplemented { .. }) => {
                if let Some((there, _)) = small(client, location).await? {
                    return Ok(there == content);
                }
                // The lease keeps everybody else away.
                put(client, location, content).await?;
                return Ok(true);
            }
            Err(error) => return Err(explain(&url, "written", error)),
        }
    }
}

/// Uploads a file in parts. The object appears when all are there.
async fn put_parts(
    client: &Client,
    s3: &AmazonS3,
    location: &Path,
    path: &FilePath,
    bytes: u64,
) -> Result<(), StoreError> {
    let url = client.url(location);
    let id = client.ask(&url, "written", || s3.create_multipart(location)).await?;
    let upload = async {
        let starts = (0..bytes).step_by(PART_BYTES as usize).enumerate();
        let parts = stream::iter(starts)
            .map(|(index, start)| {
                let (id, url) = (&id, &url);
                async move {
                    let part = read_part(path.to_owned(), start, PART_BYTES.min(bytes - start)).await?;
                    let put = || s3.put_part(location, id, index, PutPayload::from(part.clone()));
                    let done = client.ask(url, "written", put).await?;
                    client.traffic.written(part.len());
                    Ok::<_, StoreError>(done)
                }
            })
            .buffered(2)
            .try_collect()
            .await?;
        let parts: Vec<_> = parts;
        let answer = client.answer(&url, "written", || s3.complete_multipart(location, &id, parts.clone())).await?;
        let complete = match answer {
            Ok(_) => Ok(()),
            // The upload is gone when it was completed by a request whose answer was lost.
            Err(error) => match client.answer(&url, "read", || s3.head(location)).await? {
                Ok(meta) if meta.size == bytes => Ok(()),
                _ => Err(explain(&url, "written", error)),
            },
        };
        complete
    };
    let uploaded = upload.await;
    if uploaded.is_err() {
        // Its parts would be stored, and paid for, until somebody looks.
        s3.abort_multipart(location, &id).await.ok();
    }
    uploaded
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

/// Brings an object into a file.
async fn download(client: &Client, location: &Path, path: &FilePath) -> Result<(), StoreError> {
    let url = client.url(location);
    let meta = client.ask(&url, "read", || client.inner.head(location)).await?;
    let object = Object::new(url, client, meta);
    let failed = |error| StoreError::io(path, "written", error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let ranges = (0..object.size).step_by(RANGE_BYTES as usize);
    let mut blocks = stream::iter(ranges)
        .map(|start| read_range(&object, start..(start + RANGE_BYTES).min(object.size)))
        .buffered(2);
    while let Some(block) = blocks.next().await {
        file.write_all(&block?).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}

/// Every object below a prefix.
async fn below(client: &Client, location: &Path) -> Result<Vec<ObjectMeta>, StoreError> {
    let url = client.url(location);
    client.ask(&url, "listed", || client.inner.list(Some(location)).try_collect()).await
}

/// Deletes an object; one that is not there is fine.
async fn delete(client: &Client, location: &Path) -> Result<(), StoreError> {
    let url = client.url(location);
    match client.answer(&url, "removed", || client.inner.delete(location)).await? {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(explain(&url, "removed", error)),
    }
}
