//! Estimates of time and disk for `check`, from the rates of its sample.

use super::Check;
use super::sample::ImageSample;
use crate::config::RunConfig;
use crate::objects::Object;
use crate::pipeline::context::workers;
use crate::pipeline::images::RowContent;
use crate::pipeline::resolve::FeatureShape;
use crate::types::Precision;

/// Bytes that a feature chunk stores for an image beside its feature: URL, labels and hash.
const FEATURE_ROW_BYTES: u64 = 160;

/// Adds the number of images of some shards, the time to decode them and the disk of what is made of them.
pub(super) fn add_image_estimates(
    check: &mut Check,
    config: &RunConfig,
    (key, shards): (&str, &[Object]),
    sample: &ImageSample,
    content: &RowContent,
    shape: Option<FeatureShape>,
) {
    let stored: u64 = shards.iter().map(|object| object.size).sum();
    let rows = stored as f64 / sample.bytes_per_row.max(1.0);
    let threads = workers(config);
    let seconds = rows * sample.seconds_per_row / threads.max(1) as f64;
    let time = humantime::format_duration(std::time::Duration::from_secs(seconds.ceil() as u64));
    let model = if config.model().is_some() && config.published_dim().is_none() {
        ", without the model (`bench forward` measures it)"
    } else {
        ""
    };
    let text = format!("about {} images; decoding about {time} on {threads} threads{model}", round(rows));
    check.estimates.insert(key.to_owned(), text);
    let views = if key == "images.shards" { u64::from(config.views().max(1)) } else { 1 };
    let (what, row_bytes) = match shape {
        Some(FeatureShape { dim, precision }) => ("features", dim as u64 * width(precision) + FEATURE_ROW_BYTES),
        None if config.model().is_some() => return,
        None => ("pixels", content.decoded_bytes()),
    };
    let disk = bytesize::ByteSize((rows * (views * row_bytes) as f64) as u64);
    check.estimates.insert(format!("disk for {what} ({key})"), format!("about {disk}, if every image is used"));
}

/// Adds the disk of the vectors of some captions.
pub(super) fn add_vector_estimate(
    check: &mut Check,
    name: &str,
    captions: usize,
    (dim, precision): (usize, Precision),
) {
    let disk = bytesize::ByteSize(captions as u64 * dim as u64 * width(precision));
    check.estimates.insert(format!("disk for vectors ({name})"), format!("about {disk} for {captions} captions"));
}

fn width(precision: Precision) -> u64 {
    if precision == Precision::Bf16 { 2 } else { 4 }
}

/// Rounds a count to two significant digits.
fn round(count: f64) -> u64 {
    let step = 10_f64.powf(count.max(1.0).log10().floor() - 1.0).max(1.0);
    ((count / step).round() * step) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_rounded_to_two_digits() {
        assert_eq!([0.0, 7.4, 64.0, 1234.0, 6_477_255.0].map(round), [0, 7, 64, 1200, 6_500_000]);
    }
}
