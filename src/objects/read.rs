//! Reads one version of an object front to back in bounded ranges.
//!
//! Each range of 4 MiB is a request in a task of its own, two of them ahead of the consumer, so a slow consumer holds no
//! connection open. A local file stays open and is read in ranges of 256 KiB. A range that breaks off continues where it
//! stopped; a local one is read again. Every response must belong to the listed version.

mod local;
mod meta;
mod unranged;

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use futures::{FutureExt as _, TryFutureExt as _};
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectStore};
use tokio_util::task::AbortOnDropHandle;

use super::client::Client;
use super::http_error::{FailureKind, describe, explain, is_not_found, is_out_of_range};
use super::http_retry::RetryBudget;
use super::{Object, ReadStats, StoreError};
use local::{LOCAL_RANGE_BYTES, OpenFile};

pub(super) use meta::read_meta;
pub(super) use unranged::read_head;

/// Bytes of one ranged read: large enough to hide a remote store's latency, small compared with any memory limit.
pub(crate) const RANGE_BYTES: u64 = 4 << 20;
/// Ranges in flight for one open object.
pub(super) const RANGES_AHEAD: usize = 2;
/// Consecutive truncated responses without a new byte after which the stored object itself counts as truncated.
const MAX_TRUNCATED: u32 = 6;

/// Reason why an attempt ended before its range did.
enum AttemptError {
    Transient(String),
    /// The body ended early without an error.
    Truncated,
    Permanent(StoreError),
}

impl AttemptError {
    fn from_store(object: &Object, error: &Error) -> Self {
        match object.client.classify(error) {
            FailureKind::Transient => Self::Transient(describe(error)),
            // The object was longer when it was listed.
            FailureKind::Permanent if is_out_of_range(error) => {
                Self::Permanent(StoreError::Changed { url: object.url.clone() })
            }
            FailureKind::Permanent => Self::Permanent(explain(&object.url, "read", error)),
        }
    }
}

/// Streams the stored bytes of an object from an offset; the offset must be 0 where [`supports_ranges`] is false.
///
/// # Errors
/// When the first byte cannot be read. Later failures are items that hold a [`StoreError`].
pub(super) async fn stream_blocks(
    object: &Object,
    offset: u64,
    stats: Arc<ReadStats>,
) -> Result<BoxStream<'static, std::io::Result<Bytes>>, StoreError> {
    if object.size > 0 && !supports_ranges(object).await? {
        return Ok(ReadStats::observe(stats, unranged::stream_whole(object.clone())));
    }
    let file = OpenFile::open(object).await.map(Arc::new);
    let step = if object.client.is_local() { LOCAL_RANGE_BYTES } else { RANGE_BYTES };
    let ranges = (offset..object.size).step_by(step as usize).map({
        let object = object.clone();
        move |start| {
            let object = object.clone();
            let range = start..(start + step).min(object.size);
            if let Some(file) = &file {
                let read = file.read_range(range.clone());
                let read = async move {
                    // After any failure `read_range` finds out the reason.
                    let Ok(Some(bytes)) = read.await else { return read_range(&object, range).await };
                    object.client.traffic.add_read(bytes.as_ref().len());
                    Ok(Bytes::from_owner(bytes))
                };
                return read.map_err(std::io::Error::other).boxed();
            }
            // The task completes the range and frees its connection, however slow the consumer is.
            let task = AbortOnDropHandle::new(tokio::spawn(async move { read_range(&object, range).await }));
            async move { task.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other) }.boxed()
        }
    });
    Ok(ReadStats::observe(stats, stream::iter(ranges).buffered(RANGES_AHEAD).boxed()))
}

/// Returns whether the object's server supports ranges; only web servers may not.
pub(crate) async fn supports_ranges(object: &Object) -> Result<bool, StoreError> {
    if !object.client.is_web() {
        return Ok(true);
    }
    let get_first_byte = || {
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        object.client.inner.get_opts(&object.location, options)
    };
    match object.client.retry(&object.url, "read", get_first_byte).await? {
        Ok(_) => Ok(true),
        Err(Error::NotSupported { .. }) => Ok(false),
        Err(error) => Err(explain(&object.url, "read", &error)),
    }
}

/// Reads a complete range of an object.
///
/// # Errors
/// When the object changed or no longer exists, or the retry budget is spent.
pub(crate) async fn read_range(object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
    let mut received = BytesMut::new();
    let mut retry_budget = object.client.retry_budget();
    loop {
        let rest = range.start + received.len() as u64..range.end;
        if object.client.is_local() {
            match read_local(object, rest, &retry_budget).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => recover(object, &mut retry_budget, error, range.start).await?,
            }
            continue;
        }
        received.reserve((rest.end - rest.start) as usize);
        let Err(error) = read_rest(object, rest, &mut received, &mut retry_budget).await else {
            return Ok(received.freeze());
        };
        recover(object, &mut retry_budget, error, range.start + received.len() as u64).await?;
    }
}

