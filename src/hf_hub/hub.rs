//! Makes snapshots complete: compares the cache with the hub's listing and downloads what is missing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::blob;
use super::cache::{
    BlobLock, CONFIG, Cache, INDEX, TOKENIZER, Trust, WEIGHTS, is_commit, is_module_file, parse_shards,
};
use super::headers::FileMetadata;
use super::http::{Http, Listing};
use super::progress::{Download, ProgressReporter};
use super::repo::{Repo, RepoKind};
use super::settings::Settings;
use crate::objects::{Store, StoreError, StoreSettings, Traffic};

/// Retry budget with a hub that does not answer, if the cache is complete.
const CACHED_RETRY_BUDGET: Duration = Duration::from_secs(2);
/// Time between two attempts to take a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Advice for a file that is not in the cache while the hub must not be asked.
const OFFLINE: &str = "HF_HUB_OFFLINE is set: run once without it, or copy a cache that has it";
/// Advice for a file that is not in the cache in commands that never download.
const RUN_DOWNLOADS: &str = "`run` downloads it";

/// Files that a snapshot lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Names of the files.
    pub files: Vec<String>,
    /// Total size of the files, in bytes.
    pub bytes: u64,
    /// Directory of the cache.
    pub cache: PathBuf,
}

/// Hub and cache of this process's environment.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: Settings,
    retry_budget: Duration,
    read_timeout: Duration,
    traffic: Arc<Traffic>,
}

/// Files of one commit that its snapshot lacks.
struct MissingFiles {
    commit: String,
    files: Vec<(String, FileMetadata)>,
}

/// Source of a snapshot.
enum Resolved {
    /// The hub listed the revision.
    Listed(Http, Listing),
    /// The snapshot of this commit is complete in the cache.
    Cached(String),
}

impl Hub {
    /// Creates the hub of this process's environment; sends and reads nothing yet.
    pub fn new(store: &Store) -> Self {
        let StoreSettings { retry_budget, read_timeout, .. } = *store.clients.settings();
        Self { settings: Settings::from_env(), retry_budget, read_timeout, traffic: store.traffic() }
    }

    /// Downloads the missing files of a snapshot and returns its directory.
    ///
    /// # Errors
    /// When the repository, the revision or a file does not exist, cannot be downloaded or written, or differs from the size
    /// and hash that the hub states.
    ///
    /// # Cancel safety
    /// When dropped it leaves partial files that the next call resumes.
    pub async fn fetch(&self, repo: &Repo, report: &(dyn Fn(Download) + Send + Sync)) -> Result<PathBuf, StoreError> {
        let cache = self.cache(repo);
        let (http, listing) = match self.resolve(repo).await? {
            Resolved::Listed(http, listing) => (http, listing),
            Resolved::Cached(commit) => return Ok(cache.snapshot(&commit)),
        };
        let progress = ProgressReporter::new(report);
        let label = repo.to_string();
        // The index names the shards, so it is needed first.
        let index = INDEX.to_owned();
        if !listing.files.iter().any(|file| file == WEIGHTS)
            && listing.files.contains(&index)
            && !cache.has(&listing.commit, INDEX)
        {
            let metadata = http.file_metadata(&repo.name, &listing.commit, INDEX, &label).await?;
            progress.add_total(metadata.size);
            self.download_file(&http, &cache, repo, &listing.commit, (INDEX, &metadata), &progress).await?;
        }
        let optional = repo.kind.optional_files().iter().copied();
        let absent: Vec<&str> = optional.filter(|file| listing.files.iter().all(|listed| listed != file)).collect();
        let missing = self.find_missing_files(&http, &cache, repo, listing).await?;
        if !missing.files.is_empty() {
            progress.add_total(missing.files.iter().map(|(_, metadata)| metadata.size).sum());
            tracing::info!(
                checkpoint = label,
                commit = missing.commit,
                files = missing.files.len(),
                cache = %self.settings.cache.display(),
                "downloading"
            );
        }
        for (file, metadata) in &missing.files {
            self.download_file(&http, &cache, repo, &missing.commit, (file, metadata), &progress).await?;
        }
        for file in absent {
            cache.record_absent(&missing.commit, file);
        }
        // Last, so that a recorded commit is a complete one.
        match cache.record_commit(&repo.revision, &missing.commit) {
            // A complete cache may be read-only.
            Err(error) if missing.files.is_empty() => tracing::debug!(%error, "the revision's commit was not recorded"),
            other => other?,
        }
        Ok(cache.snapshot(&missing.commit))
    }

