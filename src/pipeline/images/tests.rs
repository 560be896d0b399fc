//! Tests of exact back-pressure in rows and bytes, and of equal chunks for any number of threads.

use std::time::Duration;

use super::*;
use crate::chunk::pixels::image_bytes;
use crate::chunk::{Checksum, ChunkId, JournalEntry};
use crate::config::ImageColumnNames;
use crate::config::bytes::BLOCK_IMAGES;
use crate::corpus::{ImageColumns, ImageRows, PushParser as _};
use crate::decode::{Alpha, Geometry, ImageSpec, Resample};
use crate::objects::{Store, StoreSettings};
use crate::run_dir::LocalDirectory;
use crate::runtime::{ByteBudget, CpuPool};
use crate::telemetry::ProgressRegistry;
use crate::types::{ImageFormat, ValidationSplit};

/// Blocks in the channel between reader and decoders.
const CHANNEL: u64 = 2;
/// Rows of a block, which is a whole chunk here.
const ROWS: u64 = BLOCK_IMAGES as u64;
const WORKERS: usize = 2;
/// Blocks between decoders and writer, without the one being written.
const DECODED: u64 = WORKERS as u64;

/// A stream over many rows into a spool whose consumer never reads.
struct Stalled {
    stage_progress: Arc<StageProgress>,
    ctx: RunContext,
    /// Chunks that wait for the consumer, at most one.
    waiting: mpsc::Receiver<SpooledChunk>,
    running: tokio::task::JoinHandle<Result<(), PipelineError>>,
    own_bytes: u64,
    _dir: tempfile::TempDir,
}

/// Describes tab-separated shards.
fn tsv() -> ImageInput {
    ImageInput::new(ImageFormat::Tsv, &ImageColumnNames::default())
}

/// Returns an image in base64.
fn image() -> String {
    image_of_row(0)
}

/// Returns one of 256 different images in base64.
fn image_of_row(row: usize) -> String {
    let mut png = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut png, 20, 10);
    encoder.set_color(::png::ColorType::Grayscale);
    let pixels: Vec<u8> = (0..200).map(|pixel: u8| pixel.wrapping_mul(7).wrapping_add(row as u8)).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    base64_simd::STANDARD.encode_to_string(png)
}

/// Returns the bytes of the budget that a block takes.
fn block_bytes() -> u64 {
    // Each row takes 64 bytes in addition to its base64, URL and pixels.
    ROWS * (image().len() + "https://x/00000".len() + 64 + image_bytes(8)) as u64
}

fn spec() -> RowContent {
    RowContent::Images(image_spec())
}

fn image_spec() -> ImageSpec {
    ImageSpec {
        geometry: Geometry::Squash { size_px: 8 },
        resample: Resample::Bilinear,
        alpha: Alpha::White,
        max_encoded_bytes: 1 << 20,
        max_pixels: 100_000,
        crops: false,
    }
}

