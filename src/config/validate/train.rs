//! Training of the head: `[train]`, and the keys of `[head]` that it follows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::bytes::MAX_VIEWS;
use super::super::raw::{RawHead, RawTrain};
use super::super::value::{EventFolder, Temperature};
use super::Problems;
use super::ensemble::{EnsembleConfig, check_ensemble, expand_trials};
use crate::types::{Balance, HeadKind, HeadMethod, Optimizer, ScheduleKind, TargetKind};

/// Upper bound on the heads that a sweep trains side by side.
pub(super) const MAX_TRIALS: usize = 64;
/// Upper bound on the captions that a text head tells apart in one batch.
const MAX_CONTRASTED: u32 = 16_384;

/// Checked `[train]`, with the defaults of the head's kind filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Method of training.
    pub method: HeadMethod,
    /// Fixed temperature of the contrastive loss; `None` if it is learned.
    pub temperature: Option<f64>,
    /// Share of the projection's inputs that are dropped in each step, from 0 to below 1.
    pub dropout: f64,
    /// Heads that score together; `None` for a single head or a sweep.
    pub ensemble: Option<EnsembleConfig>,
    /// Passes over the training samples; at least 1.
    pub epochs: u32,
    /// Meaning of a sample.
    pub targets: TargetKind,
    /// Share of each target that is spread over all classes, from 0 to below 1.
    pub label_smoothing: f64,
    /// Random crops of each training image; 0 where images stay whole.
    pub views: u32,
    /// Samples in one forward pass of the head; at least 1.
    pub batch_size: u32,
    /// Batches whose gradients are averaged into one step; at least 1.
    pub accumulation: u32,
    /// Heads to train side by side; at least one.
    pub trials: Vec<Trial>,
    /// Resampling of training pairs.
    pub balance: Balance,
    /// Global norm that gradients are scaled down to; 0 for off.
    pub clip_norm: f64,
    /// Share of all steps over which the rate rises to its peak, from 0 to 1.
    pub warmup_ratio: f64,
    /// Shape of the learning rate after the warm-up.
    pub schedule: ScheduleKind,
    /// Share of the images held out for validation, from 0 to below 1.
    pub validation_fraction: f64,
    /// Samples that are shuffled together; at least 1.
    pub shuffle_rows: u64,
    /// Steps between two loss values in the report; at least 1.
    pub log_every: u32,
    /// Time between two checkpoints; longer than zero.
    pub checkpoint_every: Duration,
    /// Folder of the event files for TensorBoard.
    pub tensorboard: EventFolder,
}

impl TrainConfig {
    /// Returns the upper bound on the vectors that a caption is compared by: each head by canonical correlation has a map of
    /// captions of its own.
    pub fn caption_blocks(&self) -> usize {
        let is_mapped = matches!(self.method, HeadMethod::Cca | HeadMethod::Auto);
        self.ensemble.filter(|_| is_mapped).map_or(1, |ensemble| ensemble.layers)
    }
}

/// One combination of the values that a sweep varies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Momentum.
    pub momentum: f64,
    /// L2 penalty.
    pub weight_decay: f64,
}

/// Checks `[train]`, and fills in the defaults that depend on the kind of head.
///
/// `layers` is the number of blocks in `model.layer`.
pub(in super::super) fn check_train(
    train: &mut RawTrain,
    head: &RawHead,
    layers: usize,
    problems: &mut Problems,
) -> TrainConfig {
    let (kind, method) = (head.kind, head.method);
    let (optimizer, batch_size, rate) = optimiser_defaults(kind);
    let temperature = check_loss(head, problems);
    let ensemble = check_ensemble(head, layers, problems);
    if !matches!(method, HeadMethod::Sgd | HeadMethod::Auto) {
        check_closed_form(train, head, problems);
    }
    let batch_size = *train.batch_size.get_or_insert(batch_size);
    let chosen = *train.optimizer.get_or_insert(optimizer);
    problems.refuse_if(
        chosen != optimizer,
        "train.optimizer",
        format!("`{chosen}` cannot train a head of kind `{kind}`: use `{optimizer}`, or remove the key"),
    );
    let rates = train.learning_rate.get_or_insert_with(|| rate.into()).0.clone();
    if kind == HeadKind::Text {
        check_contrastive(train, batch_size, problems);
    }
    for (key, value) in [
        ("train.epochs", u64::from(train.epochs)),
        ("train.batch_size", u64::from(batch_size)),
        ("train.accumulation", u64::from(train.accumulation)),
        ("train.shuffle_rows", train.shuffle_rows),
        ("train.log_every", u64::from(train.log_every)),
    ] {
        problems.refuse_if(value == 0, key, "`0` must be at least 1");
    }
    check_numbers(train, &rates, problems);
    let mut trials = trials(&rates, &train.momentum.0, &train.weight_decay.0);
    problems.refuse_if(
        trials.len() > MAX_TRIALS,
        "train.learning_rate",
        format!("the lists give {} combinations, more than {MAX_TRIALS}: shorten one", trials.len()),
    );
    problems.refuse_if(
        trials.len() > 1 && train.validation_fraction == 0.0,
        "train.validation_fraction",
        "`0` holds out no image to choose the best of several heads by: set a share over 0",
    );
    if let Some(ensemble) = ensemble {
        trials = expand_trials(&trials, ensemble, train, problems);
    }
    TrainConfig {
        method,
        temperature,
        dropout: head.dropout,
        ensemble,
        epochs: train.epochs,
        targets: train.targets,
        label_smoothing: train.label_smoothing,
        views: train.views,
        batch_size,
        accumulation: train.accumulation,
        trials,
        balance: train.balance,
        clip_norm: train.clip_norm,
        warmup_ratio: train.warmup_ratio,
        schedule: train.schedule,
        validation_fraction: train.validation_fraction,
        shuffle_rows: train.shuffle_rows,
        log_every: train.log_every,
        checkpoint_every: train.checkpoint_every.0,
        tensorboard: train.tensorboard.clone(),
    }
}

