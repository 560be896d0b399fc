//! Command `bench`: ingestion rates of a pipeline on its own input, to choose a machine.
//!
//! First each part runs alone on one core, in memory, over the same images and with the code of a run. Then all
//! decoding threads run together. Last the whole image stream runs, once with written chunks and once without.
//!
//! The forecast for other machines assumes equal cores. Reading is serial within each of a few shards, decoding spreads
//! over all cores, and the slowest part limits the rate. A model of several machines stands on these rates.

mod chunks;
mod cluster;
mod forward;
mod input;
mod whole_stream;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{PairsConfig, RunConfig};
use crate::corpus::{Delimiter, ImageColumns, PairRow, Pairs, PushParser as _};
use crate::decode::{Decoder, ImageSpec};
use crate::objects::{Object, Store};
use crate::pipeline::context::workers;
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::FEED_BYTES;
use crate::pipeline::images::preprocess::{CheckpointPreprocessing, resolve_spec};
use crate::pipeline::images::{MAX_OPEN_SHARDS, Views};
use crate::pipeline::inputs::{list_images, list_pairs};
use crate::pipeline::store::open_store;
use crate::runtime::usable_cores;
use crate::types::{ImageFormat, PairsFormat};

pub use cluster::{Cluster, ClusterForecast, ClusterSettings};
pub use whole_stream::Whole;

use chunks::measure_chunk;
use cluster::Measured;
use forward::measure_forward;
use input::{FirstRows, MAX_RECORD_BYTES, Sample, read_first_rows, split_rows};

/// Upper bound on the images that are decoded.
const MAX_IMAGES: usize = 2000;
/// Numbers of cores to forecast.
const MACHINES: [usize; 5] = [1, 2, 8, 16, 32];
/// Device rates, in images/s, for which the report shows the needs of network and disk.
const DEVICE_RATES: [f64; 2] = [1000.0, 10_000.0];

/// Rate of one part on one core.
#[derive(Debug, Clone, Serialize)]
pub struct StageRate {
    /// Name of the part.
    pub name: &'static str,
    /// Images per second.
    pub images_per_s: f64,
    /// Input in MB/s.
    pub mb_per_s: f64,
    /// Share of the time that one core needs for an image.
    pub share: f64,
}

/// Forecast for a machine.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Number of cores.
    pub cores: usize,
    /// Images per second.
    pub images_per_s: f64,
    /// The part that limits the rate.
    pub bottleneck: String,
}

/// Needs of a device of a given rate.
#[derive(Debug, Clone, Serialize)]
pub struct Demand {
    /// Images per second of the device. Each view counts as an image.
    pub images_per_s: f64,
    /// Cores for decoding.
    pub cores: f64,
    /// Rate of the network or disk that holds the shards, in MB/s.
    pub read_mb_per_s: f64,
    /// Rate of scratch disk, in MB/s each way: pixels are written and read once.
    pub scratch_mb_per_s: f64,
}

/// Outcome of the measurement.
#[derive(Debug, Clone, Serialize)]
pub struct IngestReport {
    /// The shard that was sampled.
    pub shard: String,
    /// Usable images of the sample.
    pub images: usize,
    /// Unusable rows of the sample.
    pub unusable: usize,
    /// Mean stored bytes of an image.
    pub stored_bytes: f64,
    /// Side of the input square in pixels.
    pub size_px: u32,
    /// Mean number of views of an image: `train.views` for a training image, 1 for a held-out image.
    pub squares_per_image: f64,
    /// Time spent waiting for the store, in s.
    pub waited_s: f64,
    /// Parts in the order of the data flow.
    pub stages: Vec<StageRate>,
    /// Decoding threads.
    pub threads: usize,
    /// Images per second that all threads decode together.
    pub decoded_per_s: f64,
    /// Speed-up of all threads over one.
    pub scaling: f64,
    /// Rates of the whole image stream.
    pub whole: Whole,
    /// Forecasts for machines.
    pub machines: Vec<Forecast>,
    /// Needs of devices.
    pub devices: Vec<Demand>,
    /// Rows per second of the pairs on one core, and decompressed MB/s.
    pub pairs: Option<(f64, f64)>,
    /// Images per second of the model on this machine's device, and its description, if it was measured.
    pub forward: Option<(f64, String)>,
    /// Forecasts for several machines.
    pub cluster: Cluster,
}

impl IngestReport {
    /// Scales the estimates down so that the one for this machine's threads is not above the measured rate of the whole
    /// stream, and returns the factor. The parts alone promise more: together they share caches, memory and disk.
    fn limit_to_measured(&mut self) -> f64 {
        let seconds: f64 = self.stages.iter().map(|stage| 1.0 / stage.images_per_s).sum();
        let promised = self.machines.iter().filter(|machine| machine.cores <= self.threads).map(|one| one.images_per_s);
        let promised = promised.fold(self.threads as f64 / seconds, f64::max);
        let share = (self.whole.written_per_s / promised).min(1.0);
        for machine in &mut self.machines {
            machine.images_per_s *= share;
        }
        for demand in &mut self.devices {
            demand.cores /= share.max(f64::MIN_POSITIVE);
        }
        share
    }

