//! Classifier of another run, whose logits contribute to the ranking (`predict.blend`).

use std::collections::HashMap;

use crate::config::{Stage, StageKeys};
use crate::objects::Store;
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::error::chain;
use crate::pipeline::manifest::{Manifest, RunFile};
use crate::pipeline::predict::fusion::ClassifierRows;
use crate::pipeline::predict::held_out::recorded_split;
use crate::pipeline::resolve::ResolvedModel;
use crate::pipeline::train::checkpoints;
use crate::run_dir::Directory;
use crate::train::HeadState;
use crate::types::{Pick, ValidationSplit};

/// A classifier, indexed by the captions of its classes.
pub(super) struct OtherClassifier {
    head: HeadState,
    class_of: HashMap<Box<str>, u32>,
}

/// Whether features depend on a recorded key.
pub(super) fn is_feature_key(key: &str) -> bool {
    key.starts_with("model.") || key.starts_with("preprocess")
}

impl OtherClassifier {
    /// Opens the classifier of another run; `None` if `predict.blend` is not set.
    ///
    /// # Errors
    /// When the other run has no classifier, or was trained on other features or on images that are held out here.
    pub(super) async fn open(
        ctx: &RunContext,
        model: &ResolvedModel,
        manifest: &Manifest,
    ) -> Result<Option<Self>, PipelineError> {
        let Some(name) = ctx.config.predict().and_then(|predict| predict.blend.as_deref()) else { return Ok(None) };
        let shown = Store::redact(name).to_owned();
        let refused = |what: &str| PipelineError::Input(format!("`{shown}` (`predict.blend`): {what}"));
        let (store, own_name) = (ctx.store.clone(), name.to_owned());
        let dir = tokio::task::spawn_blocking(move || Directory::read_only(&store, &own_name)).await??;
        let file = RunFile::read(&dir)?.ok_or_else(|| refused("there is no run in it"))?;
        let features = file.stages.get(Stage::Stream.as_str()).ok_or_else(|| refused("it has no features"))?;
        require_same_features(&features.keys, &model.stream_keys(&ctx.config, Stage::Predict)).map_err(|key| {
            refused(&format!("its head was trained on other features than this run's: `{key}` differs"))
        })?;
        let theirs = match file.stages.get(Stage::Train.as_str()) {
            Some(record) => recorded_split(&dir, record)?,
            None => None,
        };
        // Otherwise the scores of images held out here would favour the classifier.
        if !holds_out(theirs, own_split(ctx, manifest)?) {
            return Err(refused(
                "images that are held out from training here were trained on there: give both \
                 runs the same `run.seed`, and the other run at least the `train.validation_fraction` of this one",
            ));
        }
        let picked = checkpoints::pick(&dir, Pick::Best)?.ok_or_else(|| refused("it has no checkpoint"))?;
        let head = picked.load_classifier().map_err(|error| refused(&chain(&error)))?;
        let texts = StoredClasses::open(&dir)?.read_texts()?;
        if texts.len() != head.classes {
            return Err(refused("its classes are not those of its head"));
        }
        let class_of = texts.iter().map(Into::into).zip(0..).collect();
        Ok(Some(Self { head, class_of }))
    }

    /// Returns the classifier's rows for captions; zero for captions that are not among its classes.
    pub(super) fn rows<'a>(&self, captions: impl ExactSizeIterator<Item = &'a str>) -> ClassifierRows {
        let dim = self.head.dim;
        let mut rows = ClassifierRows { weight: vec![0.0; captions.len() * dim], bias: vec![0.0; captions.len()] };
        for (place, caption) in captions.enumerate() {
            if let Some(class) = self.class_of.get(caption) {
                let class = *class as usize;
                rows.weight[place * dim..(place + 1) * dim]
                    .copy_from_slice(&self.head.weight[class * dim..(class + 1) * dim]);
                rows.bias[place] = self.head.bias[class];
            }
        }
        rows
    }
}

/// Compares the keys of features. The error is the first key that differs.
fn require_same_features(theirs: &StageKeys, own: &StageKeys) -> Result<(), String> {
    let differs = |key: &&String| is_feature_key(key) && theirs.get(*key) != own.get(*key);
    theirs.keys().find(differs).map_or(Ok(()), |key| Err(key.clone()))
}

/// Returns the validation split of this run: from the configuration if the run trains, otherwise from the recorded
/// training.
fn own_split(ctx: &RunContext, manifest: &Manifest) -> Result<Option<ValidationSplit>, PipelineError> {
    if ctx.config.runs(Stage::Train) {
        return Ok(Some(ctx.config.validation_split()));
    }
    manifest.recorded(Stage::Train.as_str()).map_or(Ok(None), |record| recorded_split(&ctx.dir, record))
}

/// Whether another run holds out all images that this run holds out.
fn holds_out(theirs: Option<ValidationSplit>, own: Option<ValidationSplit>) -> bool {
    let Some(own) = own.filter(|split| !split.is_empty()) else { return true };
    theirs.is_some_and(|theirs| theirs.seed == own.seed && theirs.fraction >= own.fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_run_must_hold_out_the_same_images() {
        let split = |seed, fraction| Some(ValidationSplit { seed, fraction });
        assert!(holds_out(None, None) && holds_out(None, split(1, 0.0)));
        assert!(holds_out(split(1, 0.1), split(1, 0.1)) && holds_out(split(1, 0.2), split(1, 0.1)));
        assert!(!holds_out(split(1, 0.05), split(1, 0.1)));
        assert!(!holds_out(split(2, 0.1), split(1, 0.1)));
        assert!(!holds_out(None, split(1, 0.1)));
    }
}
