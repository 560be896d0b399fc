//! Image shards → decoded squares → chunks: one reader in the order of the corpus, a pool of decoders, one writer.
//!
//! The shards are read one after the other because of the rule that the first of two rows with one URL wins: which row
//! is first must not depend on timing. Decoding, the expensive part, is spread over the pool in blocks of rows whose
//! boundaries depend on the input alone, and comes back in order, so the chunks are the same bytes for any number of workers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PipelineError;
use crate::catalog::{Seen, Wanted, url_hash};
use crate::chunk::features::read_heads;
use crate::chunk::journal::{Journal, Position};
use crate::chunk::pixels::{PixelWriter, image_bytes};
use crate::chunk::quarantine::{self, Quarantined};
use crate::chunk::ring::{Ring, RingChunk, RingEntry, Slot};
use crate::chunk::{ChunkId, Entry, RowHeads, Tally};
use crate::config::value::Compression;
use crate::corpus::{ImageRow, ImageRowProblem, ImageRows, PushParser};
use crate::decode::{Decoder, Spec};
use crate::flow::{ByteBudget, CpuPool, Held, Meter, Stop, link};
use crate::store::{Object, Reader, Store, explain_read};

/// Rows that one decoding job takes, at most.
const BLOCK_ROWS: usize = 32;
/// Encoded bytes that one decoding job takes, about.
const BLOCK_BYTES: usize = 4 << 20;
/// Bytes handed to the row parser at a time.
const FEED_BYTES: usize = 256 << 10;
/// Rows of a shard after which `limits.max_bad_fraction` is judged.
const JUDGED_ROWS: u64 = 1000;

/// Everything that a stream of images is.
pub(super) struct StreamJob {
    /// Shards in order.
    pub(super) shards: Arc<Vec<Object>>,
    /// Which images are wanted, and their labels.
    pub(super) wanted: Wanted,
    /// How they are decoded.
    pub(super) spec: Spec,
    /// Source rows a chunk covers.
    pub(super) chunk_rows: u64,
    /// Hash of everything that the chunks depend on.
    pub(super) generation: String,
    /// Share of a shard's wanted rows that may be unusable.
    pub(super) max_bad_fraction: f64,
    /// Counts rows.
    pub(super) meter: Arc<Meter>,
}

/// What the stages of a stream share.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) store: Store,
    pub(super) pool: CpuPool,
    pub(super) budget: ByteBudget,
    pub(super) stop: Stop,
}

/// Where complete chunks go.
pub(super) enum Sink {
    /// Into the scratch ring, and on to whoever consumes them.
    Ring(Ring, mpsc::Sender<RingChunk>),
    /// Into the run's directory, as the product.
    Durable(Journal, Compression),
}

/// A few wanted rows on their way to a decoder.
struct Block {
    id: ChunkId,
    /// The chunk ends behind this block; whether the shard does too.
    closes: Option<bool>,
    tally: Tally,
    bad: Vec<Quarantined>,
    heads: RowHeads,
    row_numbers: Vec<u64>,
    /// Base64 of the rows, one behind the other.
    data: Vec<u8>,
    ends: Vec<usize>,
    held: Option<Held>,
}

/// A block's images.
struct Decoded {
    id: ChunkId,
    closes: Option<bool>,
    tally: Tally,
    bad: Vec<Quarantined>,
    heads: RowHeads,
    pixels: Vec<u8>,
    held: Option<Held>,
}

/// The URLs that chunks of an earlier process have taken.
pub(super) fn seen_so_far(journal: &Journal, ring: &[RingChunk], wanted: &Wanted) -> Result<Seen, PipelineError> {
    let mut seen = Seen::new(wanted.clone());
    let mut take = |path: &std::path::Path| -> Result<(), PipelineError> {
        let heads = read_heads(path)?;
        for row in 0..heads.len() {
            seen.first(url_hash(heads.url(row)));
        }
        Ok(())
    };
    let layout = journal.layout();
    for (id, entry) in journal.entries() {
        let chunk = layout.chunk(*id);
        if entry.files.contains_key(&chunk) {
            take(&journal.directory().path(&chunk))?;
        }
    }
    for chunk in ring {
        chunk.pixels().as_deref().map_or(Ok(()), &mut take)?;
    }
    let mut note = |rows: &[Quarantined]| {
        for row in rows.iter().filter(|row| takes_its_url(&row.reason)) {
            if let Some(url) = &row.image_url {
                seen.first(url_hash(url));
            }
        }
    };
    for (id, entry) in journal.entries() {
        let name = layout.quarantine(*id);
        if entry.files.contains_key(&name) {
            note(&quarantine::read(&journal.directory().path(&name))?);
        }
    }
    for chunk in ring {
        note(&chunk.entry.quarantined);
    }
    Ok(seen)
}