    /// Returns the seconds that one core needs for an image in the named stages; in all stages without a name.
    fn core_seconds(&self, names: &[&str]) -> f64 {
        let named = self.stages.iter().filter(|stage| names.is_empty() || names.contains(&stage.name));
        named.map(|stage| 1.0 / stage.images_per_s).sum()
    }
}

/// Measures the ingestion. It takes up to two minutes, and at most a few hundred MiB on top of `limits.memory`.
///
/// # Errors
/// When the input cannot be read, or scratch disk cannot be written.
pub async fn ingest(config: RunConfig, settings: ClusterSettings) -> Result<IngestReport, PipelineError> {
    let Some(images) = config.images() else {
        return Err(PipelineError::Input("the pipeline has no `[images]` to measure".to_owned()));
    };
    if config.published_dim().is_some() {
        return Err(PipelineError::Input(
            "published features are read, not decoded: measure a pipeline with images".to_owned(),
        ));
    }
    let (spec, threads) = (resolve_sampled_spec(&config), workers(&config));
    whole_stream::check_limits(&config, &spec, threads)?;
    let store = open_store(config.store());
    let (input, shards) = list_images(&store, &images.shards, images.format, &images.columns).await?;
    if input.format != ImageFormat::Tsv {
        return Err(PipelineError::Input(format!(
            "the parts of reading are measured on rows of text, but `images.shards` is {}: measure a pipeline with `tsv` shards",
            input.format
        )));
    }
    let first_rows = read_first_rows(&store, "images.shards", &shards).await?;
    let pairs = match config.catalog() {
        Some(catalog) => measure_pairs(&store, &catalog.pairs).await?,
        None => None,
    };
    let (pairs, all_pairs) = pairs.map_or((None, (0, 0.0)), |(rates, all)| (Some(rates), all));
    let stages = {
        let (config, spec, shards, columns) = (config.clone(), spec.clone(), shards.clone(), input.columns.clone());
        let measure = move || measure_parts(&config, (&shards, &columns), &first_rows, &spec, threads, pairs);
        tokio::task::spawn_blocking(measure).await??
    };
    let whole = whole_stream::measure(&config, (&input, &shards), &spec, threads).await?;
    let mut report = IngestReport { whole, ..stages };
    let share = report.limit_to_measured();
    let forward = match settings.forward_per_s {
        Some(per_s) => Some((per_s, false)),
        None => measure_forward(&config, &spec, &mut report).await?,
    };
    let serial = report.core_seconds(&["unpack", "split rows"]);
    let reading = serial / shards.len().clamp(1, MAX_OPEN_SHARDS) as f64;
    let limits = [("reading", reading), ("writing", report.core_seconds(&["write chunks"]))];
    let cores = settings.cores.unwrap_or(threads);
    let measured = Measured {
        shard_bytes: shards.iter().map(|shard| shard.size).collect(),
        stored_bytes: report.stored_bytes,
        cores_per_s: share * forecast(cores, report.core_seconds(&[]), &limits).images_per_s,
        shard_per_s: 1.0 / serial,
        forward: forward.map(|(per_s, on_cores)| {
            // Measured on all cores of this machine.
            let own = settings.cores.filter(|_| on_cores);
            let scale = own.map_or(1.0, |cores| cores as f64 / usable_cores() as f64);
            (per_s * scale / report.squares_per_image, on_cores)
        }),
        pairs: all_pairs,
        chunk_rows: f64::from(config.chunks().rows),
        pixel_bytes: config.model().is_none().then(|| 3.0 * f64::from(report.size_px).powi(2)),
    };
    report.cluster = measured.model(&settings);
    Ok(report)
}

/// Resolves the preprocessing without a download. Uses defaults unless the checkpoint is in a local directory.
fn resolve_sampled_spec(config: &RunConfig) -> ImageSpec {
    let preprocessing = config.model().and_then(|model| {
        let checkpoint = crate::model::Checkpoint::open(Path::new(&model.checkpoint)).ok()?;
        CheckpointPreprocessing::read(checkpoint.preprocessor(), checkpoint.image_size_px()).ok()
    });
    resolve_spec(config, preprocessing.unwrap_or_default())
}

