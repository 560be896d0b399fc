//! Blocks → decoded images → chunks, in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::PipelineError;
use super::super::events::Events;
use super::decoders::{Decoded, Decoders, Decoding};
use super::{Block, RunContext, Sink, StreamJob, THE_RUN, commit, decoding_blocks};
use crate::chunk::journal::{Journal, Layout};
use crate::chunk::pixels::{GROUP_OVERHEAD_BYTES, PixelWriter};
use crate::chunk::quarantine::Quarantined;
use crate::chunk::spool::{PendingChunk, Spool, SpoolEntry, SpooledChunk};
use crate::chunk::{ChunkId, Tally};
use crate::config::value::Compression;
use crate::objects::StoreError;
use crate::run_dir::Directory;
use crate::runtime::BufferPool;
use crate::telemetry::{Activity, StageTimer};

/// Rows of a shard after which `limits.max_bad_fraction` is judged.
const JUDGED_ROWS: u64 = 1000;

/// Decodes the blocks in the pool and writes them, in order, as chunks.
pub(super) async fn write_chunks(
    job: Arc<StreamJob>,
    machine: RunContext,
    blocks: mpsc::Receiver<Block>,
    texts: BufferPool,
    counted: BTreeMap<u32, Tally>,
    sink: Sink,
) -> Result<(), PipelineError> {
    let mut sink = Out::from(sink);
    let most = decoding_blocks(&job, &machine);
    let decoders = Decoders::new(&job, machine.pool.clone(), texts, most);
    let clock = StageTimer::serial("write chunks");
    let clock =
        job.stage_progress.part(if matches!(sink, Out::Durable(..)) { clock.blocked_by(THE_RUN) } else { clock });
    let mut decoding = decoders.start(blocks, most);
    let judge = ShardJudge { shards: counted };
    let written = write_all(&job, &mut sink, &mut decoding, judge, &clock, &decoders, &machine.events).await;
    // Giving memory back takes a while; the last chunk is being committed.
    drop(decoding);
    decoders.end();
    // Whatever happened, nothing works on the directory once this returns, but for a sync of a file that nobody will name.
    let settled = match &mut sink {
        Out::Durable(committer, _) => clock.wait(Activity::Blocked, committer.settle()).await,
        Out::Spool(..) | Out::Counted => Ok(()),
    };
    written.and(settled)?;
    clock.end();
    Ok(())
}

