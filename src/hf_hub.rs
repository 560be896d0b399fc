//! Checkpoints of the Hugging Face hub, as directories in the cache that all its clients share.
//!
//! [`Hub::fetch`] makes a snapshot complete and returns its directory; what Python's `huggingface_hub` downloaded is used
//! as it is, and what is downloaded here it finds. A file gets its name once its size and hash are those that the hub
//! states; until then it is a part that the next process takes up. [`Hub::look`] says what is missing and writes nothing,
//! [`Hub::cached`] asks nobody.
//!
//! Of a repository only what a checkpoint is made of is taken: `config.json`, `preprocessor_config.json` where there is one,
//! and `model.safetensors` or its index with the shards; of a text encoder `tokenizer.json`, and what sentence-transformers left,
//! instead of the preprocessor's file. A revision is one commit for all of them. Where the hub cannot be
//! asked, the newest commit that is complete in the cache serves, with a warning. Two processes wait for each other, by a
//! lock that a network file system must honour; where it does not, they disturb each other's parts, which the hash shows.
//!
//! | part | does |
//! | --- | --- |
//! | `settings` | the environment: endpoint, cache, token, offline |
//! | `cache` | the layout on disk |
//! | `http` | requests, redirects, what answers mean |
//! | `blob` | one file's bytes: resumed, checked, published |

mod blob;
mod cache;
mod http;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::objects::{Store, StoreError, StoreSettings, Traffic};
use cache::{BlobLock, CONFIG, Cache, INDEX, SINGLE, TOKENIZER, is_commit, is_of_module, shards};
use http::{Http, Listing, Stated};
use settings::Settings;

/// RetryBudget with a hub that does not answer where the cache has all that is needed.
const CACHED_PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks at a lock that another process holds.
const LOCK_EVERY: Duration = Duration::from_millis(100);
/// What to do about a file that is not in the cache, where the hub must not be asked.
const OFFLINE: &str = "HF_HUB_OFFLINE is set: run once without it, or copy a cache that has it";
/// And where it is not asked.
const NOT_ASKED: &str = "`run` downloads it";

/// What a repository holds, and so which of its files are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RepoKind {
    /// A backbone for images.
    #[default]
    Images,
    /// A text encoder.
    Text,
}

impl RepoKind {
    /// Files that are wanted where there are any; that there is none has to be known.
    fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["preprocessor_config.json"],
            Self::Text => &["modules.json", "sentence_bert_config.json", "tokenizer_config.json"],
        }
    }
}

/// A repository at a revision. Both are well formed: they become parts of URLs and paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// `ORG/NAME`, or `NAME`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// What it holds.
    pub kind: RepoKind,
}

impl std::fmt::Display for Repo {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => write!(out, "hf:{}", self.name),
            revision => write!(out, "hf:{}@{revision}", self.name),
        }
    }
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Download {
    /// Bytes in all, as far as known; it grows where some have to be fetched again.
    Total(u64),
    /// Bytes that an earlier process, or another one, fetched.
    Resumed(u64),
    /// Bytes that came.
    Came(u64),
}

/// What a snapshot lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The files.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// The cache.
    pub cache: PathBuf,
}

/// A hub as the environment names it, with its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: Settings,
    retry_budget: Duration,
    read_timeout: Duration,
    traffic: Arc<Traffic>,
}

/// Counts for whoever watches a download.
struct Told<'a> {
    total: AtomicU64,
    tell: &'a (dyn Fn(Download) + Send + Sync),
}

impl<'a> Told<'a> {
    fn new(tell: &'a (dyn Fn(Download) + Send + Sync)) -> Self {
        Self { total: AtomicU64::new(0), tell }
    }

    fn expect(&self, bytes: u64) {
        (self.tell)(Download::Total(self.total.fetch_add(bytes, Ordering::Relaxed) + bytes));
    }

    fn resumed(&self, bytes: u64) {
        (self.tell)(Download::Resumed(bytes));
    }

    fn came(&self, bytes: u64) {
        (self.tell)(Download::Came(bytes));
    }

    /// Bytes that were counted and are thrown away.
    fn again(&self, bytes: u64) {
        self.expect(bytes);
    }
}

/// Files of one commit that are not in its snapshot.
struct Found {
    commit: String,
    missing: Vec<(String, Stated)>,
}

impl Hub {
    /// The hub of this process's environment. Asks and reads nothing yet.
    pub fn new(store: &Store) -> Self {
        let StoreSettings { retry_budget, read_timeout, .. } = *store.clients.settings();
        Self { settings: Settings::from_env(), retry_budget, read_timeout, traffic: store.traffic() }
    }

