//! The checked configuration, which later stages believe.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::Value;

use super::bytes::{MAX_VIEWS, StreamBytes, chunk_disk_bytes};
use super::raw::{RawMachine, RawPipeline, RawPredict};
use super::value::{Balance, Classes, Correction, HeadKind, Optimizer, Targets};
use super::{ConfigError, HubName, Problem};

/// A stage that leaves artefacts, in the order in which they depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Classes and the join index.
    Catalog,
    /// Pixel or feature chunks of the training images.
    Stream,
    /// Vectors of the captions.
    Text,
    /// The head's checkpoints.
    Train,
    /// Feature chunks of the test images, and the submission.
    Predict,
}

impl Stage {
    /// All stages, upstream first.
    pub const ALL: [Self; 5] = [Self::Catalog, Self::Stream, Self::Text, Self::Train, Self::Predict];

    /// Name in `run.toml`, on the command line and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Stream => "stream",
            Self::Text => "text",
            Self::Train => "train",
            Self::Predict => "predict",
        }
    }

    /// What recomputing the stage replaces, for a person.
    pub fn artefacts(self) -> &'static str {
        match self {
            Self::Catalog => "classes and join index",
            Self::Stream => "chunks and quarantine",
            Self::Text => "vectors of captions",
            Self::Train => "checkpoints",
            Self::Predict => "test features and submission",
        }
    }
}

/// Dotted key → value as TOML, for every key that a stage's artefacts depend on.
pub type StageKeys = BTreeMap<String, String>;

/// A configuration in which every value is known to be possible.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    pipeline: RawPipeline,
    machine: RawMachine,
    /// Another file for the ranked captions than the one that features are named after.
    output: Option<String>,
}

