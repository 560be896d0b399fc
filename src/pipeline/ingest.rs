//! A pipeline's own ingestion, stage by stage, on the head of its own input: which machine to rent.
//!
//! Each stage runs by itself on one core over the same images, in memory, by the code that a run has; then decoding runs on all cores
//! that the plan asks for. What a machine with more cores would do follows from those figures and one assumption, that cores are alike:
//! reading a shard is one thread's, of which a few work side by side, decoding is spread over the others, and whoever is slowest decides.
//! Last the whole stream runs as a run has it, with its chunks written and with a counter in their place.

mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::AsyncBufReadExt as _;

use super::resolve::workers;
use super::stream::{FEED_BYTES, Views};
use super::{PipelineError, preprocess, scratch_path, store};
use crate::chunk::pixels::{PixelReader, PixelWriter, Purpose};
use crate::chunk::schedule::LANES;
use crate::chunk::{RowMeta, sum_segments};
use crate::config::RunConfig;
use crate::config::bytes::{block_images, product_disk_bytes};
use crate::config::value::Compression;
use crate::corpus::{ImageRow, ImageRows, PairRow, Pairs, PushParser as _};
use crate::decode::{Decoder, ImageSpec, View};
use crate::objects::{Object, ReadStats, StoreError, explain_read};
use crate::run_dir::PageCache;

pub use whole::Whole;

/// Images that are looked at, at most.
const IMAGES: usize = 2000;
/// Unpacked bytes that are held, at most.
const HELD_BYTES: usize = 128 << 20;
/// Pixels that are written to scratch disk, at most.
const WRITTEN_BYTES: u64 = 256 << 20;
/// Longest row.
const MAX_RECORD_BYTES: usize = 64 << 20;
/// Cores of machines that are looked at.
const MACHINES: [usize; 5] = [1, 2, 8, 16, 32];
/// Device rates for which network and disk are told, where there is no model.
const DEVICE_RATES: [f64; 2] = [1000.0, 10_000.0];

/// A stage on one core.
#[derive(Debug, Clone, Serialize)]
pub struct StageRate {
    /// Which.
    pub name: &'static str,
    /// Images a second.
    pub images_per_s: f64,
    /// Bytes a second that go in, in MB.
    pub mb_per_s: f64,
    /// Its share of a core's time for an image, all stages together.
    pub share: f64,
}

/// What a machine would do.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Its cores.
    pub cores: usize,
    /// Images a second.
    pub images_per_s: f64,
    /// Who decides.
    pub bottleneck: String,
}

/// What a device of some rate needs of the machine around it.
#[derive(Debug, Clone, Serialize)]
pub struct Demand {
    /// Images a second of the device, for which each view of an image is one.
    pub images_per_s: f64,
    /// Cores that decode.
    pub cores: f64,
    /// Network or disk that shards are read from, in MB/s.
    pub read_mb_per_s: f64,
    /// Scratch disk: pixels written and read once, in MB/s each way.
    pub scratch_mb_per_s: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct IngestReport {
    /// The shard whose head was looked at.
    pub shard: String,
    /// Its images that could be used.
    pub images: usize,
    /// Its rows that could not.
    pub unusable: usize,
    /// Stored bytes of an image.
    pub stored_bytes: f64,
    /// Side of the squares in pixels.
    pub size_px: u32,
    /// Squares that are made of an image, in the mean: `train.views`, but of held-out images one.
    pub squares_per_image: f64,
    /// Time spent waiting for the store, in s; reading is not slower than that.
    pub waited_s: f64,
    /// Stages, in the order of the flow.
    pub stages: Vec<StageRate>,
    /// Decoding threads of this machine, and how many images a second they decode together.
    pub threads: usize,
    /// Images a second on all threads.
    pub decoded_per_s: f64,
    /// How many times as fast as one they are.
    pub scaling: f64,
    /// Everything at once.
    pub whole: Whole,
    /// Machines.
    pub machines: Vec<Forecast>,
    /// Devices.
    pub devices: Vec<Demand>,
    /// Rows of the pairs, a second of one core, and MB/s unpacked.
    pub pairs: Option<(f64, f64)>,
}

/// The head of a shard, unpacked.
struct Head {
    text: Vec<u8>,
    stored: u64,
    waited: Duration,
    /// Reading and unpacking, without waiting for the store.
    unpacking: Duration,
}

async fn head(plan: &RunConfig, key: &str, patterns: &[String]) -> Result<(Vec<Object>, Head), PipelineError> {
    let store = store(&plan.machine().store);
    let shards = store.list(patterns).await?;
    let shard = shards.first().ok_or_else(|| PipelineError::Input(format!("`{key}` names no file")))?;
    let intake = Arc::new(ReadStats::default());
    let mut reader = store.open(shard, Arc::clone(&intake)).await?;
    let (mut text, started) = (Vec::new(), Instant::now());
    while text.len() < HELD_BYTES {
        let bytes = reader.fill_buf().await.map_err(|error| explain_read(&shard.url, error))?;
        if bytes.is_empty() {
            break;
        }
        let taken = bytes.len();
        text.extend_from_slice(bytes);
        reader.consume(taken);
    }
    let (waited, took) = (intake.waited(), started.elapsed());
    let unpacking = took.saturating_sub(waited);
    let head = Head { text, stored: intake.bytes(), waited, unpacking };
    Ok((shards, head))
}

/// An image of the head.
struct Sample {
    /// Its bytes in base64.
    text: Vec<u8>,
    /// The pictures that are made of it.
    views: Vec<View>,
}

impl Sample {
    fn new(asked: Option<Views>, url: &str, base64: &[u8]) -> Self {
        let mut views = Vec::new();
        Views::of(asked, url, &mut views);
        Self { text: base64.to_vec(), views }
    }

