//! Samples of the inputs: the first rows of one file each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{ClassSource, Classes, url_hash};
use crate::config::{CatalogConfig, RunConfig};
use crate::corpus::{ImageRow, PairRow, PushParser, TestIds};
use crate::objects::{Object, ReadStats, Reader, Store};
use crate::pipeline::catalog::{NO_LABEL, read_captions};
use crate::pipeline::check::class_count::{ClassCount, DistinctCurve};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::{FEED_BYTES, feed_parser};
use crate::pipeline::images::{RowContent, RowDecoder};
use crate::pipeline::inputs::{
    ImageInput, ImageReader, MAX_RECORD_BYTES, NextRow as _, PairInput, PairReader, ReadLimits,
};
use crate::pipeline::resolve::require_captions;

/// Decompressed bytes read from each input.
const SAMPLE_BYTES: usize = 8 << 20;
/// Number of times that a reader reads more of an input.
const MAX_FILLS: usize = SAMPLE_BYTES / FEED_BYTES;
/// Number of images decoded from the first shard.
const SAMPLE_IMAGES: usize = 64;
/// Fewest classes of a sample from which images per class are judged.
const MIN_CLASSES: usize = 20;

/// Feeds the parser up to [`SAMPLE_BYTES`] in total. Returns whether more may follow.
async fn feed_sample(
    reader: &mut Reader,
    parser: &mut impl PushParser,
    fed: &mut usize,
    url: &str,
) -> Result<bool, PipelineError> {
    *fed += FEED_BYTES;
    Ok(feed_parser(reader, parser, url).await? && *fed < SAMPLE_BYTES)
}

/// Findings in the first rows of a shard.
pub(super) struct ImageSample {
    /// Description for people.
    pub(super) text: String,
    /// Stored bytes of a row.
    pub(super) bytes_per_row: f64,
    /// Time in which one thread decodes a row.
    pub(super) seconds_per_row: f64,
}

/// Decodes the first images of a shard and counts the rows of its first [`SAMPLE_BYTES`].
pub(super) async fn sample_images(
    store: &Store,
    shard: &Object,
    input: &ImageInput,
    content: &RowContent,
) -> Result<ImageSample, PipelineError> {
    let stats = Arc::<ReadStats>::default();
    let limits = ReadLimits::alone(content.max_encoded_bytes());
    let mut rows = ImageReader::open(store, shard, input, limits, (0, None), &stats).await?;
    let mut decoder = RowDecoder::new(content);
    let mut decoded_row = vec![0; content.decoded_bytes() as usize];
    let (mut sampled, mut usable, mut fills, mut counted) = (0usize, 0usize, 0, 0usize);
    let mut decoding = Duration::ZERO;
    let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
    loop {
        let more = rows.fill().await?;
        fills += 1;
        while let Some(row) = rows.next()? {
            counted += 1;
            if sampled == SAMPLE_IMAGES {
                continue;
            }
            sampled += 1;
            let started = Instant::now();
            let decoded = match row {
                ImageRow::Ok { image, .. } => {
                    decoder.decode_whole(image, &mut decoded_row).map_err(|error| error.reason())
                }
                ImageRow::Bad { reason, .. } => Err(reason.as_str()),
            };
            decoding += started.elapsed();
            match decoded {
                Ok(()) => usable += 1,
                Err(reason) => *reasons.entry(reason).or_default() += 1,
            }
        }
        if !more || fills == MAX_FILLS {
            break;
        }
    }
    // Up to three ranges were read ahead, so this is an upper bound unless the whole shard was read.
    let read = stats.bytes().min(shard.size) as f64;
    let bad: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let bad = if bad.is_empty() { String::new() } else { format!(" ({})", bad.join(", ")) };
    if sampled > 0 && usable == 0 {
        let meant = match content {
            RowContent::Images(_) => format!("`images.format` = `{}` means", input.format),
            RowContent::Numbers(spec) => format!("`model.features` = `published` with {} values means", spec.dim),
        };
        return Err(PipelineError::Input(format!(
            "none of the first {sampled} rows of `{}` can be used{bad}: check that the file is what {meant}, see `config reference`",
            shard.url
        )));
    }
    Ok(ImageSample {
        text: format!("{usable} of the first {sampled} rows are usable{bad}"),
        bytes_per_row: read / counted.max(1) as f64,
        seconds_per_row: decoding.as_secs_f64() / sampled.max(1) as f64,
    })
}

