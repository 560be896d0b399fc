//! Local cache of the hub, in the layout that all its clients share.
//!
//! ```text
//! models--ORG--NAME/blobs/ETAG                      content of a file, complete
//! models--ORG--NAME/blobs/ETAG.incomplete           first bytes of a file
//! models--ORG--NAME/snapshots/COMMIT/FILE           link to ../../blobs/ETAG
//! models--ORG--NAME/refs/REVISION                   commit of a branch or tag at the last request
//! models--ORG--NAME/.no_exist/COMMIT/FILE           records that the commit has no such file
//! .locks/models--ORG--NAME/ETAG.lock                lock of the process that downloads the blob
//! ```
//!
//! A blob or link is complete or absent. Source: "Hub Local Cache" in the hub's documentation.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::repo::RepoKind;
use crate::objects::StoreError;
use crate::run_dir::local::sync_parent;

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
const MODULES: &str = "modules.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
}

/// Requirement on the optional files of a text encoder without `modules.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// The cache must record that the repository has none, because the hub can be asked.
    Recorded,
    /// An encoder without them counts as complete, because the hub cannot be asked.
    Present,
}

/// Kernel lock on a blob; it ends with the process.
#[derive(Debug)]
pub(super) struct BlobLock {
    _file: File,
}

/// Returns whether a revision is a commit, which never moves.
pub(super) fn is_commit(revision: &str) -> bool {
    [40, 64].contains(&revision.len())
        && revision.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Returns whether a file belongs to a module after the transformer: `1_Pooling/config.json`, `2_Dense/model.safetensors`.
pub(super) fn is_module_file(file: &str) -> bool {
    let Some((folder, name)) = file.split_once('/') else { return false };
    let number =
        folder.split('_').next().is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    let word = folder.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    number && word && [CONFIG, WEIGHTS].contains(&name)
}

/// Returns the files of the modules that a `modules.json` names.
fn module_files(modules: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Raw {
        path: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let modules: Vec<Raw> = serde_json::from_slice(modules).unwrap_or_default();
    let files = |Raw { path, kind }: Raw| -> Vec<String> {
        let names: &[&str] = match kind.rsplit('.').next() {
            Some("Pooling") => &[CONFIG],
            Some("Dense") => &[CONFIG, WEIGHTS],
            _ => &[],
        };
        names.iter().map(|name| format!("{path}/{name}")).filter(|file| is_module_file(file)).collect()
    };
    modules.into_iter().flat_map(files).collect()
}

/// Returns the shards that an index names, each once, sorted.
///
/// # Errors
/// Describes a damaged index as a clause.
pub(super) fn parse_shards(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Raw {
        weight_map: BTreeMap<String, String>,
    }
    let raw: Raw = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let mut names: Vec<String> = raw.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    // A shard is in the folder of its index; a downloaded file must not name other paths.
    match names.iter().find(|name| name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0'])) {
        Some(name) => Err(format!("its shard `{name}` is not a plain file name")),
        None if names.is_empty() => Err("it names no shard".to_owned()),
        None => Ok(names),
    }
}

impl Cache {
    pub(super) fn new(root: &Path, repo: &str) -> Self {
        Self { root: root.to_owned(), folder: format!("models--{}", repo.replace('/', "--")) }
    }

    /// Returns the part of the cache that belongs to a data set; this program only reads it.
    pub(super) fn of_dataset(root: &Path, repo: &str) -> Self {
        Self { root: root.to_owned(), folder: format!("datasets--{}", repo.replace('/', "--")) }
    }

    pub(super) fn repo(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo().join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo().join("blobs").join(etag)
    }

    /// Returns the commit of a revision at the last request.
    pub(super) fn resolve_commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.repo().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Returns whether the snapshot has a file.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Returns whether a blob exists with the stated size.
    pub(super) fn has_blob(&self, etag: &str, size: u64) -> bool {
        fs::metadata(self.blob(etag)).is_ok_and(|blob| blob.is_file() && blob.len() == size)
    }

    /// Returns the first file that a checkpoint needs and the snapshot lacks; `None` if the snapshot is complete.
    ///
    /// A missing optional file would silently select the defaults of the model family. The cache must therefore record that
    /// the repository has none, because the files may have been downloaded one by one. [`Self::unrecorded`] says which text
    /// encoders are exempt.
    pub(super) fn first_missing(&self, commit: &str, kind: RepoKind, trust: Trust) -> Option<String> {
        if !self.has(commit, CONFIG) {
            return Some(CONFIG.to_owned());
        }
        if !self.has(commit, WEIGHTS) {
            let Ok(index) = fs::read(self.snapshot(commit).join(INDEX)) else { return Some(WEIGHTS.to_owned()) };
            let Ok(shards) = parse_shards(&index) else { return Some(INDEX.to_owned()) };
            if let Some(shard) = shards.into_iter().find(|shard| !self.has(commit, shard)) {
                return Some(shard);
            }
        }
        let unrecorded = self.unrecorded(commit, kind);
        if (trust == Trust::Recorded || !unrecorded.contains(&MODULES))
            && let Some(file) = unrecorded.first()
        {
            return Some((*file).to_owned());
        }
        if kind == RepoKind::Images {
            return None;
        }
        let modules = match kind {
            RepoKind::Text => {
                fs::read(self.snapshot(commit).join(MODULES)).map_or_else(|_| Vec::new(), |text| module_files(&text))
            }
            _ => Vec::new(),
        };
        std::iter::once(TOKENIZER.to_owned()).chain(modules).find(|file| !self.has(commit, file))
    }

    /// Returns the optional files that the snapshot lacks, and of which the cache does not say whether the repository has them.
    ///
    /// Only sentence-transformers asks for `modules.json`. If it is among them, the encoder was cached by other tools.
    pub(super) fn unrecorded(&self, commit: &str, kind: RepoKind) -> Vec<&'static str> {
        let known = |file: &&str| self.has(commit, file) || self.known_absent(commit, file);
        kind.optional_files().iter().filter(|file| !known(file)).copied().collect()
    }

    fn known_absent(&self, commit: &str, file: &str) -> bool {
        #[derive(Deserialize)]
        struct Tree {
            files: serde_json::Map<String, serde_json::Value>,
        }
        if self.absent_marker(commit, file).is_file() {
            return true;
        }
        // Newer versions of `huggingface_hub` store the listing of a commit.
        let listing = self.repo().join("trees").join(format!("{commit}.json"));
        let tree: Option<Tree> = fs::read(listing).ok().and_then(|text| serde_json::from_slice(&text).ok());
        tree.is_some_and(|tree| !tree.files.contains_key(file))
    }

    fn absent_marker(&self, commit: &str, file: &str) -> PathBuf {
        self.repo().join(".no_exist").join(commit).join(file)
    }

    /// Records that a commit has no such file. Failures are ignored: a complete cache may be read-only.
    pub(super) fn record_absent(&self, commit: &str, file: &str) {
        let path = self.absent_marker(commit, file);
        if !path.is_file() && path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok()) {
            File::create(path).ok();
        }
    }

    /// Locks a blob for this process; `None` if another process holds the lock.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn try_lock(&self, etag: &str) -> Result<Option<BlobLock>, StoreError> {
        let folder = self.root.join(".locks").join(&self.folder);
        fs::create_dir_all(&folder).map_err(|error| StoreError::io(&folder, "created", error))?;
        let path = folder.join(format!("{etag}.lock"));
        let failed = |error| StoreError::io(&path, "locked", error);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(BlobLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Links a blob into a snapshot. The caller holds the blob's lock.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), StoreError> {
        let path = self.snapshot(commit).join(file);
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(|error| StoreError::io(folder, "created", error))?;
        let name = file.rsplit('/').next().unwrap_or(file);
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let failed = |error| StoreError::io(&path, "written", error);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // Relative, so that the cache can be moved.
        let up = "../".repeat(2 + file.matches('/').count());
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), &temporary)
            // Some file systems lack symbolic links.
            .or_else(|_| fs::hard_link(self.blob(etag), &temporary))
            .or_else(|_| fs::copy(self.blob(etag), &temporary).map(drop))
            .map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        sync_parent(&path)
    }

    /// Records the commit of a revision.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn record_commit(&self, revision: &str, commit: &str) -> Result<(), StoreError> {
        let path = self.repo().join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        let failed = |error| StoreError::io(&path, "written", error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        fs::write(&temporary, commit).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn add_file(cache: &Cache, etag: &str, file: &str, content: &str) {
        fs::create_dir_all(cache.repo().join("blobs")).unwrap();
        fs::write(cache.blob(etag), content).unwrap();
        cache.link(COMMIT, file, etag).unwrap();
    }

    #[test]
    fn links_are_relative_and_replace_broken_ones() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        add_file(&cache, "e1", CONFIG, "{}");
        let link = dir.path().join("models--org--name/snapshots").join(COMMIT).join(CONFIG);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../blobs/e1"));
        fs::remove_file(cache.blob("e1")).unwrap();
        assert!(!cache.has(COMMIT, CONFIG));
        add_file(&cache, "e2", CONFIG, "[]");
        assert_eq!(fs::read_to_string(&link).unwrap(), "[]");
        assert_eq!(fs::read_dir(link.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn snapshot_is_complete_once_nothing_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "name");
        let missing = || cache.first_missing(COMMIT, RepoKind::Images, Trust::Present);
        assert_eq!(missing().as_deref(), Some(CONFIG));
        add_file(&cache, "c", CONFIG, "{}");
        assert_eq!(missing().as_deref(), Some(WEIGHTS));
        add_file(&cache, "i", INDEX, r#"{"weight_map": {"a": "s-2", "b": "s-1", "c": "s-2"}}"#);
        assert_eq!(missing().as_deref(), Some("s-1"));
        add_file(&cache, "s", "s-1", "");
        add_file(&cache, "s", "s-2", "");
        assert_eq!(missing().as_deref(), Some("preprocessor_config.json"));
        let trees = cache.repo().join("trees");
        fs::create_dir_all(&trees).unwrap();
        let tree =
            |files: &str| fs::write(trees.join(format!("{COMMIT}.json")), format!(r#"{{"files": {files}}}"#)).unwrap();
        tree(r#"{"preprocessor_config.json": {"size": 1}}"#);
        assert_eq!(missing().as_deref(), Some("preprocessor_config.json"));
        tree(r#"{"config.json": {"size": 1}}"#);
        assert_eq!(missing(), None);
        fs::remove_dir_all(&trees).unwrap();
        cache.record_absent(COMMIT, "preprocessor_config.json");
        assert_eq!(missing(), None);
    }

    #[test]
    fn paired_checkpoint_needs_a_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        for file in [CONFIG, WEIGHTS, "preprocessor_config.json", "tokenizer_config.json"] {
            add_file(&cache, file, file, "{}");
        }
        assert_eq!(cache.first_missing(COMMIT, RepoKind::Images, Trust::Recorded), None);
        assert_eq!(cache.first_missing(COMMIT, RepoKind::Paired, Trust::Recorded).as_deref(), Some(TOKENIZER));
        add_file(&cache, "t", TOKENIZER, "{}");
        assert_eq!(cache.first_missing(COMMIT, RepoKind::Paired, Trust::Recorded), None);
    }

    #[test]
    fn text_encoder_needs_tokenizer_and_module_files() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        let missing = || cache.first_missing(COMMIT, RepoKind::Text, Trust::Recorded);
        add_file(&cache, "c", CONFIG, "{}");
        add_file(&cache, "w", WEIGHTS, "");
        assert_eq!(missing().as_deref(), Some(MODULES));
        let modules = r#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"},
            {"path": "2_Dense", "type": "a.Dense"}, {"path": "../x", "type": "a.Dense"}]"#;
        add_file(&cache, "m", MODULES, modules);
        for file in ["sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"] {
            assert_eq!(missing().as_deref(), Some(file));
            // Once `modules.json` is there, the other files of sentence-transformers must be known.
            assert_eq!(cache.first_missing(COMMIT, RepoKind::Text, Trust::Present).as_deref(), Some(file));
            cache.record_absent(COMMIT, file);
        }
        for file in [TOKENIZER, "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"] {
            assert_eq!(missing().as_deref(), Some(file));
            add_file(&cache, "x", file, "content");
        }
        assert_eq!(missing(), None);
        let link = cache.snapshot(COMMIT).join("1_Pooling/config.json");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../../blobs/x"));
        assert_eq!(fs::read_to_string(&link).unwrap(), "content");
        assert!(
            !is_module_file("onnx/config.json")
                && !is_module_file("1_Pooling/other.json")
                && !is_module_file("1_/../config.json")
        );
    }

    #[test]
    fn encoder_cached_by_other_tools_is_complete_where_the_hub_cannot_be_asked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        for file in [CONFIG, WEIGHTS, TOKENIZER] {
            add_file(&cache, file, file, "{}");
        }
        let missing = |trust| cache.first_missing(COMMIT, RepoKind::Text, trust);
        assert_eq!(missing(Trust::Recorded).as_deref(), Some(MODULES));
        assert_eq!(missing(Trust::Present), None);
        fs::remove_file(cache.snapshot(COMMIT).join(TOKENIZER)).unwrap();
        assert_eq!(missing(Trust::Present).as_deref(), Some(TOKENIZER));
    }

    #[test]
    fn reference_must_be_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        assert_eq!(cache.resolve_commit("main"), None);
        assert_eq!(cache.resolve_commit(COMMIT).as_deref(), Some(COMMIT));
        cache.record_commit("refs/pr/1", COMMIT).unwrap();
        assert_eq!(cache.resolve_commit("refs/pr/1").as_deref(), Some(COMMIT));
        fs::write(cache.repo().join("refs/main"), "../../../etc").unwrap();
        assert_eq!(cache.resolve_commit("main"), None);
    }

    #[test]
    fn blob_has_one_lock_holder() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        let lock = cache.try_lock("e").unwrap();
        assert!(lock.is_some() && cache.try_lock("e").unwrap().is_none());
        drop(lock);
        assert!(cache.try_lock("e").unwrap().is_some());
        assert!(dir.path().join(".locks/models--org--name/e.lock").is_file());
    }

    #[test]
    fn index_must_not_name_other_paths() {
        for name in ["../x", "/etc/passwd", "a/b", "", ".hidden", "a\\\\b"] {
            let why = parse_shards(format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#).as_bytes()).unwrap_err();
            assert!(why.contains("not a plain file name"), "{name}: {why}");
        }
        assert!(parse_shards(b"{}").is_err() && parse_shards(br#"{"weight_map": {}}"#).is_err());
    }
}
