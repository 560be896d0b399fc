//! The stages of a run, and the configuration keys that the artefacts of each depend on.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::Value;

use super::raw::{RawModel, RawPipeline};
use super::validate::images::PUBLISHED_DIM;
use crate::types::FeatureOrigin;

/// A stage that leaves artefacts. The variants are ordered as the stages depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Classes and the join index.
    Catalog,
    /// Pixel or feature chunks of the training images.
    Stream,
    /// Vectors of the captions.
    Text,
    /// Checkpoints of the head.
    Train,
    /// Feature chunks of the test images, and the submission.
    Predict,
}

impl Stage {
    /// All stages, upstream first.
    pub const ALL: [Self; 5] = [Self::Catalog, Self::Stream, Self::Text, Self::Train, Self::Predict];

    /// Returns the name in `run.toml`, on the command line and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Stream => "stream",
            Self::Text => "text",
            Self::Train => "train",
            Self::Predict => "predict",
        }
    }

    /// Names the sections of the pipeline file that make the stage run, for a message.
    pub fn sections(self) -> &'static str {
        match self {
            Self::Catalog => "`[captions]` and `[pairs]`",
            Self::Stream => "`[images]`",
            Self::Text => "`[train]` with `[head] kind = \"text\"`",
            Self::Train => "`[train]`",
            Self::Predict => "`[predict]`",
        }
    }

    /// Names the artefacts that recomputing the stage replaces, for a message.
    pub fn artefacts(self) -> &'static str {
        match self {
            Self::Catalog => "classes and join index",
            Self::Stream => "chunks and quarantine",
            Self::Text => "vectors of captions",
            Self::Train => "checkpoints",
            Self::Predict => "test features and submission",
        }
    }

    /// Names the artefacts of this stage that recomputing an earlier one replaces, for a message.
    pub fn artefacts_after(self, earlier: Self) -> &'static str {
        match (self, earlier) {
            // The features of the test images depend neither on captions nor on a head.
            (Self::Predict, Self::Text | Self::Train) => "submission",
            _ => self.artefacts(),
        }
    }
}

/// Dotted key → value as TOML, for every key that a stage's artefacts depend on.
pub type StageKeys = BTreeMap<String, String>;

/// Returns the keys that the artefacts of `stage` itself depend on. Those of the stages upstream come on top.
///
/// Names of inputs are left out: artefacts depend on the content of a file, which the caller adds, and not on its path.
pub(super) fn stage_keys(pipeline: &RawPipeline, stage: Stage) -> StageKeys {
    let mut keys = StageKeys::new();
    match stage {
        Stage::Catalog => {
            add(&mut keys, "captions", pipeline.captions.as_ref(), &["list"]);
            // The plan adds the format that was recognised.
            add(&mut keys, "pairs", pipeline.pairs.as_ref(), &["shards", "format"]);
        }
        Stage::Stream => {
            add(&mut keys, "images", pipeline.images.as_ref(), &["shards", "format"]);
            add_feature_keys(&mut keys, pipeline);
            let skipped: &[&str] = if pipeline.model.is_some() { &["compression"] } else { &[] };
            add(&mut keys, "chunks", Some(&pipeline.chunks), skipped);
            let views = pipeline.train.as_ref().filter(|train| train.views > 0 && pipeline.model.is_some());
            if let Some(train) = views {
                // They decide which crops are made of an image, and which images are held out and stay whole.
                keys.insert("train.views".to_owned(), train.views.to_string());
                keys.insert("train.validation_fraction".to_owned(), train.validation_fraction.to_string());
                keys.insert("run.seed".to_owned(), pipeline.run.seed.to_string());
            }
        }
        Stage::Text => add(&mut keys, "text", pipeline.text.as_ref(), &[]),
        Stage::Train => {
            add(&mut keys, "run", Some(&pipeline.run), &["dir"]);
            add(&mut keys, "head", Some(&pipeline.head), &[]);
            add(&mut keys, "train", pipeline.train.as_ref(), &["checkpoint_every", "log_every", "tensorboard"]);
        }
        Stage::Predict => {
            add(
                &mut keys,
                "predict",
                pipeline.predict.as_ref(),
                &[
                    "images",
                    "format",
                    "ids",
                    "truth",
                    "top_k",
                    "checkpoint",
                    "captions",
                    "file_names",
                    "correction",
                    "correction_strength",
                    "blend",
                ],
            );
            add_feature_keys(&mut keys, pipeline);
            add(&mut keys, "chunks", Some(&pipeline.chunks), &["compression"]);
        }
    }
    keys
}

/// Returns the keys that generated captions depend on, beside the checkpoint and its settings of generation.
pub(super) fn caption_keys(pipeline: &RawPipeline) -> StageKeys {
    let mut keys = StageKeys::new();
    add(&mut keys, "preprocess", Some(&pipeline.preprocess), &[]);
    add(&mut keys, "chunks", Some(&pipeline.chunks), &["compression"]);
    keys
}

/// Adds the keys of what becomes of an image. Published features depend on neither pixels nor a checkpoint.
fn add_feature_keys(keys: &mut StageKeys, pipeline: &RawPipeline) {
    let published = |model: &&RawModel| model.features == FeatureOrigin::Published;
    if let Some(model) = pipeline.model.as_ref().filter(published) {
        add(keys, "model", Some(model), &["checkpoint", "layer", "pool"]);
        // The default changes nothing where it is written out.
        if model.feature_dim == Some(PUBLISHED_DIM) {
            keys.remove("model.feature_dim");
        }
        return;
    }
    add(keys, "preprocess", Some(&pipeline.preprocess), &[]);
    add(keys, "model", pipeline.model.as_ref(), &[]);
}

fn add<T: Serialize>(keys: &mut StageKeys, section: &str, value: Option<&T>, skipped: &[&str]) {
    let Some(Value::Table(table)) = value.and_then(|value| Value::try_from(value).ok()) else { return };
    for (name, value) in table {
        if !skipped.contains(&name.as_str()) {
            keys.insert(format!("{section}.{name}"), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile, RunConfig};

    #[test]
    fn keys_leave_out_limits_and_input_paths() {
        let pipeline = PipelineFile::parse("[run]\ndir='r'\n[images]\nshards=['i']\n").unwrap();
        let config = RunConfig::check(pipeline, &MachineFile::default()).unwrap();
        for stage in Stage::ALL {
            assert!(config.keys(stage).keys().all(|key| !key.starts_with("limits") && key != "run.dir"));
        }
        assert!(config.keys(Stage::Stream).keys().all(|key| key != "images.shards"));
    }
}
