//! What would run, on what, and what it needs, from the configuration and the heads of the inputs; changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::stream::{FEED_BYTES, fill};
use super::{PipelineError, chain, generation, preprocess, resolve, store, workers};
use crate::catalog::{ClassSource, Classes, Match};
use crate::chunk::pixels::image_bytes;
use crate::config::RunConfig;
use crate::config::bytes::chunk_disk_bytes;
use crate::config::plan::Stage;
use crate::config::value::{Classes as ClassesWord, MatchRule};
use crate::corpus::{CaptionList, ImageRow, ImageRows, PairRow, Pairs, PushParser, TestIds};
use crate::decode::Decoder;
use crate::objects::{Object, Reader, Store};
use crate::run_dir::Directory;

/// Unpacked bytes that are read of each input.
const HEAD_BYTES: usize = 8 << 20;
/// Images of the first shard that are decoded.
const SAMPLE_IMAGES: usize = 64;
/// Longest row that is read.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// The outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Check {
    /// Stages that would run, with what the run directory already holds.
    pub stages: Vec<String>,
    /// Key → files and bytes.
    pub inputs: BTreeMap<String, String>,
    /// What the run needs.
    pub needs: BTreeMap<String, String>,
    /// What a sample of the inputs shows.
    pub sample: BTreeMap<String, String>,
    /// Everything that is wrong.
    pub problems: Vec<String>,
    /// Exit code of the gravest problem; 0 where there is none.
    pub exit_code: u8,
}

impl Check {
    fn problem(&mut self, error: &PipelineError) {
        self.problems.push(chain(error));
        self.exit_code = self.exit_code.max(error.exit_code());
    }

    /// Keeps a result, or its error.
    fn keep<T>(&mut self, result: Result<T, PipelineError>) -> Option<T> {
        result.map_err(|error| self.problem(&error)).ok()
    }
}

/// The stages that would run, each with whether the run directory has something of it.
fn stages(plan: &RunConfig, recorded: Option<&generation::RunFile>) -> Vec<String> {
    let state = |stage: Stage| {
        let own = |name: &String| name.split(' ').next() == Some(stage.as_str());
        let known = recorded.is_some_and(|file| file.stages.keys().any(own));
        if known { "goes on with what the run directory holds" } else { "new" }
    };
    let runs = Stage::ALL.into_iter().filter(|stage| plan.runs(*stage));
    runs.map(|stage| format!("{} ({})", stage.as_str(), state(stage))).collect()
}

/// Checks a plan against the heads of its inputs.
pub async fn check(plan: &RunConfig) -> Check {
    let mut check = Check::default();
    let pipeline = plan.pipeline();
    let store = store(&plan.machine().store);
    let directory = Directory::at(&store, &pipeline.run.dir).map_err(PipelineError::from);
    let recorded = check.keep(directory.and_then(|directory| generation::read(&directory))).flatten();
    check.stages = stages(plan, recorded.as_ref());
    let mut lists = BTreeMap::new();
    let patterns = [
        ("pairs.shards", pipeline.pairs.as_ref().map(|pairs| pairs.shards.clone())),
        ("images.shards", pipeline.images.as_ref().map(|images| images.shards.clone())),
        ("predict.images", pipeline.predict.as_ref().map(|predict| predict.images.clone())),
    ];
    for (key, patterns) in patterns {
        let Some(patterns) = patterns else { continue };
        let listed = store.list(&patterns).await.map_err(PipelineError::from);
        if let Some(objects) = check.keep(listed) {
            let bytes = objects.iter().map(|object| object.size).sum();
            check.inputs.insert(key.to_owned(), format!("{} files, {}", objects.len(), bytesize::ByteSize(bytes)));
            lists.insert(key, objects);
        }
    }
    let here = checkpoint(plan, &store, &mut check).await;
    let waits = here.is_none();
    let mut device = waits;
    let spec = here.and_then(|snapshot| check.keep(resolve(plan, snapshot))).map(|(spec, backbone)| {
        if let Some(backbone) = &backbone {
            check.needs.insert("model".to_owned(), of_model(backbone));
            device = true;
        }
        spec
    });
    encoder(plan, &store, &mut check).await;
    if device && let Some(chosen) = check.keep(super::worker::choose(&plan.machine().device).await) {
        check.needs.insert("device".to_owned(), chosen.to_string());
    }
    let limits = &plan.machine().limits;
    check.needs.insert("memory in flight".to_owned(), format!("up to {}", limits.memory));
    check.needs.insert("decoding threads".to_owned(), workers(plan).to_string());
    if let Some(spec) = &spec {
        let (size_px, rows) = (spec.geometry.output_px(), plan.chunk_images());
        check.needs.insert("input square".to_owned(), format!("{size_px} × {size_px} px"));
        let chunk = bytesize::ByteSize(chunk_disk_bytes(rows, size_px));
        let scratch = if pipeline.model.is_some() {
            format!("up to {} for the ring; a chunk of {rows} images takes up to {chunk}", limits.disk)
        } else {
            "none: the chunks are the product".to_owned()
        };
        check.needs.insert("scratch disk".to_owned(), scratch);
    }
    // The images can be looked at before it is known what the checkpoint asks for.
    let spec = spec.or_else(|| waits.then(|| preprocess::resolve(plan, preprocess::Asked::default())));
    if let Some(spec) = &spec {
        let size_px = spec.geometry.output_px();
        for key in ["images.shards", "predict.images"] {
            if let Some(shard) = lists.get(key).and_then(|objects: &Vec<Object>| objects.first()) {
                let sampled = sample_images(&store, shard, spec.clone()).await;
                if let Some((text, per_row)) = check.keep(sampled) {
                    check.sample.insert(key.to_owned(), text);
                    if pipeline.model.is_none() && key == "images.shards" {
                        let bytes: u64 = lists[key].iter().map(|object| object.size).sum();
                        let images = bytes as f64 / per_row.max(1.0);
                        let disk = bytesize::ByteSize((images * image_bytes(size_px) as f64) as u64);
                        check.needs.insert(
                            "run directory".to_owned(),
                            format!("about {disk} of pixels, if every image is wanted"),
                        );
                    }
                }
            }
        }
    }
    if let Some(shard) = lists.get("pairs.shards").and_then(|objects| objects.first()) {
        let sampled = sample_labels(&store, plan, shard).await;
        if let Some(text) = check.keep(sampled) {
            check.sample.insert("pairs.shards".to_owned(), text);
        }
    }
    if let Some(predict) = &pipeline.predict {
        let sampled = sample_ids(&store, &predict.ids).await;
        if let Some(text) = check.keep(sampled) {
            check.sample.insert("predict.ids".to_owned(), text);
        }
        if !predict.truth.is_empty() {
            check.keep(super::prediction::check_truth(&store, &predict.truth).await);
        }
    }
    check
}