/// Whether a quarantined row counts as its URL's first: all do whose URL was sound.
fn takes_its_url(reason: &str) -> bool {
    ImageRowProblem::ALL.iter().all(|problem| *problem == ImageRowProblem::MissingData || problem.as_str() != reason)
}

/// Runs the stream from `position` to the end of the last shard, or until the stop token is raised.
///
/// `counted` is what earlier processes counted in the shard at `position`.
pub(super) async fn run(
    job: StreamJob,
    machine: Machine,
    seen: Seen,
    position: Position,
    counted: Tally,
    sink: Sink,
) -> Result<(), PipelineError> {
    let width = machine.pool.width() * 2;
    let (blocks_in, blocks_out) = link::<Block>(2);
    let job = Arc::new(job);
    let mut stages = JoinSet::new();
    stages.spawn(read_shards(Arc::clone(&job), machine.clone(), seen, position, blocks_in));
    stages.spawn(write_chunks(job, machine.clone(), blocks_out, width, counted, sink));
    while let Some(done) = stages.join_next().await {
        // Dropping the set ends the other stage.
        done??;
    }
    match machine.stop.signal() {
        Some(signal) => Err(PipelineError::Stopped(signal)),
        None => Ok(()),
    }
}

/// Largest record: an image of the largest size in base64, and its URLs.
fn max_record_bytes(spec: &Spec) -> usize {
    usize::try_from(spec.max_encoded_bytes / 3 * 4).unwrap_or(usize::MAX / 2) + (64 << 10)
}

async fn read_shards(
    job: Arc<StreamJob>,
    machine: Machine,
    mut seen: Seen,
    position: Position,
    blocks: mpsc::Sender<Block>,
) -> Result<(), PipelineError> {
    let all_bytes: u64 = job.shards.iter().map(|shard| shard.size).sum();
    let mut bytes_before: u64 = job.shards.iter().take(position.shard as usize).map(|shard| shard.size).sum();
    for (index, shard) in job.shards.iter().enumerate().skip(position.shard as usize) {
        let first_row = if index == position.shard as usize { position.row } else { 0 };
        let packed_read = Arc::new(AtomicU64::new(0));
        let mut reader = machine.store.open(shard, Arc::clone(&packed_read)).await?;
        let mut rows = ShardReader {
            job: &job,
            parser: ImageRows::new(max_record_bytes(&job.spec)),
            seen: &mut seen,
            shard: index as u32,
            first_row,
            next_row: first_row,
            block: None,
        };
        let mut buffer = vec![0; FEED_BYTES];
        loop {
            let more = fill(&mut reader, &mut rows.parser, &mut buffer, &shard.url).await?;
            while let Some(block) = rows.next_block() {
                if !hand_on(block, &job, &machine, &blocks).await {
                    return Ok(());
                }
            }
            let read = bytes_before + packed_read.load(Ordering::Relaxed);
            let done = job.meter.snapshot().done;
            if read > 0 {
                job.meter.set_total((done as f64 * all_bytes as f64 / read as f64).round() as u64);
            }
            if machine.stop.is_raised() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        if !hand_on(rows.last_block(), &job, &machine, &blocks).await {
            return Ok(());
        }
        bytes_before += shard.size;
    }
    job.meter.set_total(job.meter.snapshot().done);
    Ok(())
}

/// Feeds the parser one block from the reader; says whether more may follow.
pub(super) async fn fill(
    reader: &mut Reader,
    parser: &mut impl PushParser,
    buffer: &mut [u8],
    url: &str,
) -> Result<bool, PipelineError> {
    let read = reader.read(buffer).await.map_err(|error| explain_read(url, error))?;
    if read == 0 {
        parser.finish();
        return Ok(false);
    }
    parser.feed(&buffer[..read]);
    Ok(true)
}

/// Sends a block on once its bytes fit the budget; false when nobody takes it any more or the run stops.
async fn hand_on(mut block: Block, job: &StreamJob, machine: &Machine, blocks: &mpsc::Sender<Block>) -> bool {
    let pixels = block.heads.len() * image_bytes(job.spec.geometry.output_px());
    job.meter.add(block.tally.rows);
    let send = async {
        block.held = Some(machine.budget.take((block.data.len() + pixels) as u64).await);
        blocks.send(block).await.is_ok()
    };
    tokio::select! {
        sent = send => sent,
        () = machine.stop.raised() => false,
    }
}

/// Cuts a shard's rows into blocks and chunks.
struct ShardReader<'a> {
    job: &'a StreamJob,
    parser: ImageRows,
    seen: &'a mut Seen,
    shard: u32,
    first_row: u64,
    next_row: u64,
    block: Option<Block>,
}