/// Measures the parsing of pairs: rows and MB per second, then the stored bytes of all pairs and the seconds for them. `None`
/// if they are not text with columns.
async fn measure_pairs(store: &Store, pairs: &PairsConfig) -> Result<Option<((f64, f64), (u64, f64))>, PipelineError> {
    let (input, shards) = list_pairs(store, pairs).await?;
    let delimiter = match input.format {
        PairsFormat::Tsv => Delimiter::Tab,
        PairsFormat::Csv => Delimiter::Comma,
        _ => return Ok(None),
    };
    let first_rows = read_first_rows(store, "pairs.shards", &shards).await?;
    let mut pairs = Pairs::new(&shards[0].url, delimiter, &input.columns, &[], MAX_RECORD_BYTES);
    let (mut rows, started) = (0_u64, Instant::now());
    for block in first_rows.text.chunks(FEED_BYTES) {
        pairs.feed(block);
        while let Some(row) = pairs.next()? {
            rows += u64::from(matches!(row, PairRow::Pair(_) | PairRow::Skipped { .. }));
        }
    }
    let seconds = (started.elapsed() + first_rows.decompressing).as_secs_f64();
    let all_bytes: u64 = shards.iter().map(|shard| shard.size).sum();
    let all_s = seconds * all_bytes as f64 / first_rows.stored_bytes.max(1) as f64;
    Ok(Some(((rows as f64 / seconds, first_rows.text.len() as f64 / 1e6 / seconds), (all_bytes, all_s))))
}

/// Measures each part on one core, then decoding on all threads.
fn measure_parts(
    config: &RunConfig,
    (shards, columns): (&[Object], &ImageColumns),
    first_rows: &FirstRows,
    spec: &ImageSpec,
    threads: usize,
    pairs: Option<(f64, f64)>,
) -> Result<IngestReport, PipelineError> {
    let shard = shards.first().map(|shard| shard.url.clone()).unwrap_or_default();
    let (mut samples, mut unusable, mut row_count) = (Vec::new(), 0, 0_usize);
    let started = Instant::now();
    split_rows((&first_rows.text, columns), |_| row_count += 1)?;
    let splitting = started.elapsed();
    let (mut decoder, views) = (Decoder::new(spec.clone()), Views::from_config(config));
    let (mut base64, mut pixels) = (Vec::new(), Vec::new());
    split_rows((&first_rows.text, columns), |row| {
        if samples.len() < MAX_IMAGES {
            let sample = row.map(|(url, base64)| Sample::new(views, url, base64));
            match sample.filter(|sample| sample.decode(&mut decoder, &mut base64, &mut pixels)) {
                Some(sample) => samples.push(sample),
                None => unusable += 1,
            }
        }
    })?;
    if samples.is_empty() || row_count == 0 {
        return Err(PipelineError::Input(format!(
            "no image in the first rows of `{shard}` can be used: check the file"
        )));
    }
    let images = samples.len();
    let base64_bytes: usize = samples.iter().map(|sample| sample.base64.len()).sum();
    let (mut encoded, started) = (Vec::with_capacity(images), Instant::now());
    for sample in &samples {
        // The decoder also skips white space, but the published files have none.
        encoded.push(base64_simd::STANDARD.decode_to_vec(&sample.base64).unwrap_or_default());
    }
    let unbase64 = started.elapsed();
    let started = Instant::now();
    for (bytes, Sample { views, .. }) in encoded.clone().iter_mut().zip(&samples) {
        pixels.resize(views.len() * decoder.pixel_bytes(), 0);
        decoder.decode_views(bytes, views, &mut pixels, |_| ()).ok();
    }
    let decoding = started.elapsed();
    let encoded_bytes: usize = encoded.iter().map(Vec::len).sum();
    let view_count: usize = samples.iter().map(|sample| sample.views.len()).sum();
    let (writing, reading) = measure_chunk(config, spec, &pixels[..decoder.pixel_bytes()], view_count)?;
    let decoded_per_s = measure_threads(spec, &samples, threads);

    let per_image = |time: Duration, count: usize| time.as_secs_f64() / count.max(1) as f64;
    let stored_bytes = first_rows.stored_bytes as f64 / row_count as f64;
    let squares_per_image = view_count as f64 / images as f64;
    let view_bytes = decoder.pixel_bytes() as f64;
    let pixel_bytes = squares_per_image * view_bytes;
    let mut seconds = vec![
        ("unpack", per_image(first_rows.decompressing, row_count), stored_bytes),
        ("split rows", per_image(splitting, row_count), first_rows.text.len() as f64 / row_count as f64),
        ("base64", per_image(unbase64, images), base64_bytes as f64 / images as f64),
        ("decode and resize", per_image(decoding, images), encoded_bytes as f64 / images as f64),
        ("write chunks", per_image(writing, images), pixel_bytes),
    ];
    seconds.extend(reading.map(|reading| ("read chunks", per_image(reading, images), pixel_bytes)));
    let all: f64 = seconds.iter().map(|(_, time, _)| time).sum();
    let stage = |(name, time, bytes): (&'static str, f64, f64)| StageRate {
        name,
        images_per_s: 1.0 / time,
        mb_per_s: bytes / 1e6 / time,
        share: time / all,
    };
    let side_by_side = shards.len().clamp(1, MAX_OPEN_SHARDS) as f64;
    let reading = (seconds[0].1 + seconds[1].1) / side_by_side;
    let serial = [("reading shards side by side", reading), ("writing chunks", seconds[4].1)];
    let machines = MACHINES.map(|cores| forecast(cores, all, &serial)).to_vec();
    let demand = |images_per_s: f64| Demand {
        images_per_s,
        cores: images_per_s / squares_per_image * all,
        read_mb_per_s: images_per_s / squares_per_image * stored_bytes / 1e6,
        scratch_mb_per_s: images_per_s * view_bytes / 1e6,
    };
    let one = images as f64 / (unbase64 + decoding).as_secs_f64();
    Ok(IngestReport {
        shard,
        images,
        unusable,
        stored_bytes,
        size_px: spec.geometry.output_px(),
        squares_per_image,
        waited_s: first_rows.waited.as_secs_f64(),
        stages: seconds.into_iter().map(stage).collect(),
        threads,
        decoded_per_s,
        scaling: decoded_per_s / one,
        whole: Whole { written_per_s: 0.0, counted_per_s: 0.0 },
        machines,
        devices: DEVICE_RATES.map(demand).to_vec(),
        pairs,
        forward: None,
        cluster: Cluster::default(),
    })
}