impl RunConfig {
    /// Checks both files together.
    ///
    /// # Errors
    /// Lists every value that cannot work; nothing is clamped.
    pub fn check(mut pipeline: RawPipeline, machine: RawMachine) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let kind = pipeline.head.kind;
        pipeline.train.iter_mut().for_each(|train| train.settle(kind));
        let mut refuse = |bad: bool, key: &str, what: String| {
            if bad {
                problems.push(Problem::new(key, what));
            }
        };
        check_sections(&pipeline, &mut refuse);
        check_values(&pipeline, &mut refuse);
        check_machine(&machine, &mut refuse);
        if problems.is_empty() { Ok(Self { pipeline, machine, output: None }) } else { Err(ConfigError(problems)) }
    }

    /// What to run.
    pub fn pipeline(&self) -> &RawPipeline {
        &self.pipeline
    }

    /// Where to run it.
    pub fn machine(&self) -> &RawMachine {
        &self.machine
    }

    /// Whether the configuration asks for this stage.
    pub fn runs(&self, stage: Stage) -> bool {
        let pipeline = &self.pipeline;
        match stage {
            Stage::Catalog => pipeline.captions.is_some(),
            Stage::Stream => pipeline.images.is_some(),
            Stage::Text => pipeline.train.is_some() && pipeline.head.kind == HeadKind::Text,
            Stage::Train => pipeline.train.is_some(),
            Stage::Predict => pipeline.predict.is_some(),
        }
    }

    /// Ranks another list of captions, into another file of the run's directory, from the same features.
    ///
    /// # Errors
    /// When the pipeline has no `[predict]`, or a value cannot work.
    pub fn rank(self, captions: Option<String>, output: Option<String>) -> Result<Self, ConfigError> {
        let Self { mut pipeline, machine, .. } = self;
        let Some(predict) = &mut pipeline.predict else {
            return Err(ConfigError(vec![Problem::new("predict", "is required to rank captions")]));
        };
        predict.captions = captions.unwrap_or_else(|| predict.captions.clone());
        if let Some(output) = &output {
            let mut problems = Vec::new();
            check_output(&RawPredict { output: output.clone(), ..predict.clone() }, &mut |bad, key, what| {
                if bad {
                    problems.push(Problem::new(key, what));
                }
            });
            if !problems.is_empty() {
                return Err(ConfigError(problems));
            }
        }
        Ok(Self { output, ..Self::check(pipeline, machine)? })
    }

    /// The file of the ranked captions, inside `run.dir`.
    pub fn output(&self) -> &str {
        let predict = self.pipeline.predict.as_ref();
        self.output.as_deref().or(predict.map(|predict| predict.output.as_str())).unwrap_or_default()
    }

    /// Random parts of each training image; 0 where images stay whole.
    pub fn views(&self) -> u32 {
        let train = self.pipeline.train.as_ref().filter(|_| self.pipeline.model.is_some());
        train.map_or(0, |train| train.views)
    }

    /// Images that a chunk holds, at most, all views counted.
    pub fn chunk_images(&self) -> u32 {
        self.pipeline.chunks.rows.saturating_mul(self.views().max(1))
    }

    /// Bounds that depend on the side of the input square, known once the checkpoint is read.
    ///
    /// A chunk must fit twice into the scratch ring (one is written while one is read), and the stages need room for
    /// a few blocks of rows and one batch.
    pub fn check_bounds(&self, size_px: u32, bytes: StreamBytes) -> Vec<Problem> {
        let mut problems = Vec::new();
        let limits = &self.machine.limits;
        let chunk = chunk_disk_bytes(self.chunk_images(), size_px);
        if self.pipeline.model.is_some() && limits.disk.0 < 2 * chunk {
            problems.push(Problem::new(
                "limits.disk",
                format!(
                    "`{}` is less than two chunks of {} rows at {size_px} px, which take {}; raise it, or lower `chunks.rows`",
                    limits.disk,
                    self.pipeline.chunks.rows,
                    bytesize::ByteSize(2 * chunk)
                ),
            ));
        }
        let floor = bytes.floor();
        if limits.memory.0 < floor {
            problems.push(Problem::new(
                "limits.memory",
                format!(
                    "`{}` is less than the {floor} bytes ({}) that the stages need for one block of rows at {size_px} px with images of up to {} (`preprocess.max_encoded`) and {} pixels (`preprocess.max_pixels`), of which decoding takes {}; raise it, or lower those",
                    limits.memory,
                    bytesize::ByteSize(floor),
                    self.pipeline.preprocess.max_encoded,
                    self.pipeline.preprocess.max_pixels,
                    bytesize::ByteSize(bytes.decoders),
                ),
            ));
        }
        problems
    }

    /// The keys that the artefacts of `stage` itself depend on; those of the stages before it come on top.
    ///
    /// The inputs are not among them: what counts is what they hold, which only whoever lists them can say, and not where.
    pub fn keys(&self, stage: Stage) -> StageKeys {
        let mut keys = StageKeys::new();
        let pipeline = &self.pipeline;
        match stage {
            Stage::Catalog => {
                add(&mut keys, "captions", pipeline.captions.as_ref(), &["list"]);
                add(&mut keys, "pairs", pipeline.pairs.as_ref(), &["shards"]);
            }
            Stage::Stream => {
                add(&mut keys, "images", pipeline.images.as_ref(), &["shards"]);
                add(&mut keys, "preprocess", Some(&pipeline.preprocess), &[]);
                add(&mut keys, "model", pipeline.model.as_ref(), &[]);
                let skipped: &[&str] = if pipeline.model.is_some() { &["compression"] } else { &[] };
                add(&mut keys, "chunks", Some(&pipeline.chunks), skipped);
                if let Some(train) = pipeline.train.as_ref().filter(|_| self.views() > 0) {
                    // They decide which part of an image is seen, and which images stay whole.
                    keys.insert("train.views".to_owned(), train.views.to_string());
                    keys.insert("train.validation_fraction".to_owned(), train.validation_fraction.to_string());
                    keys.insert("run.seed".to_owned(), pipeline.run.seed.to_string());
                }
            }
            Stage::Text => add(&mut keys, "text", pipeline.text.as_ref(), &[]),
            Stage::Train => {
                add(&mut keys, "run", Some(&pipeline.run), &["dir"]);
                add(&mut keys, "head", Some(&pipeline.head), &[]);
                add(&mut keys, "train", pipeline.train.as_ref(), &["checkpoint_every", "log_every"]);
            }
            Stage::Predict => {
                add(
                    &mut keys,
                    "predict",
                    pipeline.predict.as_ref(),
                    &["images", "ids", "truth", "top_k", "checkpoint", "captions", "file_names", "correction", "blend"],
                );
                add(&mut keys, "preprocess", Some(&pipeline.preprocess), &[]);
                add(&mut keys, "model", pipeline.model.as_ref(), &[]);
                add(&mut keys, "chunks", Some(&pipeline.chunks), &["compression"]);
            }
        }
        keys
    }
}

