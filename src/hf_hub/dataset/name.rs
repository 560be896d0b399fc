//! Splits the URL of a data set's file into repository, revision and path.

use crate::objects::StoreError;
use crate::types::HubName;

/// Scheme of the URLs.
pub(super) const SCHEME: &str = "hf";
/// Start of the URLs.
const PREFIX: &str = "hf://datasets/";
/// Revision where none is named.
const DEFAULT_REVISION: &str = "main";
/// Folders of references that contain a `/`, which `huggingface_hub` accepts unencoded.
const REFERENCES: [&str; 2] = ["refs/convert/", "refs/pr/"];

/// Data set at a revision; both names are well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DatasetName {
    /// `ORG/NAME`.
    pub(super) repo: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
}

impl std::fmt::Display for DatasetName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            DEFAULT_REVISION => write!(out, "{PREFIX}{}", self.repo),
            revision => write!(out, "{PREFIX}{}@{}", self.repo, revision.replace('/', "%2F")),
        }
    }
}

impl DatasetName {
    /// Splits a URL into the data set and the path in it.
    ///
    /// # Errors
    /// When a name is malformed.
    pub(super) fn split(url: &str) -> Result<(Self, &str), StoreError> {
        let wrong = |why: &str| {
            let reason =
                format!("it {why}; write `hf://datasets/ORG/NAME/PATH` or `hf://datasets/ORG/NAME@REVISION/PATH`");
            StoreError::BadUrl { url: url.to_owned(), reason }
        };
        let rest = url.strip_prefix(PREFIX).ok_or_else(|| wrong("names no data set"))?;
        let (organisation, rest) = rest.split_once('/').ok_or_else(|| wrong("lacks the name of a repository"))?;
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, key) = match rest.strip_prefix('@') {
            Some(rest) => split_revision(rest),
            None => (DEFAULT_REVISION, rest),
        };
        let (repo, revision) = (format!("{organisation}/{name}"), revision.replace("%2F", "/").replace("%2f", "/"));
        HubName::check(&repo, &revision).map_err(wrong)?;
        Ok((Self { repo, revision }, key.trim_start_matches('/')))
    }

    /// Returns the repository's part of the hub's URLs.
    pub(super) fn path(&self) -> String {
        format!("datasets/{}", self.repo)
    }
}

/// Splits the text after `@` into the revision and the path.
fn split_revision(rest: &str) -> (&str, &str) {
    let from = REFERENCES.iter().find(|folder| rest.starts_with(**folder)).map_or(0, |folder| folder.len());
    rest.split_at(rest[from..].find('/').map_or(rest.len(), |slash| from + slash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_names_repository_revision_and_path() {
        for (url, repo, revision, key) in [
            ("hf://datasets/a/b/data/*.parquet", "a/b", "main", "data/*.parquet"),
            ("hf://datasets/a/b@v1/x.tar", "a/b", "v1", "x.tar"),
            (
                "hf://datasets/a/b@refs/convert/parquet/default/0.parquet",
                "a/b",
                "refs/convert/parquet",
                "default/0.parquet",
            ),
            ("hf://datasets/a/b@refs%2Fpr%2F1/x@2.tar", "a/b", "refs/pr/1", "x@2.tar"),
            ("hf://datasets/a/b", "a/b", "main", ""),
        ] {
            let (name, path) = DatasetName::split(url).unwrap();
            assert_eq!((name.repo.as_str(), name.revision.as_str(), path), (repo, revision, key));
            let root = name.to_string();
            assert_eq!(DatasetName::split(&root).unwrap(), (name, ""));
        }
    }

    #[test]
    fn malformed_url_is_refused_by_name() {
        for url in [
            "hf://a/b/x",
            "hf://datasets/",
            "hf://datasets/a",
            "hf://datasets//b/x",
            "hf://datasets/a/../x",
            "hf://datasets/a/b@../x",
            "hf://datasets/a/b@%2F..%2Fx/y",
            "hf://datasets/a/b?x/y",
        ] {
            let error = DatasetName::split(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("hf://datasets/ORG/NAME/PATH"), "{error}");
        }
    }
}