    /// Returns the snapshot's directory if it is complete, else the files that [`Self::fetch`] would download.
    ///
    /// # Errors
    /// As [`Self::fetch`], except for errors of the download itself.
    pub async fn find_missing(&self, repo: &Repo) -> Result<Result<PathBuf, Missing>, StoreError> {
        let cache = self.cache(repo);
        let (http, listing) = match self.resolve(repo).await? {
            Resolved::Listed(http, listing) => (http, listing),
            Resolved::Cached(commit) => return Ok(Ok(cache.snapshot(&commit))),
        };
        let missing = self.find_missing_files(&http, &cache, repo, listing).await?;
        if missing.files.is_empty() {
            return Ok(Ok(cache.snapshot(&missing.commit)));
        }
        Ok(Err(Missing {
            bytes: missing.files.iter().map(|(_, metadata)| metadata.size).sum(),
            files: missing.files.into_iter().map(|(file, _)| file).collect(),
            cache: self.settings.cache.clone(),
        }))
    }

    /// Returns the snapshot's directory from the cache, without asking the hub.
    ///
    /// # Errors
    /// [`StoreError::NotCached`] names the first missing file.
    pub fn cached(&self, repo: &Repo) -> Result<PathBuf, StoreError> {
        let hint = if self.settings.offline { OFFLINE } else { RUN_DOWNLOADS };
        let commit = self.complete_commit(repo, hint, Trust::Present)?;
        Ok(self.cache(repo).snapshot(&commit))
    }

    fn cache(&self, repo: &Repo) -> Cache {
        Cache::new(&self.settings.cache, &repo.name)
    }

    /// Returns the commit of the revision, if its snapshot is complete in the cache.
    fn complete_commit(&self, repo: &Repo, hint: &'static str, trust: Trust) -> Result<String, StoreError> {
        let cache = self.cache(repo);
        let commit = cache.resolve_commit(&repo.revision);
        let lack = match &commit {
            None => "it has nothing of this revision".to_owned(),
            Some(commit) => match cache.first_missing(commit, repo.kind, trust) {
                None => {
                    let unrecorded = cache.unrecorded(commit, repo.kind);
                    if trust == Trust::Present && !unrecorded.is_empty() {
                        tracing::warn!(
                            checkpoint = %repo,
                            files = unrecorded.join(", "),
                            "used as a plain encoder, with mean pooling: the cache does not say whether the repository has \
                             these files"
                        );
                    }
                    return Ok(commit.clone());
                }
                Some(file) if repo.kind.optional_files().contains(&file.as_str()) => {
                    format!("`{file}` is missing, and the cache does not record that the repository has none")
                }
                Some(file) => format!("`{file}` is missing"),
            },
        };
        let cache = self.settings.cache.display().to_string();
        Err(StoreError::NotCached { repo: repo.to_string(), lack, cache, hint })
    }

    /// Asks the hub for the files of the revision, unless the cache is complete and offline mode or a fixed commit make
    /// that unnecessary, or the hub cannot be asked.
    async fn resolve(&self, repo: &Repo) -> Result<Resolved, StoreError> {
        if self.settings.offline {
            return self.complete_commit(repo, OFFLINE, Trust::Present).map(Resolved::Cached);
        }
        let complete = self.complete_commit(repo, OFFLINE, Trust::Recorded);
        if let (Ok(commit), true) = (&complete, is_commit(&repo.revision)) {
            return Ok(Resolved::Cached(commit.clone()));
        }
        let retry_budget =
            if complete.is_ok() { CACHED_RETRY_BUDGET.min(self.retry_budget) } else { self.retry_budget };
        let listed = async {
            let mut http = Http::open(&self.settings, retry_budget, self.read_timeout, Arc::clone(&self.traffic))?;
            let listing = http.list(&repo.name, &repo.revision, &repo.to_string()).await?;
            http.set_retry_budget(self.retry_budget);
            Ok((http, listing))
        };
        match (listed.await, complete) {
            (Ok((http, listing)), _) => Ok(Resolved::Listed(http, listing)),
            // Also when the repository was removed or made private meanwhile.
            (Err(error), complete) => {
                let Ok(commit) = complete.or_else(|_| self.complete_commit(repo, OFFLINE, Trust::Present)) else {
                    return Err(error);
                };
                tracing::warn!(checkpoint = %repo, commit, %error, "using the cached commit, because the hub cannot be asked");
                Ok(Resolved::Cached(commit))
            }
        }
    }

