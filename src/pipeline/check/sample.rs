//! Samples of the inputs: the first rows of one file each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::catalog::{ClassSource, Classes};
use crate::config::{CatalogConfig, RunConfig};
use crate::corpus::{ImageRow, ImageRows, PairRow, Pairs, PushParser, TestIds};
use crate::decode::{Decoder, ImageSpec};
use crate::objects::{Object, ReadStats, Reader, Store};
use crate::pipeline::catalog::{MAX_RECORD_BYTES, read_captions};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::{FEED_BYTES, feed_parser};
use crate::pipeline::resolve::require_captions;

/// Decompressed bytes read from each input.
const SAMPLE_BYTES: usize = 8 << 20;
/// Number of images decoded from the first shard.
const SAMPLE_IMAGES: usize = 64;

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

/// Decodes the first images of a shard. Returns a description and the stored bytes of a row.
pub(super) async fn sample_images(
    store: &Store,
    shard: &Object,
    spec: ImageSpec,
) -> Result<(String, f64), PipelineError> {
    let stats = Arc::<ReadStats>::default();
    let mut reader = store.open(shard, Arc::clone(&stats)).await?;
    let mut rows = ImageRows::new(MAX_RECORD_BYTES);
    let mut decoder = Decoder::new(spec);
    let mut pixels = vec![0; decoder.pixel_bytes()];
    let (mut sampled, mut usable, mut fed) = (0usize, 0usize, 0);
    let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
    loop {
        let more = feed_sample(&mut reader, &mut rows, &mut fed, &shard.url).await?;
        while let Some(row) = rows.next() {
            if sampled == SAMPLE_IMAGES {
                break;
            }
            sampled += 1;
            let reason = match row {
                ImageRow::Ok { base64, .. } => decoder
                    .decode_base64_into(&mut base64.to_vec(), &mut pixels, |_| ())
                    .err()
                    .map(|error| error.reason().as_str()),
                ImageRow::Bad { reason, .. } => Some(reason.as_str()),
            };
            match reason {
                None => usable += 1,
                Some(reason) => *reasons.entry(reason).or_default() += 1,
            }
        }
        if !more || sampled == SAMPLE_IMAGES {
            break;
        }
    }
    let read = stats.bytes() as f64;
    let bad: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let bad = if bad.is_empty() { String::new() } else { format!(" ({})", bad.join(", ")) };
    if sampled > 0 && usable == 0 {
        return Err(PipelineError::Input(format!(
            "none of the first {sampled} rows of `{}` can be used{bad}: check that the file has rows of image_url, base64, metadata_url",
            shard.url
        )));
    }
    Ok((format!("{usable} of the first {sampled} rows are usable{bad}"), read / sampled.max(1) as f64))
}

/// Counts labels among the first pairs of a shard.
pub(super) async fn sample_labels(store: &Store, config: &RunConfig, shard: &Object) -> Result<String, PipelineError> {
    let Some(CatalogConfig { captions, pairs }) = config.catalog() else { return Ok(String::new()) };
    let mut classes = Classes::new(ClassSource::List, captions.match_rule);
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
    let mut reader = store.open(shard, Arc::default()).await?;
    let mut rows = Pairs::new(&shard.url, &pairs.languages, MAX_RECORD_BYTES);
    let (mut labelled, mut fed) = (0u64, 0);
    loop {
        let more = feed_sample(&mut reader, &mut rows, &mut fed, &shard.url).await?;
        while let Some(row) = rows.next()? {
            let PairRow::Pair(pair) = row else { continue };
            let has_label = captions.classes == ClassSource::Train || classes.group_of(pair.target).is_some();
            labelled += u64::from(has_label);
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
            ClassSource::List => classes.len().to_string(),
            ClassSource::Train => "the captions themselves are the".to_owned(),
        }
    ))
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
            return Ok(format!("the first {count} ids are sound"));
        }
    }
}
