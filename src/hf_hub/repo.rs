//! Repository of the hub at one revision.

/// Type of a repository, which decides which files a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RepoKind {
    /// Image backbone.
    #[default]
    Images,
    /// Text encoder.
    Text,
    /// Image backbone with the text tower that it is paired with.
    Paired,
    /// Captioning model: image encoder and text decoder.
    Captions,
}

impl RepoKind {
    /// Returns the files that a checkpoint may have; whether the repository has them must be known.
    pub(super) fn optional_files(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["preprocessor_config.json"],
            Self::Captions => &["preprocessor_config.json", "tokenizer_config.json", "generation_config.json"],
            Self::Paired => &["preprocessor_config.json", "tokenizer_config.json"],
            Self::Text => &[
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "tokenizer_config.json",
            ],
        }
    }
}

/// Repository at a revision. Both names are well formed: they become parts of URLs and paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// `ORG/NAME`, or `NAME`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Type of the repository.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_revision_is_not_displayed() {
        let repo = |revision: &str| {
            Repo { name: "org/name".to_owned(), revision: revision.to_owned(), kind: RepoKind::Images }.to_string()
        };
        assert_eq!((repo("main").as_str(), repo("v1").as_str()), ("hf:org/name", "hf:org/name@v1"));
    }
}
