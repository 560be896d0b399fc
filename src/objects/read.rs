//! One version of an object, front to back, in bounded ranges that survive what networks do.
//!
//! Each range of 4 MiB is a request of its own on a task of its own, two of them ahead of the consumer, so that a consumer that waits
//! holds no connection open; a local file stays open, and its ranges are of 256 KiB. A range that breaks off goes on where it stopped (a
//! local one is read again). Every answer must be of the version that was listed: by its `ETag`, else by its time and size. A server
//! without ranges (a plain file server) is read in one go, and after a failure again from the start up to where it was.

use std::borrow::BorrowMut as _;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use futures::{FutureExt as _, TryFutureExt as _};
use object_store::{Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::http_error::{Verdict, describe, explain, is_not_found, is_out_of_range};
use super::http_retry::RetryBudget;
use super::{Object, StoreError};
use crate::runtime::{BufferPool, PooledBuffer};

/// Bytes of one ranged read: large enough to hide a remote store's latency, small beside any memory limit.
pub(crate) const RANGE_BYTES: u64 = 4 << 20;
/// And of a local file, where there is no latency to hide; three buffers of this size are used again and again.
const LOCAL_RANGE_BYTES: u64 = 256 << 10;
/// Ranges in flight for one open object.
pub(crate) const RANGES_AHEAD: usize = 2;
/// Bytes handed on at a time where there are no ranges.
const WHOLE_BLOCK_BYTES: usize = 1 << 20;
/// Answers that end early, one after the other and without a single byte more, after which a short object is what the store holds, and no accident.
const SHORT_ATTEMPTS: u32 = 6;

/// What came of the objects that were opened with it, and for how long their readers waited.
#[derive(Debug, Default)]
pub struct ReadStats {
    bytes: AtomicU64,
    waited: Mutex<(Duration, Option<Instant>)>,
}

impl ReadStats {
    /// Stored bytes that came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Time for which a reader had nothing to go on with, a wait that is going on included.
    pub fn waited(&self) -> Duration {
        let (waited, since) = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        waited + since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Counts bytes as come that an earlier process had, and that are not read again.
    pub(crate) fn skip(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn polled(&self, block: &Poll<Option<std::io::Result<Bytes>>>) {
        let (waited, since) = &mut *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        match block {
            Poll::Pending => {
                since.get_or_insert_with(Instant::now);
            }
            Poll::Ready(block) => {
                *waited += since.take().map_or(Duration::ZERO, |since| since.elapsed());
                if let Some(Ok(block)) = block {
                    self.bytes.fetch_add(block.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }

    fn of(
        intake: Arc<Self>,
        mut blocks: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> BoxStream<'static, std::io::Result<Bytes>> {
        let timed = stream::poll_fn(move |context| {
            let polled = blocks.poll_next_unpin(context);
            intake.polled(&polled);
            polled
        });
        timed.boxed()
    }
}

/// Why an attempt ended before its range did.
enum AttemptError {
    Transient(String),
    /// The body ended as if it were whole.
    Truncated,
    Permanent(StoreError),
}

impl AttemptError {
    fn from_store(object: &Object, error: Error) -> Self {
        match object.client.judge(&error) {
            Verdict::Transient => Self::Transient(describe(&error)),
            // Bytes that were listed are not there any more.
            Verdict::Permanent if is_out_of_range(&error) => {
                Self::Permanent(StoreError::Changed { url: object.url.clone() })
            }
            Verdict::Permanent => Self::Permanent(explain(&object.url, "read", &error)),
        }
    }
}

/// The stored bytes of an object, in order, from an offset on; the offset is 0 where [`ranges_work`] is false.
///
/// # Errors
/// When the first byte cannot be had; later failures are items, with a [`StoreError`] inside.
pub(crate) async fn blocks(
    object: &Object,
    from: u64,
    intake: Arc<ReadStats>,
) -> Result<BoxStream<'static, std::io::Result<Bytes>>, StoreError> {
    if object.size > 0 && !ranges_work(object).await? {
        return Ok(ReadStats::of(intake, whole(object.clone())));
    }
    let file = OpenFile::of(object).await.map(Arc::new);
    let step = if object.client.is_local() { LOCAL_RANGE_BYTES } else { RANGE_BYTES };
    let ranges = (from..object.size).step_by(step as usize).map({
        let object = object.clone();
        move |start| {
            let object = object.clone();
            let range = start..(start + step).min(object.size);
            if let Some(file) = &file {
                let read = file.read(range.clone());
                // Whatever is the matter, the usual way finds it out.
                let read = async move {
                    let Ok(Some(bytes)) = read.await else { return read_range(&object, range).await };
                    object.client.traffic.read(bytes.as_ref().len());
                    Ok(Bytes::from_owner(bytes))
                };
                return read.map_err(std::io::Error::other).boxed();
            }
            // On a task of its own: it is whole, and its connection free, however long the consumer takes.
            let task = AbortOnDropHandle::new(tokio::spawn(async move { read_range(&object, range).await }));
            async move { task.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other) }.boxed()
        }
    });
    Ok(ReadStats::of(intake, stream::iter(ranges).buffered(RANGES_AHEAD).boxed()))
}

/// A local file that stays open, so that a range of it is one errand for a thread that may wait. The store opens it for each range,
/// which is two errands, on a task of its own: at ranges as small as these it shows.
struct OpenFile {
    file: File,
    /// Its size and last change when it was compared with what was listed.
    version: (u64, SystemTime),
    buffers: BufferPool,
}

impl OpenFile {
    /// Opens the version that was listed; `None` where that is not there, or is no local file.
    async fn of(object: &Object) -> Option<Self> {
        if !object.client.is_local() {
            return None;
        }
        let answer = request(object, &object.client.inner, None, &object.client.retry_budget()).await.ok()?;
        let version = (answer.meta.size, answer.meta.last_modified.into());
        let GetResultPayload::File(file, _) = answer.payload else { return None };
        Some(Self { file, version, buffers: BufferPool::new(RANGES_AHEAD + 1, LOCAL_RANGE_BYTES as usize) })
    }

    /// Begins to read a range; `None` comes where the file is another one now, or cannot be read.
    fn read(self: &Arc<Self>, range: Range<u64>) -> JoinHandle<Option<PooledBuffer>> {
        let (this, buffer) = (Arc::clone(self), self.buffers.acquire_pooled());
        tokio::task::spawn_blocking(move || {
            let wanted = (range.end - range.start) as usize;
            let bytes = read_at(&this.file, range.start, wanted, buffer).ok()?;
            // Asked behind the reading: what was written meanwhile shows.
            (bytes.as_ref().len() == wanted && version(&this.file).ok()? == this.version).then_some(bytes)
        })
    }
}

fn version(file: &File) -> std::io::Result<(u64, SystemTime)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

/// Whether the server of an `http` object answers ranges.
pub(crate) async fn ranges_work(object: &Object) -> Result<bool, StoreError> {
    if !object.client.root.starts_with("http") {
        return Ok(true);
    }
    let answer = object
        .client
        .answer(&object.url, "read", || {
            let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
            object.client.inner.get_opts(&object.location, options)
        })
        .await?;
    match answer {
        Ok(_) => Ok(true),
        Err(Error::NotSupported { .. }) => Ok(false),
        Err(error) => Err(explain(&object.url, "read", &error)),
    }
}

/// Reads a range of an object, whole.
///
/// # Errors
/// When the object changed or is gone, or retry_budget ended.
pub(crate) async fn read_range(object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
    let mut have = BytesMut::new();
    let mut retry_budget = object.client.retry_budget();
    loop {
        let left = range.start + have.len() as u64..range.end;
        if object.client.is_local() {
            match read_local(object, left, &retry_budget).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => again(object, &mut retry_budget, error, range.start).await?,
            }
            continue;
        }
        have.reserve((left.end - left.start) as usize);
        let Err(error) = read_on(object, left, &mut have, &mut retry_budget).await else { return Ok(have.freeze()) };
        again(object, &mut retry_budget, error, range.start + have.len() as u64).await?;
    }
}

/// Reads a range of a local file, in one go: its stream would change threads for every 8 KiB.
async fn read_local(object: &Object, range: Range<u64>, retry_budget: &RetryBudget) -> Result<Bytes, AttemptError> {
    let wanted = (range.end - range.start) as usize;
    let answer = request(object, &object.client.inner, Some(range), retry_budget).await?;
    let bytes = answer.bytes().await.map_err(|error| AttemptError::from_store(object, error))?;
    object.client.traffic.read(bytes.len());
    if bytes.len() == wanted { Ok(bytes) } else { Err(AttemptError::Truncated) }
}

/// Reads so many bytes, or up to the end of the file, into a buffer that is not cleared before.
fn read_at(file: &File, start: u64, wanted: usize, mut buffer: PooledBuffer) -> std::io::Result<PooledBuffer> {
    let bytes: &mut Vec<u8> = buffer.borrow_mut();
    bytes.clear();
    bytes.reserve_exact(wanted);
    while bytes.len() < wanted {
        let at = start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(wanted);
    Ok(buffer)
}

async fn again(
    object: &Object,
    retry_budget: &mut RetryBudget,
    error: AttemptError,
    got: u64,
) -> Result<(), StoreError> {
    match error {
        AttemptError::Permanent(error) => Err(error),
        AttemptError::Truncated if object.client.is_local() => Err(StoreError::Changed { url: object.url.clone() }),
        AttemptError::Truncated if retry_budget.count_truncated() >= SHORT_ATTEMPTS => {
            Err(StoreError::Short { url: object.url.clone(), got, size: object.size })
        }
        AttemptError::Truncated => retry_budget.wait(&object.url, "read", "the answer ended early".to_owned()).await,
        AttemptError::Transient(reason) => retry_budget.wait(&object.url, "read", reason).await,
    }
}

/// One attempt at the rest of a range; what came is kept.
async fn read_on(
    object: &Object,
    left: Range<u64>,
    have: &mut BytesMut,
    retry_budget: &mut RetryBudget,
) -> Result<(), AttemptError> {
    let wanted = (left.end - left.start) as usize;
    let answer = request(object, &object.client.inner, Some(left), retry_budget).await?;
    let mut body = answer.into_stream();
    let mut came = 0;
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| AttemptError::from_store(object, error))?;
        let part = part.slice(..part.len().min(wanted - came));
        if !part.is_empty() {
            retry_budget.renew();
            object.client.traffic.read(part.len());
        }
        came += part.len();
        have.extend_from_slice(&part);
    }
    if came == wanted { Ok(()) } else { Err(AttemptError::Truncated) }
}

/// Opens a body of the version that was listed.
async fn request(
    object: &Object,
    store: &Arc<dyn ObjectStore>,
    range: Option<Range<u64>>,
    retry_budget: &RetryBudget,
) -> Result<GetResult, AttemptError> {
    let client = &object.client;
    if !client.is_local() {
        client.traffic.request(retry_budget.attempts() > 0);
    }
    // A weak tag never matches, by its definition (RFC 9110, 13.1.1).
    let if_match = object.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
    let options = GetOptions { range: range.map(GetRange::Bounded), if_match, ..GetOptions::default() };
    let answer =
        store.get_opts(&object.location, options).await.map_err(|error| AttemptError::from_store(object, error))?;
    client.reach();
    if object.is_other_than(&answer.meta) {
        return Err(AttemptError::Permanent(StoreError::Changed { url: object.url.clone() }));
    }
    Ok(answer)
}

/// The first bytes of an object whose server knows no ranges.
pub(crate) async fn head(object: &Object, bytes: u64) -> Result<Bytes, StoreError> {
    let mut have = BytesMut::new();
    let mut blocks = whole(object.clone());
    while (have.len() as u64) < bytes {
        let Some(block) = blocks.next().await else { break };
        have.extend_from_slice(&block.map_err(|error| super::explain_read(&object.url, error))?);
    }
    have.truncate(bytes as usize);
    Ok(have.freeze())
}

/// The bytes of an object whose server knows no ranges.
fn whole(object: Object) -> BoxStream<'static, std::io::Result<Bytes>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut retry_budget = object.client.retry_budget();
        let mut sent = 0;
        while sent < object.size {
            let Err(error) = read_whole(&object, &mut sent, &mut retry_budget, &sender).await else { return };
            if let Err(error) = again(&object, &mut retry_budget, error, sent).await {
                sender.send(Err(std::io::Error::other(error))).await.ok();
                return;
            }
        }
    }));
    stream::unfold((receiver, task), |(mut receiver, task)| async { Some((receiver.recv().await?, (receiver, task))) })
        .boxed()
}