    /// Compares the snapshot with the hub's listing.
    async fn find_missing_files(
        &self,
        http: &Http,
        cache: &Cache,
        repo: &Repo,
        listing: Listing,
    ) -> Result<MissingFiles, StoreError> {
        let Listing { commit, files } = listing;
        let label = repo.to_string();
        let listed = |file: &str| files.iter().any(|listed| listed == file);
        if !listed(CONFIG) {
            return Err(unusable(&label, "has no `config.json`: it is not a checkpoint of transformers"));
        }
        let mut required = vec![CONFIG.to_owned()];
        required.extend(repo.kind.optional_files().iter().filter(|file| listed(file)).map(|file| (*file).to_owned()));
        if repo.kind != RepoKind::Images {
            if !listed(TOKENIZER) {
                let what =
                    format!("has no `{TOKENIZER}`: name a repository that has one, or save it with transformers");
                return Err(unusable(&label, what));
            }
            required.push(TOKENIZER.to_owned());
        }
        if repo.kind == RepoKind::Text {
            required.extend(files.iter().filter(|file| is_module_file(file)).cloned());
        }
        if listed(WEIGHTS) {
            required.push(WEIGHTS.to_owned());
        } else if listed(INDEX) {
            let content = match std::fs::read(cache.snapshot(&commit).join(INDEX)) {
                Ok(content) => content,
                Err(_) => http.read(&repo.name, &commit, INDEX, &label).await?,
            };
            required.push(INDEX.to_owned());
            required.extend(
                parse_shards(&content).map_err(|why| {
                    unusable(&label, format!("has a damaged `{INDEX}` ({why}): name another revision"))
                })?,
            );
        } else {
            let hint = if listed("pytorch_model.bin") || listed("pytorch_model.bin.index.json") {
                "its pytorch_model.bin must be converted to safetensors first"
            } else {
                "name a repository that has weights of transformers"
            };
            return Err(unusable(&label, format!("has no `{WEIGHTS}`: {hint}")));
        }
        let mut missing = Vec::new();
        for file in required {
            if !cache.has(&commit, &file) {
                let metadata = http.file_metadata(&repo.name, &commit, &file, &label).await?;
                missing.push((file, metadata));
            }
        }
        Ok(MissingFiles { commit, files: missing })
    }

    /// Downloads one file into the snapshot, unless the cache has its blob.
    async fn download_file(
        &self,
        http: &Http,
        cache: &Cache,
        repo: &Repo,
        commit: &str,
        (file, metadata): (&str, &FileMetadata),
        progress: &ProgressReporter<'_>,
    ) -> Result<(), StoreError> {
        let label = repo.to_string();
        let lock = self.lock(cache, &metadata.etag, &label).await?;
        // The blob may belong to another commit too, or the process that held the lock downloaded it.
        let _lock = if cache.has_blob(&metadata.etag, metadata.size) {
            progress.add_resumed(metadata.size);
            lock
        } else {
            let request = blob::BlobRequest { repo: &repo.name, commit, file, metadata, label: &label };
            blob::download(http, cache, request, lock, progress).await?;
            self.lock(cache, &metadata.etag, &label).await?
        };
        if cache.has(commit, file) { Ok(()) } else { cache.link(commit, file, &metadata.etag) }
    }

    async fn lock(&self, cache: &Cache, etag: &str, label: &str) -> Result<BlobLock, StoreError> {
        let mut reported = false;
        loop {
            if let Some(lock) = cache.try_lock(etag)? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut reported, true) {
                tracing::info!(checkpoint = label, "waiting for another process that downloads it");
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }
}

fn unusable(repo: &str, what: impl Into<String>) -> StoreError {
    StoreError::NotOnHub { repo: repo.to_owned(), what: what.into() }
}