/// Writes blocks as they come.
async fn write_all(
    job: &Arc<StreamJob>,
    sink: &mut Out,
    decoding: &mut Decoding,
    mut shard: ShardJudge,
    clock: &StageTimer,
    decoders: &Decoders,
    events: &Events,
) -> Result<(), PipelineError> {
    let mut open: Option<OpenChunk> = None;
    while let Some(block) = clock.wait(Activity::Starved, decoding.next()).await? {
        let mut chunk = match open.take() {
            Some(chunk) => chunk,
            None => clock.wait(Activity::Blocked, OpenChunk::start(block.id, sink)).await?,
        };
        let closes = block.closes;
        let used = chunk.write(block, job, sink, clock).await?;
        decoders.reuse(used);
        match closes {
            None => open = Some(chunk),
            Some(last) => {
                shard.judge(&chunk, job)?;
                let entry = chunk.complete(last, job).await?;
                if !sink_chunk(entry, job, sink, clock, events).await? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Where complete chunks go, as the writer has it.
enum Out {
    Spool(Spool, mpsc::Sender<SpooledChunk>),
    Durable(Committer, Compression),
    Counted,
}

impl From<Sink> for Out {
    fn from(sink: Sink) -> Self {
        match sink {
            Sink::Spool(ring, consumer) => Self::Spool(ring, consumer),
            Sink::Durable(journal, compression) => Self::Durable(Committer::new(journal), compression),
            Sink::Counted => Self::Counted,
        }
    }
}

/// Commits chunks one after the other, each while the next one is decoded: making a few hundred megabytes durable takes a while in
/// which the processor has nothing to do.
struct Committer {
    directory: Directory,
    layout: Layout,
    /// `None` while a chunk is being committed.
    journal: Option<Journal>,
    committing: Option<JoinHandle<Result<Journal, PipelineError>>>,
}

impl Committer {
    fn new(journal: Journal) -> Self {
        let (directory, layout) = (journal.directory().clone(), journal.layout().clone());
        Self { directory, layout, journal: Some(journal), committing: None }
    }

    /// Waits until what is being committed is.
    async fn settle(&mut self) -> Result<(), PipelineError> {
        if let Some(committing) = self.committing.take() {
            self.journal = Some(committing.await??);
        }
        Ok(())
    }

    /// Commits a chunk once the one before it is committed. What goes to a remote directory is waited for: it is on scratch disk
    /// meanwhile, which has room for one.
    async fn commit(&mut self, chunk: Finished, job: &Arc<StreamJob>, events: &Events) -> Result<(), PipelineError> {
        self.settle().await?;
        let Some(mut journal) = self.journal.take() else {
            return Err(PipelineError::Internal("a journal is in use".to_owned()));
        };
        let (job, events) = (Arc::clone(job), events.clone());
        let Finished { entry: chunk, path, writing_out, .. } = chunk;
        self.committing = Some(tokio::task::spawn_blocking(move || {
            let written = futures::executor::block_on(writing_out.end(&path))?;
            let shard = &job.shards[chunk.id.shard as usize].name;
            commit(&mut journal, &chunk, chunk.checksum, shard, &job.stage_progress, &events)?;
            if let Some(file) = written {
                forget(&file, None);
            }
            Ok(journal)
        }));
        if self.directory.is_remote() { self.settle().await } else { Ok(()) }
    }
}

/// Bytes after which what there is of a chunk that is the product is synced. Left to itself, a disk has it in a cache of its own until
/// the chunk is committed, and the system keeps what nobody is going to read in its page cache.
const WRITTEN_OUT_BYTES: usize = 4 << 20;

/// Has a file synced meanwhile, a stretch after the other.
#[derive(Default)]
struct WritingOut {
    /// Bytes that it was not told of yet.
    bytes: usize,
    /// The wait for those that it was told of.
    stretch: Option<JoinHandle<std::io::Result<File>>>,
}

impl WritingOut {
    /// Whether it is time to tell the system, now that so many bytes more are in the file.
    fn is_due(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let due = self.bytes >= WRITTEN_OUT_BYTES;
        if due {
            self.bytes = 0;
        }
        due
    }

    /// Whether a stretch is on its way to the disk.
    fn is_busy(&self) -> bool {
        self.stretch.as_ref().is_some_and(|stretch| !stretch.is_finished())
    }

    /// Begins the next stretch.
    async fn go_on(&mut self, file: File, path: &Path) -> Result<(), PipelineError> {
        std::mem::take(self).end(path).await?;
        self.stretch = Some(tokio::task::spawn_blocking(move || {
            // The writer's handle shares its position, and goes on writing behind it.
            let end = (&file).stream_position()?;
            file.sync_data()?;
            forget(&file, NonZeroU64::new(end));
            Ok(file)
        }));
        Ok(())
    }

    /// Waits for the stretch; returns the file, if there was one. The system tells of an error once, so whoever asked has to listen.
    async fn end(self, path: &Path) -> Result<Option<File>, PipelineError> {
        let Some(stretch) = self.stretch else { return Ok(None) };
        Ok(stretch.await?.map(Some).map_err(|error| StoreError::io(path, "written", error))?)
    }
}

/// Has the system drop what it has of a file up to `end`, or of all of it, once that is on the disk: memory that is used again
/// stays in the processor's caches, and in a container it counts. Where it will not, nothing is lost.
fn forget(file: &File, end: Option<NonZeroU64>) {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, end, rustix::fs::Advice::DontNeed).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = (file, end);
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
    writing_out: WritingOut,
    slot: Option<PendingChunk>,
}

/// A chunk whose pixel file has its footer and still its temporary name.
struct Finished {
    entry: SpoolEntry,
    path: PathBuf,
    writing_out: WritingOut,
    slot: Option<PendingChunk>,
}

impl OpenChunk {
    async fn start(id: ChunkId, sink: &Out) -> Result<Self, PipelineError> {
        let (slot, path) = match sink {
            Out::Spool(ring, _) => {
                let (slot, path) = ring.start(id).await?;
                (Some(slot), path)
            }
            Out::Durable(committer, _) => (None, committer.directory.temporary(&committer.layout.chunk(id))?),
            Out::Counted => (None, PathBuf::new()),
        };
        let (tally, writing_out) = (Tally::default(), WritingOut::default());
        Ok(Self { id, tally, labels: 0, bad: Vec::new(), path, writer: None, writing_out, slot })
    }

    /// Appends a block; returns its buffer, whose content is of no use any more.
    async fn write(
        &mut self,
        block: Decoded,
        job: &StreamJob,
        sink: &Out,
        clock: &StageTimer,
    ) -> Result<Vec<u8>, PipelineError> {
        self.tally.merge(&block.tally);
        self.labels += block.heads.label_count() as u64;
        self.bad.extend(block.bad);
        if block.heads.is_empty() || matches!(sink, Out::Counted) {
            return Ok(block.pixels);
        }
        if let (Out::Spool(ring, _), Some(slot)) = (sink, &mut self.slot) {
            // What a page header takes more than the rows is in the slot's fixed part and the 64 bytes a row.
            let bytes = block.pixels.len() as u64 + block.heads.stored_bytes() + GROUP_OVERHEAD_BYTES;
            clock.wait(Activity::Blocked, ring.reserve(slot, bytes)).await?;
        }
        let compression = match sink {
            Out::Spool(..) | Out::Counted => Compression::None,
            Out::Durable(_, compression) => *compression,
        };
        let in_place = matches!(sink, Out::Durable(committer, _) if !committer.directory.is_remote());
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => PixelWriter::create(&self.path, job.spec.geometry.output_px(), compression, &job.generation)?,
        };
        let due = in_place && self.writing_out.is_due(block.pixels.len());
        let busy = self.writing_out.is_busy();
        let Decoded { heads, pixels, held, .. } = block;
        let (writer, pixels, file) = tokio::task::spawn_blocking(move || {
            writer.write(&heads, &pixels)?;
            drop(held);
            let mut file = if due { writer.handle() } else { None };
            if busy && let Some(file) = file.take() {
                // What is in the page cache and not on the disk yet it does not forget, but begins to write: the disk is never idle, and
                // where it does not keep up, this waits.
                forget(&file, None);
            }
            Ok::<_, PipelineError>((writer, pixels, file))
        })
        .await??;
        self.writer = Some(writer);
        if let Some(file) = file {
            self.writing_out.go_on(file, &self.path).await?;
        }
        Ok(pixels)
    }

    async fn complete(mut self, last: bool, job: &StreamJob) -> Result<Finished, PipelineError> {
        let checksum = match self.writer.take() {
            Some(writer) => Some(tokio::task::spawn_blocking(move || writer.finish()).await??),
            None => None,
        };
        let entry = SpoolEntry {
            id: self.id,
            generation: job.generation.clone(),
            last,
            tally: self.tally,
            labels: self.labels,
            quarantined: self.bad,
            bytes: 0,
            checksum,
            boot: String::new(),
        };
        Ok(Finished { entry, path: self.path, writing_out: self.writing_out, slot: self.slot })
    }
}

/// Hands a finished chunk to the sink; false when nobody takes it any more.
async fn sink_chunk(
    chunk: Finished,
    job: &Arc<StreamJob>,
    sink: &mut Out,
    clock: &StageTimer,
    events: &Events,
) -> Result<bool, PipelineError> {
    match sink {
        Out::Spool(ring, consumer) => {
            let Some(slot) = chunk.slot else { return Ok(false) };
            let complete = ring.complete(slot, chunk.entry).await?;
            Ok(clock.wait(Activity::Blocked, consumer.send(complete)).await.is_ok())
        }
        Out::Durable(committer, _) => {
            clock.wait(Activity::Blocked, committer.commit(chunk, job, events)).await?;
            Ok(true)
        }
        Out::Counted => Ok(true),
    }
}

/// Stops a run whose shard is rubbish.
struct ShardJudge {
    /// What became of the rows of each shard so far.
    shards: BTreeMap<u32, Tally>,
}

impl ShardJudge {
    fn judge(&mut self, chunk: &OpenChunk, job: &StreamJob) -> Result<(), PipelineError> {
        let tally = self.shards.entry(chunk.id.shard).or_default();
        tally.merge(&chunk.tally);
        let bad = tally.quarantined_rows();
        let judged = tally.kept + bad;
        if judged < JUDGED_ROWS || bad as f64 <= job.max_bad_fraction * judged as f64 {
            return Ok(());
        }
        let mut reasons: Vec<_> = tally.quarantined.iter().collect();
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