impl Stalled {
    /// Starts a stream with a budget for `budget` blocks in addition to the fixed share of each part.
    async fn start(budget: u64, disk_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = image();
        let rows: Vec<String> = (0..100 * ROWS).map(|row| format!("https://x/{row:05}\t{image}\tm\n")).collect();
        let shard = dir.path().join("shard.csv");
        std::fs::write(&shard, rows.concat()).unwrap();
        let store = Store::new(StoreSettings::default());
        let shards = store.list(&[shard.display().to_string()]).await.unwrap();
        let spec = spec();
        let own = spec.stream_bytes(WORKERS, ROWS);
        let own_bytes = own.reader + own.decoders + own.writer;
        let limit = ByteBudget::rounded(own_bytes) + budget * ByteBudget::rounded(block_bytes());
        let ctx = RunContext { store, ..RunContext::for_test(WORKERS, limit) };
        let stage_progress = ctx.progress.stage("images", "rows", 0);
        let job = StreamJob {
            input: tsv(),
            shards: Arc::new(shards),
            part: Part::WHOLE,
            filter: ImageFilter::Everything,
            content: spec,
            views: None,
            chunk_rows: ROWS,
            generation: "g".to_owned(),
            max_bad_fraction: 1.0,
            stage_progress: Arc::clone(&stage_progress),
        };
        let scratch = LocalDirectory::create(dir.path().join("spool")).unwrap();
        let (spool, _) = Spool::open(scratch, disk_bytes, "g", &mut Vec::new()).await.unwrap();
        let (chunks_in, waiting) = channel(1);
        let start = StartPoint::fresh(1);
        // Keep the decoders busy at first, so that the reader reads all it can before the first chunk is done.
        let mut busy = Vec::new();
        for _ in 0..WORKERS {
            let (pool, (free, wait)) = (ctx.pool.clone(), std::sync::mpsc::channel::<()>());
            let wait = std::sync::Mutex::new(wait);
            tokio::task::spawn_blocking(move || pool.run_on_all(1, || _ = wait.lock().unwrap().recv()));
            busy.push(free);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (own, sink) = (ctx.clone(), Sink::Spool(spool, chunks_in));
        let running = tokio::spawn(async move { stream_images(&own, job, start, sink).await });
        let stalled = Self { stage_progress, ctx, waiting, running, own_bytes, _dir: dir };
        stalled.settle().await;
        drop(busy);
        stalled
    }

    /// Waits until no more rows are read. Returns the number of rows read.
    async fn settle(&self) -> u64 {
        let (mut rows, mut same) = (0, 0);
        while same < 15 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.stage_progress.snapshot().done;
            same = if now == rows && now > 0 { same + 1 } else { 0 };
            rows = now;
        }
        rows
    }