/// One attempt at the whole object; what was sent before is skipped.
async fn read_whole(
    object: &Object,
    sent: &mut u64,
    retry_budget: &mut RetryBudget,
    sender: &tokio::sync::mpsc::Sender<std::io::Result<Bytes>>,
) -> Result<(), AttemptError> {
    let client = &object.client;
    let store = client.unhurried.as_ref().unwrap_or(&client.inner);
    // The connection's own limit would count the time that the consumer takes.
    let silent = |_| AttemptError::Transient("no byte came for too long".to_owned());
    let answer =
        tokio::time::timeout(client.read_timeout, request(object, store, None, retry_budget)).await.map_err(silent)?;
    let mut body = answer?.into_stream();
    let mut skip = *sent;
    let mut block = BytesMut::new();
    loop {
        let part = tokio::time::timeout(client.read_timeout, body.next())
            .await
            .map_err(silent)?
            .transpose()
            .map_err(|error| AttemptError::from_store(object, error))?;
        let over = part.is_none();
        let part = part.unwrap_or_default();
        let old = skip.min(part.len() as u64);
        skip -= old;
        object.client.traffic.read(part.len());
        block.extend_from_slice(&part[old as usize..]);
        if block.len() >= WHOLE_BLOCK_BYTES || (over && !block.is_empty()) {
            let full = block.split().freeze();
            retry_budget.renew();
            *sent += full.len() as u64;
            if *sent > object.size {
                return Err(AttemptError::Permanent(StoreError::Changed { url: object.url.clone() }));
            }
            if sender.send(Ok(full)).await.is_err() {
                return Ok(());
            }
            // What the consumer took was no failure of the server's.
            retry_budget.renew();
        }
        if over {
            return if *sent == object.size { Ok(()) } else { Err(AttemptError::Truncated) };
        }
    }
}

