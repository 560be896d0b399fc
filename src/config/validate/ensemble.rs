//! Heads that score together: `head.per_layer`, `head.seeds` and `head.weights`.

use super::super::raw::{RawHead, RawTrain};
use super::super::value::Count;
use super::Problems;
use super::train::{MAX_TRIALS, Trial};
use crate::types::{HeadKind, HeadMethod, MemberWeights};

/// Heads that score together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnsembleConfig {
    /// True if each block of `model.layer` has heads of its own.
    pub per_layer: bool,
    /// Blocks with heads of their own; 1 if a head reads all.
    pub layers: usize,
    /// Random starts of each head that is trained step by step.
    pub seeds: u32,
    /// How their weights are found.
    pub weights: MemberWeights,
}

/// Checks the keys of heads that score together; `None` for a single head or a sweep.
pub(super) fn check_ensemble(head: &RawHead, layers: usize, problems: &mut Problems) -> Option<EnsembleConfig> {
    let RawHead { kind, method, per_layer, seeds: Count(seeds), weights, .. } = *head;
    let mut refuse = |is_wrong: bool, key: &str, what: &str| problems.refuse_if(is_wrong, key, what);
    let is_text = kind == HeadKind::Text;
    refuse(per_layer && !is_text, "head.per_layer", "works only with `head.kind = \"text\"`: remove it");
    refuse(
        per_layer && is_text && layers < 2,
        "head.per_layer",
        "needs a list of at least two blocks in `model.layer`, such as `[7, 9, 11]`",
    );
    let trained = is_text && matches!(method, HeadMethod::Sgd | HeadMethod::Auto);
    refuse(
        seeds != 1 && !trained,
        "head.seeds",
        "works only with `head.kind = \"text\"` and heads that are trained step by step (`head.method = \"sgd\"`): remove it",
    );
    refuse(!(1..=16).contains(&seeds), "head.seeds", "must be from 1 to 16");
    let is_ensemble = is_text && (per_layer && layers > 1 || seeds > 1);
    refuse(
        weights != MemberWeights::Equal && !is_ensemble,
        "head.weights",
        "needs several heads: set `head.per_layer` or `head.seeds`, or remove it",
    );
    let layers = if per_layer { layers } else { 1 };
    is_ensemble.then_some(EnsembleConfig { per_layer, layers, seeds: seeds.clamp(1, 16), weights })
}

/// Returns the settings of each head, which are all the same.
pub(super) fn expand_trials(
    trials: &[Trial],
    ensemble: EnsembleConfig,
    train: &RawTrain,
    problems: &mut Problems,
) -> Vec<Trial> {
    let EnsembleConfig { layers, seeds, weights, .. } = ensemble;
    problems.refuse_if(
        trials.len() > 1,
        "train.learning_rate",
        "a list does not go with `head.per_layer` or `head.seeds`, whose heads differ in layer and start alone: give one number",
    );
    let heads = layers * seeds as usize;
    problems.refuse_if(
        heads > MAX_TRIALS,
        "head.seeds",
        format!("`{seeds}` starts for {layers} layers are more than {MAX_TRIALS} heads: lower it"),
    );
    problems.refuse_if(
        weights == MemberWeights::HeldOut && train.validation_fraction == 0.0,
        "head.weights",
        "`held-out` needs images held out for validation: set `train.validation_fraction` over 0, or `equal`",
    );
    vec![trials.first().copied().unwrap_or_default(); heads.min(MAX_TRIALS)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile, RunConfig};

    #[test]
    fn heads_that_score_together_differ_in_layer_and_seed() {
        let base = "[run]\ndir='r'\n[captions]\nlist='l'\n[pairs]\nshards=['p']\n[images]\nshards=['i']\n[text]\nencoder='e'\n";
        let parse = |model: &str, head: &str, train: &str| {
            let text = format!("{base}[model]\ncheckpoint='m'\n{model}\n[head]\n{head}\n[train]\n{train}\n");
            RunConfig::check(PipelineFile::parse(&text).unwrap(), &MachineFile::default())
        };
        let config = parse("layer=[7, 9, 11]", "kind='text'\nper_layer=true\nseeds=2\nweights='held-out'", "").unwrap();
        let train = config.train().unwrap();
        let ensemble = EnsembleConfig { per_layer: true, layers: 3, seeds: 2, weights: MemberWeights::HeldOut };
        assert_eq!((train.ensemble, train.trials.len()), (Some(ensemble), 6));
        assert_eq!(parse("", "kind='text'\nseeds=1", "").unwrap().train().unwrap().ensemble, None);
        for (model, head, train, expected) in [
            ("", "kind='text'\nper_layer=true", "", "`head.per_layer`: needs a list of at least two blocks"),
            ("layer=[1, 2]", "per_layer=true", "", "`head.per_layer`: works only with"),
            ("", "kind='text'\nmethod='cca'\nseeds=3", "", "`head.seeds`: works only with"),
            ("", "kind='text'\nseeds=0", "", "`head.seeds`: must be from 1 to 16"),
            ("", "kind='text'\nweights='held-out'", "", "`head.weights`: needs several heads"),
            (
                "",
                "kind='text'\nseeds=2\nweights='held-out'",
                "validation_fraction=0",
                "`head.weights`: `held-out` needs",
            ),
            ("", "kind='text'\nseeds=2", "learning_rate=[0.1, 0.2]", "`train.learning_rate`: a list does not go with"),
            (
                "layer=[1,2,3,4,5]",
                "kind='text'\nper_layer=true\nseeds=16",
                "",
                "`head.seeds`: `16` starts for 5 layers",
            ),
            ("", "method='auto'", "", "`head.method`: `auto` works only with"),
        ] {
            let text = parse(model, head, train).unwrap_err().to_string();
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
    }
}
