//! Listings of a data set's folders by the hub's API.

use serde::Deserialize;

use super::super::cache::is_commit;
use super::super::http::Http;
use super::name::DatasetName;
use crate::objects::StoreError;

/// Upper bound on the pages of one listing, of up to a thousand entries each.
const MAX_PAGES: usize = 10_000;

/// File or folder of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Entry {
    /// Path in the repository.
    pub(super) path: String,
    /// `file` or `directory`.
    #[serde(rename = "type")]
    kind: String,
    /// Hash in git.
    oid: String,
    /// Size in bytes.
    #[serde(default)]
    pub(super) size: u64,
    /// Description of a large file, which git only points to.
    lfs: Option<LargeFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

impl Entry {
    pub(super) fn is_file(&self) -> bool {
        self.kind == "file"
    }

    /// Returns the hash of the content.
    pub(super) fn hash(&self) -> &str {
        self.lfs.as_ref().map_or(&self.oid, |large| &large.oid)
    }

    /// Returns the size of the content.
    pub(super) fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size, |large| large.size)
    }
}

/// Asks for the commit of a revision.
///
/// # Errors
/// When the data set or the revision does not exist, or the hub cannot be asked.
pub(super) async fn find_commit(http: &Http, name: &DatasetName) -> Result<String, StoreError> {
    #[derive(Deserialize)]
    struct Raw {
        sha: String,
    }
    if is_commit(&name.revision) {
        return Ok(name.revision.clone());
    }
    let repo = name.path();
    let mut components = vec!["api"];
    components.extend(repo.split('/'));
    components.extend(["revision", &name.revision]);
    let mut url = http.url(&components);
    // Without it the answer lists every file.
    url.query_pairs_mut().append_pair("expand", "sha");
    let label = name.to_string();
    let body = http.body(&url, &label, &label).await?;
    let raw: Raw = serde_json::from_slice(&body).map_err(|_| http.not_a_hub("its answer names no commit"))?;
    if is_commit(&raw.sha) { Ok(raw.sha) } else { Err(http.not_a_hub("it names no commit")) }
}

/// Lists the entries directly in a folder.
///
/// # Errors
/// When the folder does not exist, or the hub cannot be asked.
pub(super) async fn list_folder(
    http: &Http,
    name: &DatasetName,
    commit: &str,
    folder: &str,
) -> Result<Vec<Entry>, StoreError> {
    let repo = name.path();
    let mut components = vec!["api"];
    components.extend(repo.split('/'));
    components.extend(["tree", commit]);
    components.extend(folder.split('/').filter(|part| !part.is_empty()));
    let (label, subject) = (name.to_string(), format!("{name}/{folder}"));
    let mut url = Some(http.url(&components));
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..MAX_PAGES {
        let Some(page) = url else { return Ok(entries) };
        let (body, next) = http.page(&page, &label, subject.trim_end_matches('/')).await?;
        let listed: Vec<Entry> =
            serde_json::from_slice(&body).map_err(|_| http.not_a_hub("its answer is not a list of files"))?;
        entries.extend(listed);
        url = next;
    }
    Err(http.not_a_hub("its list of files does not end"))
}
