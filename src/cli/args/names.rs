//! Names of stages and formats on the command line, since only `cli` depends on its parser.

use clap::ValueEnum;

use crate::config::Stage;
use crate::sample::SampleFormat;

/// Stage name on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum StageName {
    /// Caption classes and the join index.
    Catalog,
    /// Pixels or features of the training images.
    Stream,
    /// Caption vectors for a text head.
    Text,
    /// Head checkpoints.
    Train,
    /// Test features and the submission.
    Predict,
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Catalog => Self::Catalog,
            StageName::Stream => Self::Stream,
            StageName::Text => Self::Text,
            StageName::Train => Self::Train,
            StageName::Predict => Self::Predict,
        }
    }
}

/// Format of a synthetic corpus on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum SampleFormatName {
    /// The published layout: rows of base64, and captions in tables of their own.
    Tsv,
    /// Parquet as in `wikimedia/wit_base`.
    Parquet,
    /// Gzipped JSON lines as in Wikimedia's joined files.
    Jsonl,
    /// Tar archives as the `webdataset` library reads them.
    Webdataset,
    /// Picture files with `metadata.csv`.
    Folder,
    /// The published layout with features as text in place of images, as `resnet_embeddings`.
    Embeddings,
}

impl From<SampleFormatName> for SampleFormat {
    fn from(name: SampleFormatName) -> Self {
        match name {
            SampleFormatName::Tsv => Self::Tsv,
            SampleFormatName::Parquet => Self::Parquet,
            SampleFormatName::Jsonl => Self::Jsonl,
            SampleFormatName::Webdataset => Self::Webdataset,
            SampleFormatName::Folder => Self::Folder,
            SampleFormatName::Embeddings => Self::Embeddings,
        }
    }
}