    /// The snapshot's directory, complete, after downloading what it lacks.
    ///
    /// # Errors
    /// When there is no such repository, revision or file, it cannot be had or written, or is not what the hub states.
    ///
    /// # Cancel safety
    /// Dropped at any time it leaves parts that the next call takes up.
    pub async fn fetch(&self, repo: &Repo, tell: &(dyn Fn(Download) + Send + Sync)) -> Result<PathBuf, StoreError> {
        let cache = self.cache(repo);
        let (http, listing) = match self.ask(repo).await? {
            Ok(asked) => asked,
            Err(commit) => return Ok(cache.snapshot(&commit)),
        };
        let told = Told::new(tell);
        let shown = repo.to_string();
        // What the index names is known once it is here.
        let index = INDEX.to_owned();
        if !listing.files.iter().any(|file| file == SINGLE)
            && listing.files.contains(&index)
            && !cache.has(&listing.commit, INDEX)
        {
            let stated = http.stated(&repo.name, &listing.commit, INDEX, &shown).await?;
            told.expect(stated.size);
            self.bring(&http, &cache, repo, &listing.commit, (INDEX, &stated), &told).await?;
        }
        let optional = repo.kind.optional().iter().copied();
        let absent: Vec<&str> = optional.filter(|file| listing.files.iter().all(|listed| listed != file)).collect();
        let found = self.compare(&http, &cache, repo, listing).await?;
        if !found.missing.is_empty() {
            told.expect(found.missing.iter().map(|(_, stated)| stated.size).sum());
            tracing::info!(
                checkpoint = shown,
                commit = found.commit,
                files = found.missing.len(),
                cache = %self.settings.cache.display(),
                "downloading"
            );
        }
        for (file, stated) in &found.missing {
            self.bring(&http, &cache, repo, &found.commit, (file, stated), &told).await?;
        }
        for file in absent {
            cache.note_absent(&found.commit, file);
        }
        // Last, so that a commit that is known offline is a complete one.
        match cache.note_commit(&repo.revision, &found.commit) {
            // A cache that others fill may be one that we cannot write to.
            Err(error) if found.missing.is_empty() => tracing::debug!(%error, "the revision's commit was not noted"),
            other => other?,
        }
        Ok(cache.snapshot(&found.commit))
    }

    /// What [`Self::fetch`] would download; the directory where that is nothing. Writes nothing.
    ///
    /// # Errors
    /// As [`Self::fetch`], as far as it can be told without.
    pub async fn look(&self, repo: &Repo) -> Result<Result<PathBuf, Missing>, StoreError> {
        let cache = self.cache(repo);
        let (http, listing) = match self.ask(repo).await? {
            Ok(asked) => asked,
            Err(commit) => return Ok(Ok(cache.snapshot(&commit))),
        };
        let found = self.compare(&http, &cache, repo, listing).await?;
        if found.missing.is_empty() {
            return Ok(Ok(cache.snapshot(&found.commit)));
        }
        Ok(Err(Missing {
            bytes: found.missing.iter().map(|(_, stated)| stated.size).sum(),
            files: found.missing.into_iter().map(|(file, _)| file).collect(),
            cache: self.settings.cache.clone(),
        }))
    }

    /// The snapshot's directory, from the cache alone.
    ///
    /// # Errors
    /// [`StoreError::NotCached`] names the first file that is missing.
    pub fn cached(&self, repo: &Repo) -> Result<PathBuf, StoreError> {
        let commit = self.complete(repo, if self.settings.offline { OFFLINE } else { NOT_ASKED })?;
        Ok(self.cache(repo).snapshot(&commit))
    }

    fn cache(&self, repo: &Repo) -> Cache {
        Cache::new(&self.settings.cache, &repo.name)
    }

    /// The commit that is complete in the cache.
    fn complete(&self, repo: &Repo, hint: &'static str) -> Result<String, StoreError> {
        let cache = self.cache(repo);
        let commit = cache.commit(&repo.revision);
        let lack = match &commit {
            None => "nothing of this revision is there".to_owned(),
            Some(commit) => match cache.missing(commit, repo.kind) {
                None => return Ok(commit.clone()),
                Some(file) if repo.kind.optional().contains(&file.as_str()) => {
                    format!("`{file}` is missing, and whether the repository has one is not known")
                }
                Some(file) => format!("`{file}` is missing"),
            },
        };
        let cache = self.settings.cache.display().to_string();
        Err(StoreError::NotCached { repo: repo.to_string(), lack, cache, hint })
    }