    /// Decodes it as a run does, with buffers for its text and its squares; whether it can be.
    fn decode(&self, decoder: &mut Decoder, text: &mut Vec<u8>, squares: &mut Vec<u8>) -> bool {
        text.clear();
        text.extend_from_slice(&self.text);
        squares.resize(self.views.len() * decoder.pixel_bytes(), 0);
        decoder.decode_base64_views(text, &self.views, squares, |_| ()).is_ok()
    }
}

/// Rows of a text that are sound: their URL and base64.
fn split(text: &[u8], mut take: impl FnMut(Option<(&str, &[u8])>)) {
    let mut rows = ImageRows::new(MAX_RECORD_BYTES);
    for block in text.chunks(FEED_BYTES) {
        rows.feed(block);
        while let Some(row) = rows.next() {
            match row {
                ImageRow::Ok { image_url, base64, .. } => take(Some((image_url, base64))),
                ImageRow::Bad { .. } => take(None),
            }
        }
    }
}

/// Measures; takes up to two minutes and no more than `limits.memory` and a few hundred MiB.
///
/// # Errors
/// When the input cannot be read, or scratch disk refuses.
pub async fn ingest(plan: RunConfig) -> Result<IngestReport, PipelineError> {
    let Some(images) = &plan.pipeline().images else {
        return Err(PipelineError::Input("the pipeline has no `[images]` to measure".to_owned()));
    };
    let (spec, threads) = (spec(&plan), workers(&plan));
    whole::check(&plan, &spec, threads)?;
    let (shards, head) = head(&plan, "images.shards", &images.shards).await?;
    let pairs = match &plan.pipeline().pairs {
        Some(pairs) => Some(measure_pairs(&plan, &pairs.shards).await?),
        None => None,
    };
    let stages = {
        let (plan, spec, shards) = (plan.clone(), spec.clone(), shards.clone());
        tokio::task::spawn_blocking(move || measure(&plan, &shards, &head, &spec, threads, pairs)).await??
    };
    Ok(IngestReport { whole: whole::measure(&plan, &shards, &spec, threads).await?, ..stages })
}

fn spec(plan: &RunConfig) -> ImageSpec {
    // A checkpoint of the hub is not downloaded for this.
    let asked = plan.pipeline().model.as_ref().and_then(|model| {
        let checkpoint = crate::model::Checkpoint::open(Path::new(&model.checkpoint)).ok()?;
        preprocess::asked_by(checkpoint.preprocessor(), checkpoint.image_size_px()).ok()
    });
    preprocess::resolve(plan, asked.unwrap_or_default())
}

async fn measure_pairs(plan: &RunConfig, patterns: &[String]) -> Result<(f64, f64), PipelineError> {
    let (shards, head) = head(plan, "pairs.shards", patterns).await?;
    let (mut pairs, mut rows, started) = (Pairs::new(&shards[0].url, &[], MAX_RECORD_BYTES), 0_u64, Instant::now());
    for block in head.text.chunks(FEED_BYTES) {
        pairs.feed(block);
        while let Some(row) = pairs.next()? {
            rows += u64::from(matches!(row, PairRow::Pair(_) | PairRow::Skipped { .. }));
        }
    }
    let seconds = (started.elapsed() + head.unpacking).as_secs_f64();
    Ok((rows as f64 / seconds, head.text.len() as f64 / 1e6 / seconds))
}

fn measure(
    plan: &RunConfig,
    shards: &[Object],
    head: &Head,
    spec: &ImageSpec,
    threads: usize,
    pairs: Option<(f64, f64)>,
) -> Result<IngestReport, PipelineError> {
    let shard = shards.first().map(|shard| shard.url.clone()).unwrap_or_default();
    // Which images can be used, and their bytes as text; the others would stop nothing in a run.
    let (mut samples, mut unusable, mut split_rows) = (Vec::new(), 0, 0_usize);
    let started = Instant::now();
    split(&head.text, |_| split_rows += 1);
    let splitting = started.elapsed();
    let (mut decoder, asked) = (Decoder::new(spec.clone()), Views::of_plan(plan));
    let (mut text, mut squares) = (Vec::new(), Vec::new());
    split(&head.text, |row| {
        if samples.len() < IMAGES {
            let sample = row.map(|(url, base64)| Sample::new(asked, url, base64));
            match sample.filter(|sample| sample.decode(&mut decoder, &mut text, &mut squares)) {
                Some(sample) => samples.push(sample),
                None => unusable += 1,
            }
        }
    });
    if samples.is_empty() || split_rows == 0 {
        return Err(PipelineError::Input(format!("no image at the head of `{shard}` can be used: check the file")));
    }
    let images = samples.len();
    let text_bytes: usize = samples.iter().map(|sample| sample.text.len()).sum();
    let (mut encoded, started) = (Vec::with_capacity(images), Instant::now());
    for sample in &samples {
        // As the decoder does it, but for white space, which the published files have none of.
        encoded.push(base64_simd::STANDARD.decode_to_vec(&sample.text).unwrap_or_default());
    }
    let unbase64 = started.elapsed();
    let started = Instant::now();
    for (bytes, Sample { views, .. }) in encoded.clone().iter_mut().zip(&samples) {
        squares.resize(views.len() * decoder.pixel_bytes(), 0);
        decoder.decode_views(bytes, views, &mut squares, |_| ()).ok();
    }
    let decoding = started.elapsed();
    let encoded_bytes: usize = encoded.iter().map(Vec::len).sum();
    let made = samples.iter().map(|sample| sample.views.len()).sum();
    let (writing, reading) = chunk(plan, spec, &squares[..decoder.pixel_bytes()], made)?;
    let decoded_per_s = together(spec, &samples, threads);

    let per_image = |time: Duration, count: usize| time.as_secs_f64() / count.max(1) as f64;
    let stored_bytes = head.stored as f64 / split_rows as f64;
    let squares_per_image = made as f64 / images as f64;
    let square_bytes = decoder.pixel_bytes() as f64;
    let pixels = squares_per_image * square_bytes;
    let mut seconds = vec![
        ("unpack", per_image(head.unpacking, split_rows), stored_bytes),
        ("split rows", per_image(splitting, split_rows), head.text.len() as f64 / split_rows as f64),
        ("base64", per_image(unbase64, images), text_bytes as f64 / images as f64),
        ("decode and resize", per_image(decoding, images), encoded_bytes as f64 / images as f64),
        ("write chunks", per_image(writing, images), pixels),
    ];
    seconds.extend(reading.map(|reading| ("read chunks", per_image(reading, images), pixels)));
    let all: f64 = seconds.iter().map(|(_, time, _)| time).sum();
    let stage = |(name, time, bytes): (&'static str, f64, f64)| StageRate {
        name,
        images_per_s: 1.0 / time,
        mb_per_s: bytes / 1e6 / time,
        share: time / all,
    };
    let side_by_side = shards.len().clamp(1, LANES) as f64;
    let reading = (seconds[0].1 + seconds[1].1) / side_by_side;
    let serial = [("reading shards side by side", reading), ("writing chunks", seconds[4].1)];
    let machines = MACHINES.map(|cores| forecast(cores, all, &serial)).to_vec();
    let demand = |images_per_s: f64| Demand {
        images_per_s,
        cores: images_per_s / squares_per_image * all,
        read_mb_per_s: images_per_s / squares_per_image * stored_bytes / 1e6,
        scratch_mb_per_s: images_per_s * square_bytes / 1e6,
    };
    let one = images as f64 / (unbase64 + decoding).as_secs_f64();
    Ok(IngestReport {
        shard,
        images,
        unusable,
        stored_bytes,
        size_px: spec.geometry.output_px(),
        squares_per_image,
        waited_s: head.waited.as_secs_f64(),
        stages: seconds.into_iter().map(stage).collect(),
        threads,
        decoded_per_s,
        scaling: decoded_per_s / one,
        whole: Whole { written_per_s: 0.0, counted_per_s: 0.0 },
        machines,
        devices: DEVICE_RATES.map(demand).to_vec(),
        pairs,
    })
}

/// What so many cores would do, by the seconds of one core for an image and those of stages that one thread has.
fn forecast(cores: usize, seconds: f64, serial: &[(&str, f64)]) -> Forecast {
    let by_cores = cores as f64 / seconds;
    let slowest = serial.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    match slowest.filter(|(_, time)| 1.0 / time < by_cores) {
        Some((name, time)) => Forecast { cores, images_per_s: 1.0 / time, bottleneck: (*name).to_owned() },
        None => Forecast { cores, images_per_s: by_cores, bottleneck: "the cores".to_owned() },
    }
}

/// A file or folder in scratch space that goes whatever happens, with the folders that were made for it.
struct Temporary {
    path: PathBuf,
    made: Vec<PathBuf>,
}

impl Temporary {
    fn new(plan: &RunConfig, extension: &str) -> Result<Self, StoreError> {
        let folder = scratch_path(plan);
        let made = folder.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
        std::fs::create_dir_all(&folder).map_err(|error| StoreError::io(&folder, "created", error))?;
        Ok(Self { path: folder.join(format!("bench-{}.{extension}", std::process::id())), made })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).or_else(|_| std::fs::remove_dir_all(&self.path)).ok();
        for folder in &self.made {
            // It stays where a run has put something in it.
            std::fs::remove_dir(folder).ok();
        }
    }
}