fn of_model(backbone: &super::Backbone) -> String {
    let checkpoint = &backbone.checkpoint;
    format!(
        "{:?}, {} parameters, {} of weights, feature of {} values",
        checkpoint.family(),
        checkpoint.parameters(),
        bytesize::ByteSize(checkpoint.weight_bytes()),
        backbone.shape.dim
    )
}

/// Where the plan's checkpoint is if it is one of the hub's; `None` where it is not here yet.
async fn checkpoint(plan: &RunConfig, store: &Store, check: &mut Check) -> Option<Option<std::path::PathBuf>> {
    match check.keep(super::hub::look(plan, super::hub::Which::Backbone, store).await)? {
        None => Some(None),
        Some(Ok(snapshot)) => Some(Some(snapshot)),
        Some(Err(missing)) => {
            let files = missing.files.join(", ");
            let (bytes, cache) = (bytesize::ByteSize(missing.bytes), missing.cache.display());
            check.needs.insert("download".to_owned(), format!("{bytes} of the checkpoint into `{cache}`: {files}"));
            None
        }
    }
}

/// What the text encoder is, and the list that it is for.
async fn encoder(plan: &RunConfig, store: &Store, check: &mut Check) {
    use super::hub::Which;
    let Some(text) = plan.pipeline().text.clone() else { return };
    let snapshot = match check.keep(super::hub::look(plan, Which::Encoder, store).await) {
        None => return,
        Some(None) => None,
        Some(Some(Ok(snapshot))) => Some(snapshot),
        Some(Some(Err(missing))) => {
            let (files, bytes) = (missing.files.join(", "), bytesize::ByteSize(missing.bytes));
            let what = format!("{bytes} to download into `{}`: {files}", missing.cache.display());
            check.needs.insert("text encoder".to_owned(), what);
            return;
        }
    };
    if let Some(encoder) = check.keep(super::texts::Encoder::open(&text, snapshot)) {
        let checkpoint = &encoder.checkpoint;
        let what = format!(
            "{} parameters beside the words, vectors of {} values in {}, captions of up to {} tokens",
            checkpoint.parameters(),
            checkpoint.dim(),
            encoder.precision,
            checkpoint.max_tokens()
        );
        check.needs.insert("text encoder".to_owned(), what);
    }
    let Some(predict) = plan.pipeline().predict.as_ref().filter(|predict| !predict.captions.is_empty()) else { return };
    let mut captions = Classes::new(ClassSource::List, Match::Exact);
    if check.keep(super::catalog::read_list(store, &predict.captions, &mut captions).await).is_some() {
        check.sample.insert("predict.captions".to_owned(), format!("{} distinct captions", captions.len()));
    }
}

/// Feeds at most [`HEAD_BYTES`]; says whether more may follow.
async fn feed(
    reader: &mut Reader,
    parser: &mut impl PushParser,
    fed: &mut usize,
    url: &str,
) -> Result<bool, PipelineError> {
    *fed += FEED_BYTES;
    Ok(fill(reader, parser, url).await? && *fed < HEAD_BYTES)
}