impl ShardReader<'_> {
    /// The chunk that `row` belongs to. Chunks start at multiples of `chunks.rows`.
    fn chunk(&self, row: u64) -> ChunkId {
        ChunkId { shard: self.shard, row: row - row % self.job.chunk_rows }
    }

    /// The next full block of the rows that the parser has; `None` when it needs more bytes.
    fn next_block(&mut self) -> Option<Block> {
        loop {
            let (first_row, shard, chunk_rows) = (self.first_row, self.shard, self.job.chunk_rows);
            let row = self.parser.next()?;
            let number = match row {
                ImageRow::Ok { row, .. } | ImageRow::Bad { row, .. } => row,
            };
            if number < first_row {
                continue;
            }
            self.next_row = number + 1;
            let id = ChunkId { shard, row: number - number % chunk_rows };
            let block = self.block.get_or_insert_with(|| Block::new(id));
            block.take(row, &self.job.wanted, self.seen);
            let chunk_full = self.next_row.is_multiple_of(chunk_rows);
            if chunk_full || block.heads.len() >= BLOCK_ROWS || block.data.len() >= BLOCK_BYTES {
                let mut full = self.block.take()?;
                full.closes = chunk_full.then_some(false);
                return Some(full);
            }
        }
    }

    /// What is left at the end of the shard; it closes the shard's last chunk, which may be empty.
    fn last_block(&mut self) -> Block {
        let mut block = self.block.take().unwrap_or_else(|| Block::new(self.chunk(self.next_row)));
        block.closes = Some(true);
        block
    }
}

impl Block {
    fn new(id: ChunkId) -> Self {
        Self {
            id,
            closes: None,
            tally: Tally::default(),
            bad: Vec::new(),
            heads: RowHeads::default(),
            row_numbers: Vec::new(),
            data: Vec::new(),
            ends: Vec::new(),
            held: None,
        }
    }

    /// Puts a row where it belongs: to be decoded, skipped or quarantined.
    fn take(&mut self, row: ImageRow<'_>, wanted: &Wanted, seen: &mut Seen) {
        self.tally.rows += 1;
        match row {
            ImageRow::Ok { row, image_url, base64 } => {
                let hash = url_hash(image_url);
                if self.skip(hash, wanted, seen) {
                    return;
                }
                self.heads.push(image_url, wanted.labels(hash));
                self.row_numbers.push(row);
                self.data.extend_from_slice(base64);
                self.ends.push(self.data.len());
            }
            ImageRow::Bad { row, reason, detail, image_url } => {
                // A row whose URL is sound is judged by it like any other before its data are.
                let hash = image_url.as_deref().filter(|_| reason == ImageRowProblem::MissingData).map(url_hash);
                if hash.is_some_and(|hash| self.skip(hash, wanted, seen)) {
                    return;
                }
                *self.tally.quarantined.entry(reason.as_str().to_owned()).or_default() += 1;
                self.bad.push(Quarantined { row, image_url, reason: reason.as_str().to_owned(), detail });
            }
        }
    }

    fn skip(&mut self, hash: u64, wanted: &Wanted, seen: &mut Seen) -> bool {
        let reason = if !wanted.wants(hash) {
            "no_label"
        } else if !seen.first(hash) {
            "duplicate_url"
        } else {
            return false;
        };
        *self.tally.skipped.entry(reason.to_owned()).or_default() += 1;
        true
    }

