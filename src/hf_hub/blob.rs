//! One file's bytes, from the hub into the cache: resumed where an earlier process stopped, checked before it has a name.
//!
//! The hash is taken over every byte on its way to disk, and over those that were there, so that what is renamed to its
//! blob is what the hub states, however many processes and attempts it took. Where it is not, the part is thrown away and
//! fetched once more. What was written is at most a quarter of a second behind what came.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::Told;
use super::cache::{BlobLock, Cache};
use super::http::{Broken, Http, Stated, brief};
use crate::objects::StoreError;
use crate::run_dir::local::sync_parent;

/// Bytes that are written at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Time after which what came is written, however little it is.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// Answers without a single byte after which a short file is what the hub holds.
const SHORT_ANSWERS: u32 = 6;

/// A file of the hub, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlobRequest<'a> {
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) stated: &'a Stated,
    /// The repository for a person.
    pub(super) shown: &'a str,
}

impl BlobRequest<'_> {
    fn subject(&self) -> String {
        format!("{}/{}", self.shown, self.file)
    }
}

/// What the etag's form says it is.
enum Hash {
    Sha256(Sha256),
    /// git's name of a blob.
    Git(Sha1),
    /// A mirror's own tag, of which nothing is known.
    Unknown,
}

impl Hash {
    fn new(stated: &Stated) -> Self {
        let hex = stated.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match stated.etag.len() {
            64 if hex => Self::Sha256(Sha256::new()),
            40 if hex => Self::Git(Sha1::new().chain_update(format!("blob {}\0", stated.size))),
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

    /// In hex; `None` where there is nothing to compare with.
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

/// The first bytes of a file, on disk. Holds the blob's lock until the last write is over.
struct Partial {
    path: PathBuf,
    file: File,
    have: u64,
    hash: Hash,
    stated: Stated,
    _lock: BlobLock,
}

impl Partial {
    /// Opens what an earlier process left, and hashes it.
    fn open(path: PathBuf, stated: Stated, lock: BlobLock) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(&path, "written", error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| StoreError::io(parent, "created", error))?;
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut partial = Self { path, file, have: 0, hash: Hash::new(&stated), stated, _lock: lock };
        if bytes > partial.stated.size {
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
            partial.have += count as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| StoreError::io(&self.path, "written", error))?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io(&self.path, "written", error);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        (self.have, self.hash) = (0, Hash::new(&self.stated));
        Ok(())
    }

    /// Gives the whole file its name; or says what is wrong with it.
    fn publish(&self, blob: &Path) -> Result<Result<(), String>, StoreError> {
        match self.hash.finish() {
            Some(hash) if !hash.eq_ignore_ascii_case(&self.stated.etag) => {
                return Ok(Err(format!("the hash `{hash}`, not `{}`", self.stated.etag)));
            }
            Some(_) => {}
            None => {
                tracing::warn!(blob = %blob.display(), "the hub states no hash that is known; only the size was checked");
            }
        }
        let failed = |error| StoreError::io(blob, "written", error);
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, blob).map_err(failed)?;
        sync_parent(blob)?;
        Ok(Ok(()))
    }
}

/// A [`Partial`] that blocking threads work on.
#[derive(Clone)]
struct Shared(Arc<Mutex<Partial>>);

impl Shared {
    /// Runs a job on a blocking thread. When the caller is dropped the job still ends, and only then the lock goes.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Partial) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let partial = Arc::clone(&self.0);
        blocking(move || job(&mut partial.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|error| StoreError::io("the cache", "written", std::io::Error::other(error)))?
}

/// Fetches a blob; the lock is its own.
///
/// # Errors
/// When it cannot be had or written, or is not what the hub states.
pub(super) async fn fetch(
    http: &Http,
    cache: &Cache,
    wanted: BlobRequest<'_>,
    lock: BlobLock,
    told: &Told<'_>,
) -> Result<(), StoreError> {
    let blob = cache.blob(&wanted.stated.etag);
    let mut path = blob.clone().into_os_string();
    path.push(".incomplete");
    let stated = wanted.stated.clone();
    let partial = blocking(move || Partial::open(path.into(), stated, lock)).await?;
    let mut have = partial.have;
    let partial = Shared(Arc::new(Mutex::new(partial)));
    told.resumed(have);
    let mut spoiled = false;
    loop {
        let mut wrong = rest(http, wanted, &partial, &mut have, told).await?;
        if wrong.is_none() {
            let blob = blob.clone();
            wrong = partial.run(move |partial| partial.publish(&blob)).await?.err();
        }
        let Some(wrong) = wrong else { return Ok(()) };
        if spoiled {
            partial.run(|partial| fs::remove_file(&partial.path).or(Ok(()))).await?;
            return Err(StoreError::Mismatch { url: wanted.subject(), wrong });
        }
        tracing::warn!(file = wanted.subject(), wrong, "not what the hub states; it is fetched once more");
        spoiled = true;
        restart(&partial, &mut have, told).await?;
    }
}

async fn restart(partial: &Shared, have: &mut u64, told: &Told<'_>) -> Result<(), StoreError> {
    partial.run(Partial::restart).await?;
    told.again(std::mem::take(have));
    Ok(())
}

/// Fetches what is left; says what is wrong where the file is longer or shorter than stated.
async fn rest(
    http: &Http,
    wanted: BlobRequest<'_>,
    partial: &Shared,
    have: &mut u64,
    told: &Told<'_>,
) -> Result<Option<String>, StoreError> {
    let size = wanted.stated.size;
    let mut retry_budget = http.retry_budget();
    let mut empty = 0;
    while *have < size {
        let before = *have;
        let came = attempt(http, wanted, partial, have, retry_budget.attempts() > 0, told).await;
        if *have > before {
            retry_budget.renew();
            empty = 0;
        }
        let reason = match came {
            Ok(Came::Whole) => break,
            Ok(Came::TooMuch) => return Ok(Some(format!("more than the {size} bytes that it states"))),
            Ok(Came::Short) | Err(Broken::BehindTheEnd) => {
                empty += 1;
                if empty == SHORT_ANSWERS {
                    return Ok(Some(format!("{have} bytes, not {size}")));
                }
                "the answer ended early".to_owned()
            }
            Err(Broken::Passing(reason)) => reason,
            Err(Broken::Final(error)) => return Err(error),
        };
        retry_budget.wait(&wanted.subject(), "downloaded", reason).await?;
    }
    Ok(None)
}

enum Came {
    Whole,
    Short,
    TooMuch,
}

/// One answer; what came of it is written, however it ended.
async fn attempt(
    http: &Http,
    wanted: BlobRequest<'_>,
    partial: &Shared,
    have: &mut u64,
    repeated: bool,
    told: &Told<'_>,
) -> Result<Came, Broken> {
    let BlobRequest { repo, commit, file, shown, stated } = wanted;
    let (mut response, from) = http.open_file((repo, commit, file), shown, *have, repeated).await?;
    if from < *have {
        restart(partial, have, told).await?;
    }
    let mut block = BytesMut::new();
    let mut written = Instant::now();
    loop {
        let part = response.chunk().await;
        if let Ok(Some(part)) = &part {
            http.traffic().add_read(part.len());
            block.extend_from_slice(part);
        }
        let too_much = *have + block.len() as u64 > stated.size;
        let over = !matches!(part, Ok(Some(_))) || too_much;
        if !too_much && !block.is_empty() && (over || block.len() >= BLOCK_BYTES || written.elapsed() >= WRITE_EVERY) {
            let full = block.split().freeze();
            let count = full.len() as u64;
            partial.run(move |partial| partial.write(&full)).await?;
            *have += count;
            told.came(count);
            written = Instant::now();
        }
        match part {
            _ if too_much => return Ok(Came::TooMuch),
            Ok(Some(_)) => {}
            Ok(None) if *have == stated.size => return Ok(Came::Whole),
            Ok(None) => return Ok(Came::Short),
            Err(error) => return Err(Broken::Passing(brief(&error, response.url()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(etag: &str, content: &[u8]) -> Option<String> {
        let mut hash = Hash::new(&Stated { etag: etag.to_owned(), size: content.len() as u64 });
        let (head, tail) = content.split_at(content.len() / 2);
        hash.update(head);
        hash.update(tail);
        hash.finish()
    }

    #[test]
    fn hashes_are_those_of_git_and_of_the_large_files() {
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
    fn a_part_is_taken_up_and_a_longer_one_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        let etag = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let stated = Stated { etag: etag.to_owned(), size: 6 };
        let path = dir.path().join("part");
        let open = || {
            Partial::open(path.clone(), stated.clone(), cache.try_lock(etag).unwrap().expect("the lock is free"))
                .unwrap()
        };
        fs::write(&path, "hel").unwrap();
        let mut partial = open();
        assert_eq!(partial.have, 3);
        partial.write(b"lo\n").unwrap();
        let blob = dir.path().join("blob");
        assert_eq!(partial.publish(&blob).unwrap(), Ok(()));
        assert_eq!(fs::read(&blob).unwrap(), b"hello\n");
        drop(partial);
        fs::write(&path, "longer than it").unwrap();
        let mut partial = open();
        assert_eq!(partial.have, 0);
        partial.write(b"HELLO\n").unwrap();
        let wrong = partial.publish(&blob).unwrap().unwrap_err();
        assert!(wrong.contains("the hash") && wrong.contains(etag), "{wrong}");
        assert_eq!(fs::read(&blob).unwrap(), b"hello\n");
    }
}