fn add<T: Serialize>(keys: &mut StageKeys, section: &str, value: Option<&T>, skipped: &[&str]) {
    let Some(Value::Table(table)) = value.and_then(|value| Value::try_from(value).ok()) else { return };
    for (name, value) in table {
        if !skipped.contains(&name.as_str()) {
            keys.insert(format!("{section}.{name}"), value.to_string());
        }
    }
}

/// Heads that a sweep may train side by side.
const MAX_TRIALS: usize = 64;

fn check_sections(pipeline: &RawPipeline, refuse: &mut impl FnMut(bool, &str, String)) {
    refuse(pipeline.run.dir.is_empty(), "run.dir", "is required: name the directory that the run writes to".into());
    if let Some(sample) = &pipeline.sample {
        refuse(sample.out.is_empty(), "sample.out", "is required: name the directory to draw the corpus into".into());
        refuse(
            !(40..=1_000_000).contains(&sample.train_images),
            "sample.train_images",
            format!("`{}` must be from 40 to 1000000", sample.train_images),
        );
        refuse(
            !(1..=1_000_000).contains(&sample.test_images),
            "sample.test_images",
            format!("`{}` must be from 1 to 1000000", sample.test_images),
        );
    }
    if let Some(captions) = &pipeline.captions {
        refuse(
            captions.classes == Classes::List && captions.list.is_empty(),
            "captions.list",
            "is required with `classes = \"list\"`: name the CSV file of captions".into(),
        );
        refuse(
            pipeline.pairs.is_none(),
            "pairs",
            "is required with `[captions]`: without it no image has a label".into(),
        );
    }
    if let Some(pairs) = &pipeline.pairs {
        refuse(pairs.shards.is_empty(), "pairs.shards", "names no file".into());
        refuse(
            pipeline.captions.is_none(),
            "captions",
            "is required with `[pairs]`: it says which captions are classes".into(),
        );
    }
    if let Some(images) = &pipeline.images {
        refuse(images.shards.is_empty(), "images.shards", "names no file".into());
    }
    if let Some(model) = &pipeline.model {
        refuse(
            model.checkpoint.is_empty(),
            "model.checkpoint",
            "is required: name a directory in Hugging Face layout, or `hf:ORG/NAME`".into(),
        );
        if let Some(Err(why)) = HubName::parse(&model.checkpoint) {
            refuse(true, "model.checkpoint", why);
        }
    }
    check_text(pipeline, refuse);
    if pipeline.train.is_some() {
        refuse(pipeline.model.is_none(), "model", "is required with `[train]`".into());
        refuse(pipeline.images.is_none(), "images", "is required with `[train]`".into());
        refuse(pipeline.captions.is_none(), "captions", "is required with `[train]`".into());
    }
    if let Some(predict) = &pipeline.predict {
        refuse(pipeline.model.is_none(), "model", "is required with `[predict]`".into());
        refuse(predict.images.is_empty(), "predict.images", "names no file".into());
        refuse(
            predict.ids.is_empty(),
            "predict.ids",
            "is required: name the file with the columns `id` and `image_url`".into(),
        );
        check_output(predict, refuse);
    }
    let something = pipeline.images.is_some() || pipeline.captions.is_some() || pipeline.predict.is_some();
    refuse(!something, "", "the pipeline names no stage: give it `[images]`, `[captions]` or `[predict]`".into());
    for (key, paths) in paths(pipeline) {
        for path in paths {
            let hub = ["model.checkpoint", "text.encoder"].contains(&key) && HubName::parse(path).is_some();
            let Some((scheme, _)) = path.split_once("://").filter(|_| !hub) else { continue };
            let (allowed, what): (&[&str], _) = match key {
                "run.dir" | "predict.blend" => (&["file", "s3", "s3a"], "a local path or an `s3://` URL"),
                "model.checkpoint" | "text.encoder" => (&[], "a local directory or `hf:ORG/NAME`"),
                _ => (
                    &["file", "s3", "s3a", "gs", "az", "azure", "https", "http"],
                    "a local path or a URL of s3, gs, az or https",
                ),
            };
            refuse(!allowed.contains(&scheme), key, format!("`{path}`: it must be {what}"));
        }
    }
}

