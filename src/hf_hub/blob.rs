//! Downloads one file of the hub into the cache and verifies it before it gets its name.
//!
//! A partial file of an earlier process is resumed. A complete file that differs from the stated size or hash is downloaded
//! once more. The partial file on disk is at most a quarter of a second behind the bytes received.

use std::fs;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::cache::{BlobLock, Cache};
use super::headers::FileMetadata;
use super::http::{Http, RequestError, describe};
use super::partial_file::{PartialFile, SharedPartialFile, run_blocking};
use super::progress::ProgressReporter;
use crate::objects::StoreError;

/// Bytes written at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// Time after which received bytes are written, however few they are.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// Consecutive answers without a byte after which a short file counts as the hub's own.
const MAX_EMPTY_ANSWERS: u32 = 6;

/// File to download.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlobRequest<'a> {
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) metadata: &'a FileMetadata,
    /// Display name of the repository.
    pub(super) label: &'a str,
}

impl BlobRequest<'_> {
    fn subject(&self) -> String {
        format!("{}/{}", self.label, self.file)
    }
}

/// Downloads a blob while its lock is held.
///
/// # Errors
/// When it cannot be downloaded or written, or differs from what the hub states, twice.
pub(super) async fn download(
    http: &Http,
    cache: &Cache,
    request: BlobRequest<'_>,
    lock: BlobLock,
    progress: &ProgressReporter<'_>,
) -> Result<(), StoreError> {
    let blob = cache.blob(&request.metadata.etag);
    let mut path = blob.clone().into_os_string();
    path.push(".incomplete");
    let metadata = request.metadata.clone();
    let partial = run_blocking(move || PartialFile::open(path.into(), metadata, lock)).await?;
    let mut written_bytes = partial.written_bytes;
    let partial = SharedPartialFile::new(partial);
    progress.add_resumed(written_bytes);
    let mut retried = false;
    loop {
        let mut mismatch = download_rest(http, request, &partial, &mut written_bytes, progress).await?;
        if mismatch.is_none() {
            let blob = blob.clone();
            mismatch = partial.run(move |partial| partial.publish(&blob)).await?.err();
        }
        let Some(mismatch) = mismatch else { return Ok(()) };
        if retried {
            partial.run(|partial| fs::remove_file(partial.path()).or(Ok(()))).await?;
            return Err(StoreError::Mismatch { url: request.subject(), wrong: mismatch });
        }
        tracing::warn!(
            file = request.subject(),
            mismatch,
            "the file differs from what the hub states; downloading it again"
        );
        retried = true;
        restart_download(&partial, &mut written_bytes, progress).await?;
    }
}

async fn restart_download(
    partial: &SharedPartialFile,
    written_bytes: &mut u64,
    progress: &ProgressReporter<'_>,
) -> Result<(), StoreError> {
    partial.run(PartialFile::restart).await?;
    progress.add_total(std::mem::take(written_bytes));
    Ok(())
}

/// Downloads the rest of the file; returns how its length differs from the stated size.
async fn download_rest(
    http: &Http,
    request: BlobRequest<'_>,
    partial: &SharedPartialFile,
    written_bytes: &mut u64,
    progress: &ProgressReporter<'_>,
) -> Result<Option<String>, StoreError> {
    let size = request.metadata.size;
    let mut retry_budget = http.retry_budget();
    let mut empty = 0;
    while *written_bytes < size {
        let before = *written_bytes;
        let end = download_once(http, request, partial, written_bytes, retry_budget.attempts() > 0, progress).await;
        if *written_bytes > before {
            retry_budget.renew();
            empty = 0;
        }
        let reason = match end {
            Ok(BodyEnd::Complete) => break,
            Ok(BodyEnd::TooLong) => return Ok(Some(format!("more than the stated {size} bytes"))),
            Ok(BodyEnd::Truncated) | Err(RequestError::OutOfRange) => {
                empty += 1;
                if empty == MAX_EMPTY_ANSWERS {
                    return Ok(Some(format!("{written_bytes} bytes instead of {size}")));
                }
                "the answer ended early".to_owned()
            }
            Err(RequestError::Transient(reason)) => reason,
            Err(RequestError::Permanent(error)) => return Err(error),
        };
        retry_budget.wait(&request.subject(), "downloaded", reason).await?;
    }
    Ok(None)
}

/// Way in which the body of an answer ended.
enum BodyEnd {
    Complete,
    Truncated,
    TooLong,
}

/// Makes one attempt at the rest of the file and writes the bytes that it receives.
async fn download_once(
    http: &Http,
    request: BlobRequest<'_>,
    partial: &SharedPartialFile,
    written_bytes: &mut u64,
    repeated: bool,
    progress: &ProgressReporter<'_>,
) -> Result<BodyEnd, RequestError> {
    let BlobRequest { repo, commit, file, label, metadata } = request;
    let (mut response, offset) = http.open_file((repo, commit, file), label, *written_bytes, repeated).await?;
    if offset < *written_bytes {
        restart_download(partial, written_bytes, progress).await?;
    }
    let mut block = BytesMut::new();
    let mut last_write = Instant::now();
    loop {
        let part = response.chunk().await;
        if let Ok(Some(part)) = &part {
            http.traffic().add_read(part.len());
            block.extend_from_slice(part);
        }
        let too_long = *written_bytes + block.len() as u64 > metadata.size;
        let over = !matches!(part, Ok(Some(_))) || too_long;
        if !too_long && !block.is_empty() && (over || block.len() >= BLOCK_BYTES || last_write.elapsed() >= WRITE_EVERY)
        {
            let full = block.split().freeze();
            let count = full.len() as u64;
            partial.run(move |partial| partial.write(&full)).await?;
            *written_bytes += count;
            progress.add_received(count);
            last_write = Instant::now();
        }
        match part {
            _ if too_long => return Ok(BodyEnd::TooLong),
            Ok(Some(_)) => {}
            Ok(None) if *written_bytes == metadata.size => return Ok(BodyEnd::Complete),
            Ok(None) => return Ok(BodyEnd::Truncated),
            Err(error) => return Err(RequestError::Transient(describe(&error, response.url()))),
        }
    }
}