    /// Asks the hub for the files of the revision; or hands back the commit that the cache has, where that will do.
    async fn ask(&self, repo: &Repo) -> Result<Result<(Http, Listing), String>, StoreError> {
        let complete = self.complete(repo, OFFLINE);
        if self.settings.offline {
            return complete.map(Err);
        }
        if let (Ok(commit), true) = (&complete, is_commit(&repo.revision)) {
            return Ok(Err(commit.clone()));
        }
        let retry_budget = if complete.is_ok() { CACHED_PATIENCE.min(self.retry_budget) } else { self.retry_budget };
        let listed = async {
            let mut http = Http::open(&self.settings, retry_budget, self.read_timeout, Arc::clone(&self.traffic))?;
            let listing = http.list(&repo.name, &repo.revision, &repo.to_string()).await?;
            http.set_retry_budget(self.retry_budget);
            Ok((http, listing))
        };
        match (listed.await, complete) {
            (Ok(asked), _) => Ok(Ok(asked)),
            // That a repository is gone or closed by now is no reason to stop either.
            (Err(error), Ok(commit)) => {
                tracing::warn!(checkpoint = %repo, commit, %error, "going on with what the cache has");
                Ok(Err(commit))
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// What the snapshot lacks of the listing.
    async fn compare(&self, http: &Http, cache: &Cache, repo: &Repo, listing: Listing) -> Result<Found, StoreError> {
        let Listing { commit, files } = listing;
        let shown = repo.to_string();
        let listed = |file: &str| files.iter().any(|listed| listed == file);
        if !listed(CONFIG) {
            return Err(not_usable(&shown, "has no `config.json`: it is no checkpoint of transformers"));
        }
        let mut wanted = vec![CONFIG.to_owned()];
        wanted.extend(repo.kind.optional().iter().filter(|file| listed(file)).map(|file| (*file).to_owned()));
        if repo.kind == RepoKind::Text {
            if !listed(TOKENIZER) {
                let what =
                    format!("has no `{TOKENIZER}`: name a repository that has one, or save it with transformers");
                return Err(not_usable(&shown, what));
            }
            wanted.push(TOKENIZER.to_owned());
            wanted.extend(files.iter().filter(|file| is_of_module(file)).cloned());
        }
        if listed(SINGLE) {
            wanted.push(SINGLE.to_owned());
        } else if listed(INDEX) {
            let content = match std::fs::read(cache.snapshot(&commit).join(INDEX)) {
                Ok(content) => content,
                Err(_) => http.read(&repo.name, &commit, INDEX, &shown).await?,
            };
            wanted.push(INDEX.to_owned());
            wanted.extend(shards(&content).map_err(|why| {
                not_usable(&shown, format!("has a damaged `{INDEX}` ({why}): name another revision"))
            })?);
        } else {
            let hint = if listed("pytorch_model.bin") || listed("pytorch_model.bin.index.json") {
                "its pytorch_model.bin must be converted to safetensors first"
            } else {
                "name a repository that has weights of transformers"
            };
            return Err(not_usable(&shown, format!("has no `{SINGLE}`: {hint}")));
        }
        let mut missing = Vec::new();
        for file in wanted {
            if !cache.has(&commit, &file) {
                let stated = http.stated(&repo.name, &commit, &file, &shown).await?;
                missing.push((file, stated));
            }
        }
        Ok(Found { commit, missing })
    }

    /// Brings one file into the snapshot.
    async fn bring(
        &self,
        http: &Http,
        cache: &Cache,
        repo: &Repo,
        commit: &str,
        (file, stated): (&str, &Stated),
        told: &Told<'_>,
    ) -> Result<(), StoreError> {
        let shown = repo.to_string();
        let lock = self.lock(cache, &stated.etag, &shown).await?;
        // Of another commit, or whoever had the lock brought it.
        let _lock = if cache.has_blob(&stated.etag, stated.size) {
            told.resumed(stated.size);
            lock
        } else {
            let wanted = blob::BlobRequest { repo: &repo.name, commit, file, stated, shown: &shown };
            blob::fetch(http, cache, wanted, lock, told).await?;
            self.lock(cache, &stated.etag, &shown).await?
        };
        if cache.has(commit, file) { Ok(()) } else { cache.link(commit, file, &stated.etag) }
    }

    async fn lock(&self, cache: &Cache, etag: &str, shown: &str) -> Result<BlobLock, StoreError> {
        let mut waits = false;
        loop {
            if let Some(lock) = cache.try_lock(etag)? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut waits, true) {
                tracing::info!(checkpoint = shown, "another process downloads it; waiting");
            }
            tokio::time::sleep(LOCK_EVERY).await;
        }
    }
}

fn not_usable(repo: &str, what: impl Into<String>) -> StoreError {
    StoreError::NotOnHub { repo: repo.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_shown_as_it_is_written() {
        let repo = |revision: &str| {
            Repo { name: "org/name".to_owned(), revision: revision.to_owned(), kind: RepoKind::Images }.to_string()
        };
        assert_eq!((repo("main").as_str(), repo("v1").as_str()), ("hf:org/name", "hf:org/name@v1"));
    }

    #[test]
    fn the_total_grows_by_what_is_fetched_again() {
        let heard = std::sync::Mutex::new(Vec::new());
        let tell = |step| heard.lock().unwrap().push(step);
        let told = Told::new(&tell);
        told.expect(10);
        told.came(4);
        told.again(4);
        assert_eq!(*heard.lock().unwrap(), [Download::Total(10), Download::Came(4), Download::Total(14)]);
    }
}