/// Captions that a text head may tell apart at a time.
const MAX_CONTRASTED: u32 = 16_384;

/// What a text head needs, and what it alone can use.
fn check_text(pipeline: &RawPipeline, refuse: &mut impl FnMut(bool, &str, String)) {
    let is_text = pipeline.head.kind == HeadKind::Text;
    refuse(is_text && pipeline.text.is_none(), "text", "is required with `head.kind = \"text\"`".into());
    if let Some(text) = &pipeline.text {
        refuse(
            text.encoder.is_empty(),
            "text.encoder",
            "is required: name a directory in Hugging Face layout, or `hf:ORG/NAME`".into(),
        );
        if let Some(Err(why)) = HubName::parse(&text.encoder) {
            refuse(true, "text.encoder", why);
        }
    }
    let hidden = pipeline.head.hidden;
    refuse(hidden > 65_536, "head.hidden", format!("`{hidden}` must be at most 65536"));
    let mut only = |used: bool, key: &str| {
        refuse(used && !is_text, key, "has a meaning with `head.kind = \"text\"` alone: remove it, or set that".into());
    };
    only(pipeline.text.is_some(), "text");
    only(hidden > 0, "head.hidden");
    if let Some(predict) = &pipeline.predict {
        only(!predict.captions.is_empty(), "predict.captions");
        only(predict.file_names, "predict.file_names");
        only(predict.correction != Correction::None, "predict.correction");
        only(!predict.blend.is_empty(), "predict.blend");
    }
    let Some(train) = &pipeline.train else { return };
    only(train.balance != Balance::None, "train.balance");
    let (fits, other) = if is_text { (Optimizer::AdamW, "text") } else { (Optimizer::Sgd, "classes") };
    refuse(
        train.optimizer.is_some_and(|optimizer| optimizer != fits),
        "train.optimizer",
        format!("a head of kind `{other}` is trained by `{fits}` alone"),
    );
    if is_text {
        let batch = train.batch_size();
        refuse(
            batch > MAX_CONTRASTED,
            "train.batch_size",
            format!(
                "`{batch}`: a text head takes 32 bytes for each pair of captions in a batch, so at most {MAX_CONTRASTED}; \
                 `train.accumulation` makes steps larger"
            ),
        );
        refuse(train.targets != Targets::Pairs, "train.targets", "a text head is trained on `pairs` alone".into());
        refuse(
            train.label_smoothing != 0.0,
            "train.label_smoothing",
            "has no meaning for a text head: remove it".into(),
        );
    }
}