/// Checks temperature and dropout of a contrastive loss. Returns the temperature if it is fixed.
fn check_loss(head: &RawHead, problems: &mut Problems) -> Option<f64> {
    let is_contrastive = head.kind == HeadKind::Text && matches!(head.method, HeadMethod::Sgd | HeadMethod::Auto);
    problems.refuse_if(
        head.method == HeadMethod::Auto && head.kind != HeadKind::Text,
        "head.method",
        "`auto` works only with `head.kind = \"text\"`: name another method, or set that",
    );
    let needs = "works only with `head.kind = \"text\"` and `head.method = \"sgd\"`: remove it";
    problems.refuse_if(head.temperature != Temperature::Learned && !is_contrastive, "head.temperature", needs);
    problems.refuse_if(head.dropout != 0.0 && !is_contrastive, "head.dropout", needs);
    let dropout = head.dropout;
    let good = (0.0..1.0).contains(&dropout);
    problems.refuse_if(!good, "head.dropout", format!("`{dropout}` must be from 0 to below 1"));
    match head.temperature {
        Temperature::Learned => None,
        Temperature::Fixed(number) => {
            let good = (0.01..=10.0).contains(&number);
            problems.refuse_if(
                !good,
                "head.temperature",
                format!("`{number}` must be from 0.01 to 10, or \"learned\""),
            );
            Some(number)
        }
    }
}

/// Returns optimiser, batch size and learning rate of a kind of head.
fn optimiser_defaults(kind: HeadKind) -> (Optimizer, u32, f64) {
    match kind {
        HeadKind::Classes => (Optimizer::Sgd, 128, 5e-5),
        // A paired head is refused elsewhere.
        HeadKind::Text | HeadKind::Paired => (Optimizer::AdamW, 1024, 1e-3),
    }
}

/// Checks what a head in closed form excludes. Defaults have no effect, and a stored configuration has them filled in.
fn check_closed_form(train: &RawTrain, head: &RawHead, problems: &mut Problems) {
    let method = format!("`head.method = \"{}\"`", head.method);
    problems.refuse_if(
        head.method == HeadMethod::Cca && head.kind == HeadKind::Classes,
        "head.method",
        "`cca` needs captions with vectors: use `ridge`, or set `head.kind = \"text\"`",
    );
    let mut unused = |used: bool, key: &str| {
        problems.refuse_if(used, key, format!("does not work with {method}: remove it"));
    };
    unused(head.hidden > 0, "head.hidden");
    let (optimizer, batch_size, rate) = optimiser_defaults(head.kind);
    unused(train.batch_size.is_some_and(|own| own != batch_size), "train.batch_size");
    unused(train.learning_rate.as_ref().is_some_and(|own| *own != rate.into()), "train.learning_rate");
    unused(train.optimizer.is_some_and(|own| own != optimizer), "train.optimizer");
    unused(train.momentum.0.len() > 1, "train.momentum");
    unused(train.weight_decay.0.len() > 1, "train.weight_decay");
    unused(train.balance != Balance::None, "train.balance");
    unused(train.label_smoothing != 0.0, "train.label_smoothing");
    unused(train.tensorboard != EventFolder::default(), "train.tensorboard");
}

/// Checks what a text head alone restricts.
fn check_contrastive(train: &RawTrain, batch_size: u32, problems: &mut Problems) {
    problems.refuse_if(
        batch_size > MAX_CONTRASTED,
        "train.batch_size",
        format!(
            "`{batch_size}` must be at most {MAX_CONTRASTED} for a text head, which needs 16 bytes for each pair of captions in \
             a batch; raise `train.accumulation` for larger steps"
        ),
    );
    problems.refuse_if(train.targets != TargetKind::Pairs, "train.targets", "must be `pairs` for a text head");
    problems.refuse_if(
        train.label_smoothing != 0.0,
        "train.label_smoothing",
        "does not work with a text head: remove it",
    );
}

