//! Bytes that readers received, and how long they waited for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

/// Stored bytes received from the objects opened with it, and the time that their readers waited.
#[derive(Debug, Default)]
pub struct ReadStats {
    bytes: AtomicU64,
    waited: Mutex<(Duration, Option<Instant>)>,
}

impl ReadStats {
    /// Returns the stored bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the time that readers waited for bytes, including a wait in progress.
    pub fn waited(&self) -> Duration {
        let (waited, since) = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        waited + since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Counts bytes that are not read: an earlier process received them, or they are of no use.
    pub(crate) fn skip(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that arrived after a wait.
    pub(crate) fn add(&self, bytes: u64, wait: Duration) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.waited.lock().unwrap_or_else(PoisonError::into_inner).0 += wait;
    }

    /// Wraps a stream of stored bytes so that its items and waits are counted.
    pub(super) fn observe(
        stats: Arc<Self>,
        mut blocks: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> BoxStream<'static, std::io::Result<Bytes>> {
        let observed = stream::poll_fn(move |context| {
            let polled = blocks.poll_next_unpin(context);
            stats.record_poll(&polled);
            polled
        });
        observed.boxed()
    }

    fn record_poll(&self, block: &Poll<Option<std::io::Result<Bytes>>>) {
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
}
