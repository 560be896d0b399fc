//! Names of columns: those that a configuration sets, and the usual ones that are tried otherwise.
//!
//! In Parquet and JSON, `a.b` is the field `b` of `a`. Lists along the path are traversed: `a.b` of `{"a": [{"b": 1}]}` and of
//! `{"a": {"b": [1]}}` is a list of one value.

use crate::corpus::error::CorpusError;

/// Usual columns with the URL or another unique name of an image.
pub(super) const URL_COLUMNS: [&str; 6] = ["image_url", "url", "URL", "file_name", "key", "id"];
/// Usual columns with the image.
pub(super) const IMAGE_COLUMNS: [&str; 8] =
    ["image.bytes", "image", "jpg", "png", "webp", "bytes", "b64_bytes", "image_base64"];
/// Usual columns with a caption or a list of captions.
pub(super) const CAPTION_COLUMNS: [&str; 7] = [
    "caption_title_and_reference_description",
    "wit_features.caption_title_and_reference_description",
    "caption",
    "captions",
    "text",
    "TEXT",
    "label",
];
/// Usual column with the language of a caption, beside it.
const LANGUAGE_COLUMN: &str = "language";
/// Names of the columns of images; `None` for the first usual one that the file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageColumns {
    /// Column of the image.
    pub image: Option<String>,
    /// Column of the URL.
    pub url: Option<String>,
}

/// Names of the columns of captions; `None` for the first usual one that the file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PairColumns {
    /// Column of the URL.
    pub url: Option<String>,
    /// Column of the caption.
    pub caption: Option<String>,
    /// Column of the language.
    pub language: Option<String>,
}

/// Kind of a column, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// Image of `[images]`.
    Image,
    /// URL of `[images]`.
    ImageUrl,
    /// URL of `[pairs]`.
    PairUrl,
    /// Caption of `[pairs]`.
    Caption,
    /// Language of `[pairs]`.
    Language,
}

impl ColumnKind {
    /// Returns what the column holds.
    pub const fn content(self) -> &'static str {
        match self {
            Self::Image => "the image",
            Self::ImageUrl | Self::PairUrl => "the URL or name of the image",
            Self::Caption => "the caption",
            Self::Language => "the language",
        }
    }

    /// Returns the configuration key that names the column.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Image => "images.image_column",
            Self::ImageUrl => "images.url_column",
            Self::PairUrl => "pairs.url_column",
            Self::Caption => "pairs.caption_column",
            Self::Language => "pairs.language_column",
        }
    }

    /// Returns the usual names, in the order in which they are tried.
    pub const fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Image => &IMAGE_COLUMNS,
            Self::ImageUrl | Self::PairUrl => &URL_COLUMNS,
            Self::Caption => &CAPTION_COLUMNS,
            Self::Language => &[LANGUAGE_COLUMN],
        }
    }

    /// Finds the column among those of a file. `set` is the name in the configuration, and `has` tells what the file has.
    ///
    /// # Errors
    /// When the file lacks the column that the configuration names, or all usual ones. `found` lists the columns of the file.
    pub fn find(
        self,
        file: &str,
        set: Option<&str>,
        has: impl Fn(&str) -> bool,
        found: impl FnOnce() -> String,
    ) -> Result<String, CorpusError> {
        match set {
            Some(name) if has(name) => Ok(name.to_owned()),
            Some(name) => Err(CorpusError::MissingColumn {
                file: file.to_owned(),
                column: name.to_owned(),
                key: self.key(),
                found: found(),
            }),
            None => match self.usual().iter().find(|name| has(name)) {
                Some(name) => Ok((*name).to_owned()),
                None => Err(CorpusError::NoUsualColumn {
                    file: file.to_owned(),
                    content: self.content(),
                    tried: list(self.usual()),
                    key: self.key(),
                    found: found(),
                }),
            },
        }
    }
}

/// Returns the usual names of the language column for captions in `caption`: the field beside it, then a column of that name.
pub(super) fn language_candidates(caption: &str) -> Vec<String> {
    let beside = caption.rsplit_once('.').map(|(parent, _)| format!("{parent}.{LANGUAGE_COLUMN}"));
    beside.into_iter().chain([LANGUAGE_COLUMN.to_owned()]).collect()
}

/// Lists names in backticks.
pub(super) fn list(names: &[impl AsRef<str>]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}