/// Reads an object of a run directory, whole, into memory; `None` where it is absent.
///
/// It is asked for as a range, because only the answer to that says how long the object is, and not just this answer.
pub(crate) async fn small(
    client: &Client,
    location: &object_store::path::Path,
) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
    let url = client.url(location);
    let mut retry_budget = client.retry_budget();
    let mut range = Some(GetRange::Offset(0));
    loop {
        client.traffic.request(retry_budget.attempts() > 0);
        let attempt = async {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let answer = client.inner.get_opts(location, options).await?;
            let (size, e_tag) = (answer.meta.size, answer.meta.e_tag.clone());
            Ok::<_, Error>((answer.bytes().await?, size, e_tag))
        };
        let reason = match attempt.await {
            Ok((bytes, size, e_tag)) if bytes.len() as u64 == size => {
                client.reach();
                client.traffic.read(bytes.len());
                return Ok(Some((bytes, e_tag)));
            }
            Ok(_) => "the answer ended early".to_owned(),
            Err(error) => match client.judge(&error) {
                Verdict::Transient => describe(&error),
                Verdict::Permanent if is_not_found(&error) => return Ok(None),
                // No range of an empty object is in it.
                Verdict::Permanent if is_out_of_range(&error) && range.take().is_some() => continue,
                Verdict::Permanent => return Err(explain(&url, "read", &error)),
            },
        };
        retry_budget.wait(&url, "read", reason).await?;
    }
}