    /// Decodes the rows, in order. The bytes of `data` are freed before this returns.
    fn decode(self, decoder: &mut Decoder) -> Decoded {
        let image = decoder.pixel_bytes();
        let mut heads = RowHeads::default();
        let mut pixels = vec![0; image * self.heads.len()];
        let (mut tally, mut bad) = (self.tally, self.bad);
        let mut start = 0;
        for (index, end) in self.ends.iter().enumerate() {
            let kept = heads.len() * image;
            match decoder.decode_base64_into(&self.data[start..*end], &mut pixels[kept..kept + image]) {
                Ok(_) => {
                    heads.push(self.heads.url(index), self.heads.labels(index).iter().copied());
                    tally.kept += 1;
                }
                Err(error) => {
                    let reason = error.reason().as_str().to_owned();
                    *tally.quarantined.entry(reason.clone()).or_default() += 1;
                    bad.push(Quarantined {
                        row: self.row_numbers[index],
                        image_url: Some(self.heads.url(index).to_owned()),
                        reason,
                        detail: error.to_string(),
                    });
                }
            }
            start = *end;
        }
        pixels.truncate(heads.len() * image);
        bad.sort_by_key(|row| row.row);
        Decoded { id: self.id, closes: self.closes, tally, bad, heads, pixels, held: self.held }
    }
}

/// Decoders that wait for a job; each job borrows one, so their buffers are reused.
#[derive(Clone)]
struct Decoders {
    spec: Spec,
    idle: Arc<Mutex<Vec<Decoder>>>,
}

impl Decoders {
    fn decode(&self, block: Block) -> Decoded {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = idle.unwrap_or_else(|| Decoder::new(self.spec.clone()));
        let decoded = block.decode(&mut decoder);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        decoded
    }
}