/// Reads a range of a local file in one call: a stream would switch threads every 8 KiB.
async fn read_local(object: &Object, range: Range<u64>, retry_budget: &RetryBudget) -> Result<Bytes, AttemptError> {
    let len = (range.end - range.start) as usize;
    let answer = open_body(object, &object.client.inner, Some(range), retry_budget).await?;
    let bytes = answer.bytes().await.map_err(|error| AttemptError::from_store(object, &error))?;
    object.client.traffic.add_read(bytes.len());
    if bytes.len() == len { Ok(bytes) } else { Err(AttemptError::Truncated) }
}

/// Waits before the next attempt, or returns the error that ends the read; `position` is where the attempt stopped.
async fn recover(
    object: &Object,
    retry_budget: &mut RetryBudget,
    error: AttemptError,
    position: u64,
) -> Result<(), StoreError> {
    match error {
        AttemptError::Permanent(error) => Err(error),
        AttemptError::Truncated if object.client.is_local() => Err(StoreError::Changed { url: object.url.clone() }),
        AttemptError::Truncated if retry_budget.count_truncated() >= MAX_TRUNCATED => {
            Err(StoreError::Short { url: object.url.clone(), got: position, size: object.size })
        }
        AttemptError::Truncated => retry_budget.wait(&object.url, "read", "the answer ended early".to_owned()).await,
        AttemptError::Transient(reason) => retry_budget.wait(&object.url, "read", reason).await,
    }
}

/// Makes one attempt at the rest of a range and keeps the bytes that it received.
async fn read_rest(
    object: &Object,
    rest: Range<u64>,
    received: &mut BytesMut,
    retry_budget: &mut RetryBudget,
) -> Result<(), AttemptError> {
    let len = (rest.end - rest.start) as usize;
    let mut body = open_body(object, &object.client.inner, Some(rest), retry_budget).await?.into_stream();
    let mut count = 0;
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| AttemptError::from_store(object, &error))?;
        let part = part.slice(..part.len().min(len - count));
        if !part.is_empty() {
            retry_budget.renew();
            object.client.traffic.add_read(part.len());
        }
        count += part.len();
        received.extend_from_slice(&part);
    }
    if count == len { Ok(()) } else { Err(AttemptError::Truncated) }
}

/// Requests a body and checks that it belongs to the listed version.
async fn open_body(
    object: &Object,
    store: &Arc<dyn ObjectStore>,
    range: Option<Range<u64>>,
    retry_budget: &RetryBudget,
) -> Result<GetResult, AttemptError> {
    let client = &object.client;
    if !client.is_local() {
        client.traffic.add_request(retry_budget.attempts() > 0);
    }
    // A weak tag never matches `If-Match` (RFC 9110, section 13.1.1).
    let if_match = object.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
    let options = GetOptions { range: range.map(GetRange::Bounded), if_match, ..GetOptions::default() };
    let answer = store.get_opts(&object.location, options).await;
    let answer = answer.map_err(|error| AttemptError::from_store(object, &error))?;
    client.mark_reached();
    if object.differs_from(&answer.meta) {
        return Err(AttemptError::Permanent(StoreError::Changed { url: object.url.clone() }));
    }
    Ok(answer)
}

/// Reads a small object of a run directory into memory, with its `ETag`; `None` if it is absent.
///
/// The request asks for a range, because only the answer to a range states the size of the object.
pub(crate) async fn read_small(
    client: &Client,
    location: &object_store::path::Path,
) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
    let url = client.url(location);
    let mut retry_budget = client.retry_budget();
    let mut range = Some(GetRange::Offset(0));
    loop {
        client.traffic.add_request(retry_budget.attempts() > 0);
        let attempt = async {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let answer = client.inner.get_opts(location, options).await?;
            let (size, e_tag) = (answer.meta.size, answer.meta.e_tag.clone());
            Ok::<_, Error>((answer.bytes().await?, size, e_tag))
        };
        let reason = match attempt.await {
            Ok((bytes, size, e_tag)) if bytes.len() as u64 == size => {
                client.mark_reached();
                client.traffic.add_read(bytes.len());
                return Ok(Some((bytes, e_tag)));
            }
            Ok(_) => "the answer ended early".to_owned(),
            Err(error) => match client.classify(&error) {
                FailureKind::Transient => describe(&error),
                FailureKind::Permanent if is_not_found(&error) => return Ok(None),
                // Every range lies outside an empty object.
                FailureKind::Permanent if is_out_of_range(&error) && range.take().is_some() => continue,
                FailureKind::Permanent => return Err(explain(&url, "read", &error)),
            },
        };
        retry_budget.wait(&url, "read", reason).await?;
    }
}