fn check_numbers(train: &RawTrain, rates: &[f64], problems: &mut Problems) {
    let mut number = |key: &str, value: f64, good: bool, range: &str| {
        problems.refuse_if(!good, key, format!("`{value}` must be {range}"));
    };
    for rate in rates {
        number("train.learning_rate", *rate, rate.is_finite() && *rate > 0.0, "over 0");
    }
    for momentum in &train.momentum.0 {
        number("train.momentum", *momentum, (0.0..1.0).contains(momentum), "from 0 to below 1");
    }
    for decay in &train.weight_decay.0 {
        number("train.weight_decay", *decay, decay.is_finite() && *decay >= 0.0, "0 or more");
    }
    let smoothing = train.label_smoothing;
    number("train.label_smoothing", smoothing, (0.0..1.0).contains(&smoothing), "from 0 to below 1");
    number("train.clip_norm", train.clip_norm, train.clip_norm.is_finite() && train.clip_norm >= 0.0, "0 or more");
    number("train.warmup_ratio", train.warmup_ratio, (0.0..=1.0).contains(&train.warmup_ratio), "from 0 to 1");
    let held_out = train.validation_fraction;
    number("train.validation_fraction", held_out, (0.0..1.0).contains(&held_out), "from 0 to below 1");
    problems.refuse_if(
        train.views > MAX_VIEWS,
        "train.views",
        format!("`{}` must be at most {MAX_VIEWS}", train.views),
    );
    problems.refuse_if(train.checkpoint_every.0.is_zero(), "train.checkpoint_every", "`0s` must be longer than zero");
    for (key, list) in [
        ("train.learning_rate", rates),
        ("train.momentum", &train.momentum.0),
        ("train.weight_decay", &train.weight_decay.0),
    ] {
        problems.refuse_if(list.is_empty(), key, "is an empty list: give one number, or several to try");
    }
}

/// Returns every combination, the last argument varying fastest.
fn trials(rates: &[f64], momenta: &[f64], decays: &[f64]) -> Vec<Trial> {
    let with_rate = |learning_rate: f64| {
        momenta.iter().flat_map(move |&momentum| {
            decays.iter().map(move |&weight_decay| Trial { learning_rate, momentum, weight_decay })
        })
    };
    rates.iter().flat_map(|&rate| with_rate(rate)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile, RunConfig};

    #[test]
    fn defaults_follow_the_kind_of_head() {
        for (kind, batch_size, rate) in [(HeadKind::Classes, 128, 5e-5), (HeadKind::Text, 1024, 1e-3)] {
            let (mut raw, mut problems) = (RawTrain::default(), Problems::default());
            let head = RawHead { kind, ..RawHead::default() };
            let train = check_train(&mut raw, &head, 1, &mut problems);
            assert!(problems.into_result(()).is_ok());
            assert_eq!((train.batch_size, raw.batch_size), (batch_size, Some(batch_size)));
            assert_eq!(train.trials, [Trial { learning_rate: rate, momentum: 0.9, weight_decay: 0.0 }]);
        }
    }

    #[test]
    fn closed_form_excludes_the_keys_of_the_optimiser() {
        let text = "[run]\ndir='r'\n[captions]\nlist='l'\n[pairs]\nshards=['p']\n[images]\nshards=['i']\n[model]\ncheckpoint='m'\n";
        let parse = |head: &str| {
            let file = PipelineFile::parse(&format!("{text}{head}")).unwrap();
            RunConfig::check(file, &MachineFile::default())
        };
        let config = parse("[head]\nmethod='ridge'\n[train]\nviews=2\n").unwrap();
        let stored = RunConfig::check(PipelineFile::from(config.stored()), &MachineFile::default()).unwrap();
        assert_eq!(stored.train(), config.train(), "a stored configuration has its defaults filled in");
        assert_eq!(config.train().unwrap().method, HeadMethod::Ridge);
        let keys = "[train]\nlearning_rate=0.1\nbatch_size=9\nlabel_smoothing=0.1\nmomentum=[0.1, 0.2]\n";
        let refused = parse(&format!("[head]\nmethod='cca'\n{keys}")).unwrap_err().to_string();
        let loss = parse("[head]\ntemperature=0.001\ndropout=1.0\n[train]\n").unwrap_err().to_string();
        assert!(loss.contains("`head.temperature`: works only") && loss.contains("must be from 0.01 to 10"), "{loss}");
        assert!(loss.contains("`head.dropout`: `1` must be from 0 to below 1"), "{loss}");
        for key in ["head.method", "train.learning_rate", "train.batch_size", "train.label_smoothing", "train.momentum"]
        {
            assert!(refused.contains(&format!("`{key}`")), "{key} is missing in:\n{refused}");
        }
    }

    #[test]
    fn last_list_of_a_sweep_varies_fastest() {
        let trials = trials(&[1.0, 2.0], &[0.5], &[0.0, 0.1]);
        let pairs: Vec<_> = trials.iter().map(|trial| (trial.learning_rate, trial.weight_decay)).collect();
        assert_eq!(pairs, [(1.0, 0.0), (1.0, 0.1), (2.0, 0.0), (2.0, 0.1)]);
    }
}