async fn write_chunks(
    job: Arc<StreamJob>,
    machine: Machine,
    blocks: mpsc::Receiver<Block>,
    width: usize,
    counted: Tally,
    mut sink: Sink,
) -> Result<(), PipelineError> {
    let decoders = Decoders { spec: job.spec.clone(), idle: Arc::default() };
    let pool = machine.pool.clone();
    let mut decoded = futures::stream::unfold(blocks, |mut blocks| async { Some((blocks.recv().await?, blocks)) })
        .map(|block| {
            let (pool, decoders) = (pool.clone(), decoders.clone());
            // Spawned, so that decoding goes on while the writer waits.
            let task = tokio::spawn(async move { pool.run(move || decoders.decode(block)).await });
            async move { task.await.map_err(PipelineError::from)?.map_err(PipelineError::from) }
        })
        .buffered(width)
        .boxed();
    let mut shard = ShardJudge { shard: None, tally: counted };
    let mut open: Option<OpenChunk> = None;
    while let Some(block) = decoded.next().await {
        let block = block?;
        let mut chunk = match open.take() {
            Some(chunk) => chunk,
            None => OpenChunk::start(block.id, &sink).await?,
        };
        let closes = block.closes;
        chunk.write(block, &job, &sink).await?;
        match closes {
            None => open = Some(chunk),
            Some(last) => {
                shard.judge(&chunk, &job)?;
                let entry = chunk.complete(last, &job).await?;
                if !sink_chunk(entry, &job, &mut sink).await? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// A chunk that is being written.
struct OpenChunk {
    id: ChunkId,
    tally: Tally,
    labels: u64,
    bad: Vec<Quarantined>,
    /// Where the pixels go; no file is made before there is a row for it.
    path: PathBuf,
    writer: Option<PixelWriter>,
    slot: Option<Slot>,
}

/// A chunk whose pixel file has its footer and still its temporary name.
struct Finished {
    entry: RingEntry,
    slot: Option<Slot>,
}

impl OpenChunk {
    async fn start(id: ChunkId, sink: &Sink) -> Result<Self, PipelineError> {
        let (slot, path) = match sink {
            Sink::Ring(ring, _) => {
                let (slot, path) = ring.start(id).await?;
                (Some(slot), path)
            }
            Sink::Durable(journal, _) => (None, journal.directory().temporary(&journal.layout().chunk(id))?),
        };
        Ok(Self { id, tally: Tally::default(), labels: 0, bad: Vec::new(), path, writer: None, slot })
    }

    async fn write(&mut self, block: Decoded, job: &StreamJob, sink: &Sink) -> Result<(), PipelineError> {
        self.tally.merge(&block.tally);
        self.labels += block.heads.label_count() as u64;
        self.bad.extend(block.bad);
        if block.heads.is_empty() {
            return Ok(());
        }
        if let (Sink::Ring(ring, _), Some(slot)) = (sink, &mut self.slot) {
            // What a page header takes more than the rows is in the slot's fixed part and the 64 bytes a row.
            ring.reserve(slot, block.pixels.len() as u64 + block.heads.stored_bytes()).await;
        }
        let compression = match sink {
            Sink::Ring(..) => Compression::None,
            Sink::Durable(_, compression) => *compression,
        };
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => PixelWriter::create(&self.path, job.spec.geometry.output_px(), compression, &job.generation)?,
        };
        let (heads, pixels, held) = (block.heads, block.pixels, block.held);
        let writer = tokio::task::spawn_blocking(move || {
            writer.write(&heads, pixels)?;
            drop(held);
            Ok::<_, PipelineError>(writer)
        })
        .await??;
        self.writer = Some(writer);
        Ok(())
    }

    async fn complete(mut self, last: bool, job: &StreamJob) -> Result<Finished, PipelineError> {
        if let Some(writer) = self.writer.take() {
            tokio::task::spawn_blocking(move || writer.finish()).await??;
        }
        let entry = RingEntry {
            id: self.id,
            generation: job.generation.clone(),
            last,
            tally: self.tally,
            labels: self.labels,
            quarantined: self.bad,
            bytes: 0,
        };
        Ok(Finished { entry, slot: self.slot })
    }
}

/// Hands a finished chunk to the sink; false when nobody takes it any more.
async fn sink_chunk(chunk: Finished, job: &StreamJob, sink: &mut Sink) -> Result<bool, PipelineError> {
    match sink {
        Sink::Ring(ring, consumer) => {
            let Some(slot) = chunk.slot else { return Ok(false) };
            let complete = ring.complete(slot, chunk.entry).await?;
            Ok(consumer.send(complete).await.is_ok())
        }
        Sink::Durable(journal, _) => {
            let shard = &job.shards[chunk.entry.id.shard as usize].url;
            commit(journal, &chunk.entry, shard)?;
            Ok(true)
        }
    }
}

/// Makes a chunk's files, filled under their temporary names, durable, then enters it into the journal.
pub(super) fn commit(journal: &mut Journal, chunk: &RingEntry, shard: &str) -> Result<(), PipelineError> {
    let (directory, layout) = (journal.directory().clone(), journal.layout().clone());
    let mut entry = Entry {
        generation: chunk.generation.clone(),
        last: chunk.last,
        tally: chunk.tally.clone(),
        labels: chunk.labels,
        files: std::collections::BTreeMap::new(),
    };
    if chunk.tally.kept > 0 {
        let name = layout.chunk(chunk.id);
        let bytes = directory.publish(&name)?;
        entry.files.insert(name, bytes);
    }
    if !chunk.quarantined.is_empty() {
        let name = layout.quarantine(chunk.id);
        quarantine::write(&directory.temporary(&name)?, shard, &chunk.quarantined)?;
        let bytes = directory.publish(&name)?;
        entry.files.insert(name, bytes);
    }
    Ok(journal.commit(chunk.id, entry)?)
}

/// Stops a run whose shard is rubbish.
struct ShardJudge {
    shard: Option<u32>,
    tally: Tally,
}

impl ShardJudge {
    fn judge(&mut self, chunk: &OpenChunk, job: &StreamJob) -> Result<(), PipelineError> {
        if self.shard.is_some_and(|shard| shard != chunk.id.shard) {
            self.tally = Tally::default();
        }
        self.shard = Some(chunk.id.shard);
        self.tally.merge(&chunk.tally);
        let bad = self.tally.quarantined_rows();
        let judged = self.tally.kept + bad;
        if judged < JUDGED_ROWS || bad as f64 <= job.max_bad_fraction * judged as f64 {
            return Ok(());
        }
        let mut reasons: Vec<_> = self.tally.quarantined.iter().collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), (*reason).clone()));
        let reasons: Vec<String> =
            reasons.into_iter().take(3).map(|(reason, count)| format!("{reason} {count}")).collect();
        let example =
            chunk.bad.first().map_or_else(String::new, |row| format!("; row {} for example: {}", row.row, row.detail));
        Err(PipelineError::Input(format!(
            "{bad} of {judged} wanted rows of `{}` cannot be used ({}{example}), over `limits.max_bad_fraction` = {}; check the file, or raise the limit",
            job.shards[chunk.id.shard as usize].url,
            reasons.join(", "),
            job.max_bad_fraction
        )))
    }
}