/// Forecasts the rate of a machine. `seconds` is the time of one core for an image; `serial` lists the serial parts
/// with their time for an image.
fn forecast(cores: usize, seconds: f64, serial: &[(&str, f64)]) -> Forecast {
    let by_cores = cores as f64 / seconds;
    let slowest = serial.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    match slowest.filter(|(_, time)| 1.0 / time < by_cores) {
        Some((name, time)) => Forecast { cores, images_per_s: 1.0 / time, bottleneck: (*name).to_owned() },
        None => Forecast { cores, images_per_s: by_cores, bottleneck: "the cores".to_owned() },
    }
}

/// Measures the images per second that all threads decode together.
fn measure_threads(spec: &ImageSpec, samples: &[Sample], threads: usize) -> f64 {
    const IMAGES_AT_ONCE: usize = 8;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut decoder = Decoder::new(spec.clone());
        let (mut pixels, mut base64) = (Vec::new(), Vec::new());
        loop {
            let first = next.fetch_add(IMAGES_AT_ONCE, Ordering::Relaxed);
            let Some(own) = samples.get(first..(first + IMAGES_AT_ONCE).min(samples.len())) else { return };
            for sample in own {
                sample.decode(&mut decoder, &mut base64, &mut pixels);
            }
            if own.is_empty() {
                return;
            }
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    samples.len() as f64 / started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_never_exceed_the_measured_rate() {
        let stage = |name| StageRate { name, images_per_s: 2000.0, mb_per_s: 1.0, share: 0.5 };
        let machines = MACHINES.map(|cores| forecast(cores, 0.001, &[])).to_vec();
        let report = |written_per_s| {
            let mut report = IngestReport {
                shard: String::new(),
                images: 1,
                unusable: 0,
                stored_bytes: 1.0,
                size_px: 8,
                squares_per_image: 1.0,
                waited_s: 0.0,
                stages: vec![stage("unpack"), stage("decode and resize")],
                threads: 2,
                decoded_per_s: 2000.0,
                scaling: 2.0,
                whole: Whole { written_per_s, counted_per_s: 2000.0 },
                machines: machines.clone(),
                devices: vec![Demand { images_per_s: 1000.0, cores: 1.0, read_mb_per_s: 1.0, scratch_mb_per_s: 1.0 }],
                pairs: None,
                forward: None,
                cluster: Cluster::default(),
            };
            report.limit_to_measured();
            report
        };
        let found = report(1500.0);
        assert!((found.machines[1].images_per_s - 1500.0).abs() < 1e-6, "{:?}", found.machines);
        assert!((found.devices[0].cores - 4.0 / 3.0).abs() < 1e-6);
        // A stream faster than the sum of its parts promises nothing more.
        assert!((report(3000.0).machines[1].images_per_s - 2000.0).abs() < 1e-6);
    }

    #[test]
    fn forecast_is_limited_by_serial_parts() {
        let serial = [("reading a shard", 0.0001), ("writing chunks", 0.00005)];
        let machine = |cores| forecast(cores, 0.001, &serial);
        assert!((machine(1).images_per_s - 1000.0).abs() < 1e-6 && machine(1).bottleneck == "the cores");
        assert!((machine(8).images_per_s - 8000.0).abs() < 1e-6);
        assert!((machine(16).images_per_s - 10_000.0).abs() < 1e-6 && machine(16).bottleneck == "reading a shard");
    }
}