/// Labels among the first pairs.
#[derive(Debug, Default)]
pub(super) struct SampledLabels {
    rows: u64,
    labelled: u64,
    /// Number of classes.
    count: ClassCount,
    /// Hash of the first image of each class that occurs.
    first_image: HashMap<u64, u64>,
    /// Classes with a second image.
    repeated: HashSet<u64>,
}

impl SampledLabels {
    fn add(&mut self, class: u64, image: u64) {
        self.labelled += 1;
        if *self.first_image.entry(class).or_insert(image) != image {
            self.repeated.insert(class);
        }
    }

    /// Describes the counts.
    pub(super) fn describe(&self) -> String {
        format!("{} of the first {} rows have a label ({})", self.labelled, self.rows, self.count)
    }

    /// Returns the number of classes.
    pub(super) fn count(&self) -> ClassCount {
        self.count
    }

    /// Says why a head would learn nothing, as far as the sample shows it.
    pub(super) fn warning(&self, config: &RunConfig) -> Option<String> {
        if self.rows > 0 && self.labelled == 0 {
            return Some(format!("none of the first {} rows of `pairs.shards` has a label: {NO_LABEL}", self.rows));
        }
        let classes = self.first_image.len();
        let single = classes - self.repeated.len();
        let sparse = classes >= MIN_CLASSES && 10 * single >= 9 * classes;
        (config.train().is_some() && !config.head().is_text() && sparse).then(|| {
            format!(
                "in the first {} rows of `pairs.shards`, {single} of {classes} classes have a single image, and a class head cannot \
                 rank a class that no training image has: use `[head] kind = \"text\"`, which ranks captions that were never seen",
                self.rows
            )
        })
    }
}

/// Counts labels among the first pairs of a shard. All shards have `pairs_bytes` stored bytes.
pub(super) async fn sample_labels(
    store: &Store,
    config: &RunConfig,
    (input, shard): (&PairInput, &Object),
    pairs_bytes: u64,
) -> Result<SampledLabels, PipelineError> {
    let mut sampled = SampledLabels::default();
    let Some(CatalogConfig { captions, .. }) = config.catalog() else { return Ok(sampled) };
    let mut classes = Classes::new(captions.classes, captions.match_rule);
    if let Some(list) = captions.class_list() {
        read_captions(store, list, &mut classes).await?;
        if classes.is_empty() {
            return Err(PipelineError::Input(format!(
                "`{}` (`captions.list`) holds no caption: check the file",
                Store::redact(list)
            )));
        }
        if let Some(predict) = config.predict() {
            require_captions(classes.len(), predict.top_k)?;
        }
    }
    let stats = Arc::<ReadStats>::default();
    let mut rows = PairReader::open(store, shard, input, None, &stats).await?;
    let (mut fills, mut curve) = (0, DistinctCurve::default());
    loop {
        let more = rows.fill().await?;
        fills += 1;
        while let Some(row) = rows.next()? {
            let PairRow::Pair(pair) = row else { continue };
            let group = match captions.classes {
                ClassSource::List => classes.group_of(pair.target),
                ClassSource::Train => classes.add(pair.target)?,
            };
            curve.add(classes.len() as u64);
            if let Some(group) = group {
                sampled.add(u64::from(group.first_class()), url_hash(pair.image_url));
            }
        }
        if !more || fills == MAX_FILLS {
            break;
        }
    }
    sampled.rows = rows.counts().rows;
    sampled.count = match captions.classes {
        ClassSource::List => ClassCount::Exact(classes.len() as u64),
        // A compressed file is read ahead, so the share is an upper bound and the estimate a lower one.
        ClassSource::Train => curve.extrapolate(((fills * FEED_BYTES) as u64).min(stats.bytes()), pairs_bytes),
    };
    Ok(sampled)
}

/// Parses the first rows of the ids file.
pub(super) async fn sample_ids(store: &Store, name: &str) -> Result<String, PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut ids = TestIds::new(&object.url, MAX_RECORD_BYTES);
    let (mut count, mut fed) = (0u64, 0);
    loop {
        let more = feed_sample(&mut reader, &mut ids, &mut fed, &object.url).await?;
        while ids.next()?.is_some() {
            count += 1;
        }
        if !more && count == 0 {
            return Err(PipelineError::Input(format!("`{}` (`predict.ids`) holds no id: check the file", object.url)));
        }
        if !more {
            return Ok(format!("the first {count} ids are valid"));
        }
    }
}
