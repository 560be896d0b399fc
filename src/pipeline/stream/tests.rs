//! Back pressure: how much a stream takes in when nobody takes anything from it, to the row and to the byte.

use std::time::Duration;

use super::*;
use crate::chunk::pixels::image_bytes;
use crate::decode::{Alpha, Geometry, Resample};
use crate::store::{LocalDirectory, StoreSettings};

/// Blocks between reader and decoders.
const LINK: u64 = 2;
/// Rows of a block, and of a chunk here: each chunk is one block.
const ROWS: u64 = 32;
const WORKERS: usize = 2;
/// Blocks that are decoded or wait for their turn.
const IN_ORDER: u64 = 2 * WORKERS as u64;

/// A stream over more rows than it will take in, into a ring whose consumer never reads.
struct Stalled {
    meter: Arc<Meter>,
    machine: Machine,
    /// What waits for the consumer: one chunk and no more.
    waiting: mpsc::Receiver<RingChunk>,
    running: tokio::task::JoinHandle<Result<(), PipelineError>>,
    own_bytes: u64,
    _dir: tempfile::TempDir,
}

/// An image in base64.
fn image() -> String {
    let mut png = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut png, 20, 10);
    encoder.set_color(::png::ColorType::Grayscale);
    let pixels: Vec<u8> = (0..200).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    base64_simd::STANDARD.encode_to_string(png)
}

/// Bytes that a block takes of the budget.
fn block_bytes() -> u64 {
    // 64 bytes for each row beside its text, URL and pixels.
    ROWS * (image().len() + "https://x/00000".len() + 64 + image_bytes(8)) as u64
}

impl Stalled {
    /// `budget`: whole blocks that fit beside what the stages take for themselves.
    async fn start(budget: u64, disk_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = image();
        let rows: Vec<String> = (0..100 * ROWS).map(|row| format!("https://x/{row:05}\t{image}\tm\n")).collect();
        let shard = dir.path().join("shard.csv");
        std::fs::write(&shard, rows.concat()).unwrap();
        let store = Store::new(StoreSettings::default());
        let shards = store.list(&[shard.display().to_string()]).await.unwrap();
        let spec = Spec {
            geometry: Geometry::Squash { size_px: 8 },
            resample: Resample::Bilinear,
            alpha: Alpha::White,
            max_encoded_bytes: 1 << 20,
            max_pixels: 100_000,
            crops: false,
        };
        let own = stream_bytes(&spec, WORKERS, ROWS);
        let own_bytes = own.reader + own.decoders + own.writer;
        let limit = ByteBudget::rounded(own_bytes) + budget * ByteBudget::rounded(block_bytes());
        let machine = Machine {
            store,
            pool: CpuPool::new(WORKERS).unwrap(),
            budget: ByteBudget::new(limit),
            stop: Stop::default(),
            board: Board::default(),
            events: Events::default(),
        };
        let meter = machine.board.stage("images", "rows", 0);
        let job = StreamJob {
            shards: Arc::new(shards),
            wanted: Wanted::Everything,
            spec,
            views: None,
            chunk_rows: ROWS,
            generation: "g".to_owned(),
            max_bad_fraction: 1.0,
            meter: Arc::clone(&meter),
        };
        let start = Position { shard: 0, row: 0 };
        let scratch = LocalDirectory::create(dir.path().join("ring")).unwrap();
        let (ring, _) = Ring::open(scratch, disk_bytes, "g", start).await.unwrap();
        let (chunks_in, waiting) = link(1);
        let seen = Seen::new(Wanted::Everything);
        // The decoders are busy at first, so that what can be taken in is, before the first chunk is done.
        let mut busy = Vec::new();
        for _ in 0..WORKERS {
            let (pool, (free, wait)) = (machine.pool.clone(), std::sync::mpsc::channel::<()>());
            tokio::spawn(async move { pool.run(move || wait.recv().ok()).await });
            busy.push(free);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let running =
            tokio::spawn(run(job, machine.clone(), seen, start, Tally::default(), Sink::Ring(ring, chunks_in)));
        let stalled = Self { meter, machine, waiting, running, own_bytes, _dir: dir };
        stalled.settle().await;
        drop(busy);
        stalled
    }

    /// Rows taken in, once they are no more.
    async fn settle(&self) -> u64 {
        let (mut rows, mut same) = (0, 0);
        while same < 15 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.meter.snapshot().done;
            same = if now == rows && now > 0 { same + 1 } else { 0 };
            rows = now;
        }
        rows
    }

    /// Most bytes of blocks that were held at once.
    fn block_bytes_at_once(&self) -> u64 {
        self.machine.budget.peak_bytes() - self.own_bytes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_consumer_stops_the_reader_after_the_blocks_that_the_links_hold() {
    let mut stalled = Stalled::start(1000, 1 << 30).await;
    // One chunk waits for the consumer, one for its place there; of the blocks behind, all but the one that became
    // the second chunk wait in order; then the link, and the block that the reader has in hand.
    let expected = 1 + 1 + (IN_ORDER - 1) + LINK + 1;
    assert_eq!(stalled.settle().await, expected * ROWS);
    // Before the first chunk was done, everything that was taken in was held.
    assert_eq!(stalled.block_bytes_at_once(), (IN_ORDER + LINK + 1) * block_bytes());
    // Each chunk that is taken lets one more block in.
    for taken in 1..4 {
        assert!(stalled.waiting.recv().await.is_some());
        assert_eq!(stalled.settle().await, (expected + taken) * ROWS);
    }
    drop(stalled.waiting);
    stalled.running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ring_stops_the_reader_as_a_stalled_consumer_does() {
    // Room for the fixed part of one chunk and its rows, so the second waits for room.
    let stalled = Stalled::start(1000, (256 << 10) + ByteBudget::rounded(ROWS * 400)).await;
    let expected = 1 + 1 + (IN_ORDER - 1) + LINK + 1;
    assert_eq!(stalled.settle().await, expected * ROWS);
    stalled.running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_budget_stops_the_reader_after_the_bytes_that_it_holds() {
    for blocks in [1, 3] {
        let mut stalled = Stalled::start(blocks, 1 << 30).await;
        // Two chunks are done and gave their bytes back; then the blocks that fit, and the one in hand, which holds nothing.
        assert_eq!(stalled.settle().await, (2 + blocks + 1) * ROWS, "{blocks} blocks");
        assert_eq!(stalled.block_bytes_at_once(), blocks * block_bytes());
        assert!(stalled.waiting.recv().await.is_some());
        assert_eq!(stalled.settle().await, (3 + blocks + 1) * ROWS, "{blocks} blocks");
        stalled.running.abort();
    }
}