async fn sample_images(
    store: &Store,
    shard: &Object,
    spec: crate::decode::ImageSpec,
) -> Result<(String, f64), PipelineError> {
    let intake = std::sync::Arc::<crate::objects::ReadStats>::default();
    let mut reader = store.open(shard, std::sync::Arc::clone(&intake)).await?;
    let mut rows = ImageRows::new(MAX_RECORD_BYTES);
    let mut decoder = Decoder::new(spec);
    let mut out = vec![0; decoder.pixel_bytes()];
    let (mut seen, mut usable, mut fed) = (0usize, 0usize, 0);
    let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
    loop {
        let more = feed(&mut reader, &mut rows, &mut fed, &shard.url).await?;
        while let Some(row) = rows.next() {
            if seen == SAMPLE_IMAGES {
                break;
            }
            seen += 1;
            let reason = match row {
                ImageRow::Ok { base64, .. } => decoder
                    .decode_base64_into(&mut base64.to_vec(), &mut out, |_| ())
                    .err()
                    .map(|error| error.reason().as_str()),
                ImageRow::Bad { reason, .. } => Some(reason.as_str()),
            };
            match reason {
                None => usable += 1,
                Some(reason) => *reasons.entry(reason).or_default() += 1,
            }
        }
        if !more || seen == SAMPLE_IMAGES {
            break;
        }
    }
    let read = intake.bytes() as f64;
    let bad: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let bad = if bad.is_empty() { String::new() } else { format!(" ({})", bad.join(", ")) };
    if seen > 0 && usable == 0 {
        return Err(PipelineError::Input(format!(
            "none of the first {seen} rows of `{}` can be used{bad}: check that the file has rows of image_url, base64, metadata_url",
            shard.url
        )));
    }
    Ok((format!("{usable} of the first {seen} rows are usable{bad}"), read / seen.max(1) as f64))
}

async fn sample_labels(store: &Store, plan: &RunConfig, shard: &Object) -> Result<String, PipelineError> {
    let (Some(captions), Some(pairs)) = (&plan.pipeline().captions, &plan.pipeline().pairs) else {
        return Ok(String::new());
    };
    let rule = match captions.match_rule {
        MatchRule::Trimmed => Match::Trimmed,
        MatchRule::Exact => Match::Exact,
        MatchRule::Casefold => Match::Casefold,
        MatchRule::Title => Match::Title,
    };
    let refused = |error: crate::catalog::CatalogError| PipelineError::Input(error.to_string());
    let mut classes = Classes::new(ClassSource::List, rule);
    if captions.classes == ClassesWord::List {
        let object = store.find(&captions.list).await?;
        let mut reader = store.open(&object, std::sync::Arc::default()).await?;
        let mut list = CaptionList::new(&object.url, MAX_RECORD_BYTES);
        loop {
            let more = fill(&mut reader, &mut list, &object.url).await?;
            while let Some(row) = list.next()? {
                classes.add(row.text).map_err(refused)?;
            }
            if !more {
                break;
            }
        }
        if classes.is_empty() {
            return Err(PipelineError::Input(format!(
                "`{}` (`captions.list`) holds no caption: check the file",
                object.url
            )));
        }
        if let Some(predict) = &plan.pipeline().predict {
            super::enough_captions(classes.len(), predict.top_k)?;
        }
    }
    let mut reader = store.open(shard, std::sync::Arc::default()).await?;
    let mut rows = Pairs::new(&shard.url, &pairs.languages, MAX_RECORD_BYTES);
    let (mut labelled, mut fed) = (0u64, 0);
    loop {
        let more = feed(&mut reader, &mut rows, &mut fed, &shard.url).await?;
        while let Some(row) = rows.next()? {
            let PairRow::Pair(pair) = row else { continue };
            let has = captions.classes == ClassesWord::Train || classes.group_of(pair.target).is_some();
            labelled += u64::from(has);
        }
        if !more {
            break;
        }
    }
    let counts = rows.counts();
    Ok(format!(
        "{labelled} of the first {} rows have a label ({} classes)",
        counts.rows,
        match captions.classes {
            ClassesWord::List => classes.len().to_string(),
            ClassesWord::Train => "the captions themselves are the".to_owned(),
        }
    ))
}

async fn sample_ids(store: &Store, name: &str) -> Result<String, PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, std::sync::Arc::default()).await?;
    let mut ids = TestIds::new(&object.url, MAX_RECORD_BYTES);
    let (mut count, mut fed) = (0u64, 0);
    loop {
        let more = feed(&mut reader, &mut ids, &mut fed, &object.url).await?;
        while ids.next()?.is_some() {
            count += 1;
        }
        if !more && count == 0 {
            return Err(PipelineError::Input(format!("`{}` (`predict.ids`) holds no id: check the file", object.url)));
        }
        if !more {
            return Ok(format!("the first {count} ids are sound"));
        }
    }
}