/// Every key that holds paths, with them.
fn paths(pipeline: &RawPipeline) -> Vec<(&'static str, Vec<&str>)> {
    fn all(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    let mut found = vec![("run.dir", vec![pipeline.run.dir.as_str()])];
    if let Some(captions) = &pipeline.captions {
        found.push(("captions.list", vec![captions.list.as_str()]));
    }
    if let Some(pairs) = &pipeline.pairs {
        found.push(("pairs.shards", all(&pairs.shards)));
    }
    if let Some(images) = &pipeline.images {
        found.push(("images.shards", all(&images.shards)));
    }
    if let Some(model) = &pipeline.model {
        found.push(("model.checkpoint", vec![model.checkpoint.as_str()]));
    }
    if let Some(text) = &pipeline.text {
        found.push(("text.encoder", vec![text.encoder.as_str()]));
    }
    if let Some(predict) = &pipeline.predict {
        found.push(("predict.images", all(&predict.images)));
        found.push(("predict.ids", vec![predict.ids.as_str()]));
        found.push(("predict.truth", vec![predict.truth.as_str()]));
        found.push(("predict.captions", vec![predict.captions.as_str()]));
        found.push(("predict.blend", vec![predict.blend.as_str()]));
    }
    found
}

fn check_output(predict: &RawPredict, refuse: &mut impl FnMut(bool, &str, String)) {
    let output = &predict.output;
    let plain = !output.is_empty()
        && !output.starts_with(['/', '.'])
        && !output.contains(['/', '\\'])
        && std::path::Path::new(output).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
    refuse(
        !plain,
        "predict.output",
        format!("`{output}` must be a plain file name ending in `.csv`: it is written inside `run.dir`"),
    );
    refuse(
        !(1..=1000).contains(&predict.top_k),
        "predict.top_k",
        format!("`{}` must be from 1 to 1000", predict.top_k),
    );
}

fn check_values(pipeline: &RawPipeline, refuse: &mut impl FnMut(bool, &str, String)) {
    let preprocess = &pipeline.preprocess;
    if let Some(size) = preprocess.size_px {
        refuse(!(8..=4096).contains(&size), "preprocess.size_px", format!("`{size}` must be from 8 to 4096"));
    }
    let encoded = preprocess.max_encoded;
    refuse(
        !(1 << 10..=1 << 30).contains(&encoded.0),
        "preprocess.max_encoded",
        format!("`{encoded}` must be from 1 KiB to 1 GiB"),
    );
    refuse(
        !(1..=4_000_000_000).contains(&preprocess.max_pixels),
        "preprocess.max_pixels",
        format!("`{}` must be from 1 to 4000000000", preprocess.max_pixels),
    );
    let rows = pipeline.chunks.rows;
    refuse(!(1..=1_000_000).contains(&rows), "chunks.rows", format!("`{rows}` must be from 1 to 1000000"));
    let Some(train) = &pipeline.train else { return };
    for (key, value) in [
        ("train.epochs", u64::from(train.epochs)),
        ("train.batch_size", u64::from(train.batch_size())),
        ("train.accumulation", u64::from(train.accumulation)),
        ("train.shuffle_rows", train.shuffle_rows),
        ("train.log_every", u64::from(train.log_every)),
    ] {
        refuse(value == 0, key, "`0` must be at least 1".into());
    }
    let mut number = |key: &str, value: f64, good: bool, range: &str| {
        refuse(!good, key, format!("`{value}` must be {range}"));
    };
    for rate in train.learning_rate.iter().flat_map(|rates| &rates.0) {
        number("train.learning_rate", *rate, rate.is_finite() && *rate > 0.0, "a number over 0");
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
    let held = train.validation_fraction;
    number("train.validation_fraction", held, (0.0..1.0).contains(&held), "from 0 to below 1");
    refuse(train.views > MAX_VIEWS, "train.views", format!("`{}` must be at most {MAX_VIEWS}", train.views));
    refuse(train.checkpoint_every.0.is_zero(), "train.checkpoint_every", "must be longer than zero".into());
    for (key, list) in [
        ("train.learning_rate", train.learning_rate.as_ref()),
        ("train.momentum", Some(&train.momentum)),
        ("train.weight_decay", Some(&train.weight_decay)),
    ] {
        refuse(
            list.is_some_and(|list| list.0.is_empty()),
            key,
            "an empty list: give one number, or several to try".into(),
        );
    }
    let trials = train.trials().len();
    refuse(
        trials > MAX_TRIALS,
        "train.learning_rate",
        format!("the lists give {trials} combinations, more than {MAX_TRIALS}: shorten one"),
    );
    refuse(
        trials > 1 && held == 0.0,
        "train.validation_fraction",
        "`0` leaves nothing to choose the best of several heads by: hold some images out".into(),
    );
}

fn check_machine(machine: &RawMachine, refuse: &mut impl FnMut(bool, &str, String)) {
    let limits = &machine.limits;
    refuse(limits.cpu_workers > 1024, "limits.cpu_workers", format!("`{}` must be at most 1024", limits.cpu_workers));
    refuse(
        !(limits.max_bad_fraction > 0.0 && limits.max_bad_fraction <= 1.0),
        "limits.max_bad_fraction",
        format!("`{}` must be over 0 and at most 1", limits.max_bad_fraction),
    );
    let batch = machine.device.batch_size;
    refuse(batch > 65_536, "device.batch_size", format!("`{batch}` must be at most 65536"));
    let endpoint = &machine.store.endpoint;
    refuse(
        !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://"),
        "store.endpoint",
        format!("`{endpoint}` must be a URL that starts with `https://` or `http://`"),
    );
    refuse(machine.store.patience.0.is_zero(), "store.patience", "must be longer than zero".into());
    refuse(machine.store.silence.0.is_zero(), "store.silence", "must be longer than zero".into());
    refuse(
        machine.scratch.dir.contains("://"),
        "scratch.dir",
        format!("`{}` must be a path on a local disk", machine.scratch.dir),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn problems(pipeline: &str, machine: &str) -> String {
        RunConfig::check(config::pipeline(pipeline).unwrap(), config::machine(machine).unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = problems(
            "[captions]\n[images]\n[chunks]\nrows = 0\n[train]\nepochs = 0\nlearning_rate = -1.0\nmomentum = 1.0\n",
            "[limits]\nmax_bad_fraction = 0.0\n",
        );
        for key in [
            "run.dir",
            "captions.list",
            "`pairs`",
            "images.shards",
            "chunks.rows",
            "`model`",
            "train.epochs",
            "train.learning_rate",
            "train.momentum",
            "limits.max_bad_fraction",
        ] {
            assert!(text.contains(key), "{key} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_submission_never_leaves_the_run_directory() {
        for output in ["/tmp/x.csv", "../x.csv", "a/b.csv", "x.txt", ""] {
            let text = problems(
                &format!(
                    "[run]\ndir='r'\n[model]\ncheckpoint='m'\n[predict]\nimages=['i']\nids='t'\noutput='{output}'\n"
                ),
                "",
            );
            assert!(text.contains("predict.output"), "{output}: {text}");
        }
    }

    #[test]
    fn a_checkpoint_is_a_directory_or_a_well_formed_name_on_the_hub() {
        let pipeline =
            |checkpoint: &str| format!("[run]\ndir='r'\n[images]\nshards=['i']\n[model]\ncheckpoint='{checkpoint}'\n");
        for checkpoint in ["models/vit", "hf:google/vit-base@main", "hf:gpt2"] {
            let raw = config::pipeline(&pipeline(checkpoint)).unwrap();
            RunConfig::check(raw, RawMachine::default()).unwrap();
        }
        for checkpoint in ["hf:a/b/c", "hf://google/vit", "s3://bucket/vit"] {
            let text = problems(&pipeline(checkpoint), "");
            assert!(
                text.starts_with(&format!("`model.checkpoint`: `{checkpoint}`")) && text.lines().count() == 1,
                "{text}"
            );
        }
    }

    #[test]
    fn a_disk_limit_under_two_chunks_is_refused() {
        let raw = config::pipeline("[run]\ndir='r'\n[images]\nshards=['i']\n[model]\ncheckpoint='m'\n").unwrap();
        let machine = config::machine("[limits]\ndisk = '512 MiB'\n").unwrap();
        let plan = RunConfig::check(raw, machine).unwrap();
        let bytes = StreamBytes::new(224, 32 << 20, 256 << 20, 2048);
        assert!(plan.check_bounds(224, bytes)[0].to_string().contains("`limits.disk`"));
        assert!(plan.check_bounds(64, bytes).is_empty());
    }

    #[test]
    fn limits_and_workers_are_no_part_of_any_generation() {
        let raw = config::pipeline("[run]\ndir='r'\n[images]\nshards=['i']\n").unwrap();
        let plan = RunConfig::check(raw, RawMachine::default()).unwrap();
        for stage in Stage::ALL {
            assert!(plan.keys(stage).keys().all(|key| !key.starts_with("limits") && key != "run.dir"));
        }
        // What the inputs hold counts, and not where they are.
        assert!(plan.keys(Stage::Stream).keys().all(|key| key != "images.shards"));
    }
}