    /// Returns the peak memory of blocks, in bytes.
    fn block_bytes_at_once(&self) -> u64 {
        self.ctx.budget.peak_bytes() - self.own_bytes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_consumer_stops_the_reader() {
    let mut stalled = Stalled::start(1000, 1 << 30).await;
    // One chunk waits for the consumer, and one waits for room there. Behind them are the decoded blocks, the blocks in
    // the channel, and the block that the reader holds.
    let expected = 1 + 1 + DECODED + CHANNEL + 1;
    assert_eq!(stalled.settle().await, expected * ROWS);
    // Blocks of incomplete chunks hold memory. Before the first chunk was complete, one more block did.
    let held = stalled.ctx.budget.in_flight_bytes() - stalled.own_bytes;
    assert_eq!(held, (DECODED + CHANNEL + 1) * block_bytes());
    assert_eq!(stalled.block_bytes_at_once(), held + block_bytes());
    // Each chunk that is received lets one more block in.
    for taken in 1..4 {
        assert!(stalled.waiting.recv().await.is_some());
        assert_eq!(stalled.settle().await, (expected + taken) * ROWS);
    }
    drop(stalled.waiting);
    stalled.running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_spool_stops_the_reader() {
    // Room for one chunk, so the second waits.
    let stalled = Stalled::start(1000, (256 << 10) + ByteBudget::rounded(ROWS * 400)).await;
    let expected = 1 + 1 + DECODED + CHANNEL + 1;
    assert_eq!(stalled.settle().await, expected * ROWS);
    stalled.running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_budget_stops_the_reader() {
    for blocks in [1, 3] {
        let mut stalled = Stalled::start(blocks, 1 << 30).await;
        // Two complete chunks hold no memory. Behind them are the blocks that fit the budget and the block that the
        // reader holds.
        assert_eq!(stalled.settle().await, (2 + blocks + 1) * ROWS, "{blocks} blocks");
        assert_eq!(stalled.block_bytes_at_once(), blocks * block_bytes());
        assert!(stalled.waiting.recv().await.is_some());
        assert_eq!(stalled.settle().await, (3 + blocks + 1) * ROWS, "{blocks} blocks");
        stalled.running.abort();
    }
}

/// Returns the URLs of seven shards of up to 90 rows. Every fifth URL also occurs in other rows and shards.
fn shards_with_duplicates() -> Vec<Vec<String>> {
    let rows = |shard: usize| match shard {
        2 => 0,
        5 => 90,
        _ => 10 + 11 * shard,
    };
    let url = |shard, row: usize| {
        if row % 5 == 2 { format!("https://x/{}", row * 7 % 60) } else { format!("https://x/{shard}-{row}") }
    };
    (0..7).map(|shard| (0..rows(shard)).map(|row| url(shard, row)).collect()).collect()
}

/// Streams these shards into a directory, part by part. Returns its files and the peak of the budget.
async fn stream_shards(
    workers: usize,
    limit: u64,
    views: Option<Views>,
    parts: u32,
) -> (BTreeMap<String, Vec<u8>>, u64) {
    stream_into(tempfile::tempdir().unwrap().path(), workers, limit, views, parts).await
}

async fn stream_into(
    dir: &std::path::Path,
    workers: usize,
    limit: u64,
    views: Option<Views>,
    parts: u32,
) -> (BTreeMap<String, Vec<u8>>, u64) {
    for (shard, urls) in shards_with_duplicates().iter().enumerate() {
        let rows = urls.iter().enumerate();
        let rows: Vec<String> =
            rows.map(|(row, url)| format!("{url}\t{}\tm\n", image_of_row(31 * shard + row))).collect();
        std::fs::write(dir.join(format!("{shard}.csv")), rows.concat()).unwrap();
    }
    let store = Store::new(StoreSettings::default());
    let shards = store.list(&[format!("{}/*.csv", dir.display())]).await.unwrap();
    let ctx = RunContext { store, ..RunContext::for_test(workers, limit) };
    let shards = Arc::new(shards);
    let run_dir: crate::run_dir::Directory = LocalDirectory::create(dir.join("run")).unwrap().into();
    let layout = Layout::train("chunks");
    for part in (0..parts).rev().map(|index| Part::new(index, parts).unwrap()) {
        let job = StreamJob {
            input: tsv(),
            shards: Arc::clone(&shards),
            part,
            filter: ImageFilter::Everything,
            content: spec(),
            views,
            chunk_rows: 16,
            generation: "g".to_owned(),
            max_bad_fraction: 1.0,
            stage_progress: ctx.progress.stage("images", "rows", 0),
        };
        let journal = Journal::open(run_dir.clone(), layout.clone(), "g", part).unwrap();
        let start = StartPoint::after(&journal, &[], journal.pending(7)).unwrap();
        stream_images(&ctx, job, start, Sink::Product(journal, Compression::None)).await.unwrap();
    }
    let journal = Journal::read(run_dir.clone(), layout, None).unwrap();
    assert!(journal.pending(7).is_empty() && journal.tally().adds_up());
    settle_duplicates(&journal, "g").unwrap();
    let names = run_dir.list_recursive("").unwrap().into_keys();
    let files = names.map(|name| (name.clone(), std::fs::read(dir.join("run").join(&name)).unwrap())).collect();
    assert_eq!(ctx.budget.in_flight_bytes(), 0);
    (files, ctx.budget.peak_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_ahead_gives_the_same_bytes() {
    let own = spec().stream_bytes(2, 16);
    let least = ByteBudget::rounded(own.reader + own.decoders + own.writer + own.block);
    let (alone, peak) = stream_shards(2, least, None, 1).await;
    assert!(peak <= least);
    for (workers, limit) in [(2, 1 << 30), (4, 1 << 30), (4, 200 << 20)] {
        let (ahead, peak) = stream_shards(workers, limit, None, 1).await;
        assert!(peak > least && peak <= limit, "{workers} workers held {peak} bytes of {limit}");
        assert!(alone == ahead, "{workers} workers and {limit} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_parts_gives_the_same_bytes() {
    let (whole, _) = stream_shards(2, 1 << 30, None, 1).await;
    for parts in [2, 3, 7, 9] {
        assert!(whole == stream_shards(2, 1 << 30, None, parts).await.0, "{parts} parts");
    }
    // Each URL is kept once in each of its shards, and counts once over all shards.
    let (mut kept, mut everywhere) = (0, std::collections::HashSet::new());
    for (shard, urls) in shards_with_duplicates().iter().enumerate() {
        let mut seen = std::collections::HashSet::new();
        for (start, rows) in urls.chunks(16).enumerate() {
            let id = ChunkId { shard: shard as u32, row: 16 * start as u64 };
            let entry: JournalEntry = serde_json::from_slice(&whole[&format!("journal/chunks/{id}.json")]).unwrap();
            let own = rows.iter().filter(|url| seen.insert(*url)).count();
            assert_eq!(entry.tally.kept, own as u64, "{id}");
            kept += own;
        }
        everywhere.extend(urls.iter().cloned());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("duplicates.parquet");
    std::fs::write(&path, &whole["duplicates.parquet"]).unwrap();
    let duplicates = crate::chunk::duplicates::Duplicates::read(&path, "g").unwrap().unwrap();
    assert!(duplicates.count() > 0);
    assert_eq!(duplicates.count() as usize, kept - everywhere.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_resumes_after_any_committed_chunks() {
    let (whole, _) = stream_shards(2, 1 << 30, None, 1).await;
    // Removing entries is what a kill before their commits would leave.
    for left in [1_usize, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        for (name, content) in &whole {
            let path = run_dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        for shard in 0..7 {
            let last = shards_with_duplicates()[shard].len() / 16;
            for chunk in left + shard % 2..=last {
                let id = ChunkId { shard: shard as u32, row: 16 * chunk as u64 };
                std::fs::remove_file(run_dir.join(format!("journal/chunks/{id}.json"))).ok();
            }
        }
        let again = stream_into(dir.path(), 2, 1 << 30, None, 1).await.0;
        assert!(whole == again, "{left} chunks");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_threads_gives_the_same_bytes() {
    let views = Views { count: 3, split: ValidationSplit { seed: 5, fraction: 0.4 } };
    for views in [None, Some(views)] {
        let (alone, _) = stream_shards(1, 1 << 30, views, 1).await;
        for workers in [2, 5] {
            let (shared, _) = stream_shards(workers, 1 << 30, views, 1).await;
            assert!(alone == shared, "{workers} workers, {views:?}");
        }
    }
}

#[test]
fn blocks_reuse_buffers() {
    let image = image();
    let rows: Vec<String> = (0..ROWS * 20).map(|row| format!("https://x/{row:05}\t{image}\tm\n")).collect();
    let text = rows.concat();
    let job = Arc::new(StreamJob {
        input: tsv(),
        shards: Arc::default(),
        part: Part::WHOLE,
        filter: ImageFilter::Everything,
        content: spec(),
        views: None,
        chunk_rows: ROWS * 20,
        generation: "g".to_owned(),
        max_bad_fraction: 1.0,
        stage_progress: ProgressRegistry::default().stage("images", "rows", 0),
    });
    let texts = BufferPool::new(2, MAX_REUSED_BYTES);
    let mut rows = shard_reader::ShardRows::new(Arc::clone(&job), texts.clone(), ChunkId { shard: 0, row: 0 });
    let mut reader = ImageRows::new("part.csv", ImageColumns::default(), 1 << 20);
    let decoders = Decoders::new(&job, CpuPool::new(1).unwrap(), texts, 1);
    // Count the allocations of the decoder alone.
    let mut decoder = crate::decode::Decoder::new(image_spec());
    let mut out = vec![0; decoder.pixel_bytes()];
    let mut by_decoder = 0;
    for _ in 0..3 {
        let mut bytes = image.clone().into_bytes();
        let mut decode = || decoder.decode_base64_into(&mut bytes, &mut out, |_| ()).is_ok();
        by_decoder = allocation_counter::measure(|| assert!(decode())).count_total;
    }
    let mut counts = Vec::new();
    for text in text.as_bytes().chunks(text.len() / 20) {
        let measured = allocation_counter::measure(|| {
            reader.feed(text);
            while let Some(block) = rows.next_block(&mut reader).unwrap() {
                let on_this_thread = |_, work: &(dyn Fn() + Sync)| {
                    work();
                    Ok(())
                };
                decoders.recycle(decoders.decode_with(block, on_this_thread).unwrap().pixels);
            }
        });
        counts.push(measured.count_total);
    }
    // URLs, labels and spans of a block have separate buffers.
    let (first, rest) = counts.split_at(4);
    let most = rest.iter().max().unwrap().saturating_sub(ROWS * by_decoder);
    assert!(most <= 2 * ROWS, "{most} allocations beyond those for {ROWS} images, {first:?} at first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_images_have_right_pixels_and_checksum() {
    const SIZE_PX: u32 = 224;
    let text = |row: usize| if row % 7 == 3 { "bm8gaW1hZ2U=".to_owned() } else { image_of_row(row) };
    let url = |row: usize| format!("https://x/{}", if row % 10 == 8 { row - 1 } else { row });
    let rows: Vec<String> = (0..70).map(|row| format!("{}\t{}\tm\n", url(row), text(row))).collect();
    for views in [None, Some(Views { count: 3, split: ValidationSplit { seed: 5, fraction: 0.4 } })] {
        let dir = tempfile::tempdir().unwrap();
        let shard = dir.path().join("shard.csv");
        std::fs::write(&shard, rows.concat()).unwrap();
        let store = Store::new(StoreSettings::default());
        let shards = store.list(&[shard.display().to_string()]).await.unwrap();
        let ctx = RunContext { store, ..RunContext::for_test(WORKERS, 1 << 30) };
        let run_dir = dir.path().join("run");
        let geometry = Geometry::Squash { size_px: SIZE_PX };
        let spec = ImageSpec { geometry, crops: views.is_some(), ..image_spec() };
        let job = StreamJob {
            input: tsv(),
            shards: Arc::new(shards),
            part: Part::WHOLE,
            filter: ImageFilter::Everything,
            content: RowContent::Images(spec.clone()),
            views,
            chunk_rows: 70,
            generation: "g".to_owned(),
            max_bad_fraction: 1.0,
            stage_progress: ctx.progress.stage("images", "rows", 0),
        };
        let layout = Layout::train("chunks");
        let directory: crate::run_dir::Directory = LocalDirectory::create(&run_dir).unwrap().into();
        let journal = Journal::open(directory.clone(), layout.clone(), "g", Part::WHOLE).unwrap();
        let start = StartPoint::fresh(1);
        stream_images(&ctx, job, start, Sink::Product(journal, Compression::None)).await.unwrap();
        let journal = Journal::read(directory, layout, None).unwrap();
        // Row 38 is both a duplicate and not an image.
        assert_eq!((journal.tally().kept, journal.tally().quarantined_rows()), (54, 9));
        let (id, entry) = journal.entries().iter().next().unwrap();
        let (path, checksum) = (
            run_dir.join(format!("chunks/{id}.parquet")),
            entry.checksums.get(&format!("chunks/{id}.parquet")).copied(),
        );
        assert!(matches!(checksum, Some(Checksum::Segments(_))), "{:?}", entry.checksums);
        crate::chunk::verify(&path, "chunk", checksum).unwrap();
        // Decode each row by itself.
        let mut decoder = crate::decode::Decoder::new(spec);
        let mut expected = Vec::new();
        for row in (0..70).filter(|row| row % 7 != 3 && row % 10 != 8) {
            let mut of_image = Vec::new();
            Views::list(views, &url(row), &mut of_image);
            let mut pictures = vec![0; of_image.len() * image_bytes(SIZE_PX)];
            let mut text = image_of_row(row).into_bytes();
            decoder.decode_base64_views(&mut text, &of_image, &mut pictures, |_| ()).unwrap();
            let pictures = pictures.chunks(image_bytes(SIZE_PX));
            expected.extend(pictures.map(|pixels| (url(row), pixels.to_vec())));
        }
        let (mut reader, mut pixels) = (crate::chunk::pixels::PixelReader::open(&path, 16).unwrap(), Vec::new());
        let mut expected = expected.into_iter();
        while let Some(heads) = reader.next_batch(&mut pixels).unwrap() {
            for (head, pixels) in pixels.chunks(image_bytes(SIZE_PX)).enumerate() {
                let (url, expected) = expected.next().unwrap();
                assert_eq!(heads.url(head), url);
                assert!(pixels == expected, "{url}, {views:?}");
            }
        }
        assert_eq!(expected.len(), 0, "{views:?}");
    }
}