/// Writes a chunk of squares to scratch disk, as many as the limits leave room for, and reads it back, where a model does; the times are
/// those of `made`. Through the page cache in any case: what it takes a core, and not the disk.
fn chunk(
    plan: &RunConfig,
    spec: &ImageSpec,
    square: &[u8],
    made: usize,
) -> Result<(Duration, Option<Duration>), PipelineError> {
    let file = Temporary::new(plan, "parquet")?;
    let path = &file.path;
    let images = block_images(square.len() as u64);
    let block = product_disk_bytes(images as u32, spec.geometry.output_px());
    let room = plan.machine().limits.disk.0.min(WRITTEN_BYTES) / block;
    let blocks = made.div_ceil(images).min(room.max(1) as usize);
    let chunks = &plan.pipeline().chunks;
    let consumed = plan.pipeline().model.is_some();
    let compression = if consumed { Compression::None } else { chunks.compression };
    let mut heads = RowMeta::default();
    (0..images).for_each(|row| heads.push(&format!("https://example.org/{row}.jpg"), [row as u32]));
    let (mut pixels, mut sums) = (square.repeat(images), Vec::new());
    if !consumed && compression == Compression::None {
        // Decoders do this: it is not a writer's time.
        sum_segments(&pixels, &mut sums);
    }
    let started = Instant::now();
    let purpose = if consumed { Purpose::Passing } else { Purpose::Product(PageCache::Through) };
    let mut writer = PixelWriter::create(path, spec.geometry.output_px(), compression, "bench", purpose)?;
    for _ in 0..blocks {
        writer.write(&heads, &pixels, &sums)?;
    }
    writer.finish()?;
    let writing = started.elapsed().mul_f64(made as f64 / (blocks * images) as f64);
    if !consumed {
        return Ok((writing, None));
    }
    let started = Instant::now();
    let mut reader = PixelReader::open(path, 128)?;
    while reader.next_batch(&mut pixels)?.is_some() {}
    let reading = started.elapsed().mul_f64(made as f64 / (blocks * images) as f64);
    Ok((writing, Some(reading)))
}

/// Images a second that all threads decode together.
fn together(spec: &ImageSpec, samples: &[Sample], threads: usize) -> f64 {
    const TAKEN_AT_ONCE: usize = 8;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut decoder = Decoder::new(spec.clone());
        let (mut squares, mut text) = (Vec::new(), Vec::new());
        loop {
            let first = next.fetch_add(TAKEN_AT_ONCE, Ordering::Relaxed);
            let Some(own) = samples.get(first..(first + TAKEN_AT_ONCE).min(samples.len())) else { return };
            for sample in own {
                sample.decode(&mut decoder, &mut text, &mut squares);
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
    fn more_cores_help_until_one_thread_decides() {
        let serial = [("reading a shard", 0.0001), ("writing chunks", 0.00005)];
        let machine = |cores| forecast(cores, 0.001, &serial);
        assert!((machine(1).images_per_s - 1000.0).abs() < 1e-6 && machine(1).bottleneck == "the cores");
        assert!((machine(8).images_per_s - 8000.0).abs() < 1e-6);
        assert!((machine(16).images_per_s - 10_000.0).abs() < 1e-6 && machine(16).bottleneck == "reading a shard");
    }
}
