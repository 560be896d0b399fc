//! Bytes in flight, over all stages together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit stands for: the semaphore counts in `u32`, budgets go beyond 4 GiB.
const UNIT_BYTES: u64 = 4096;

/// Hands out bytes up to a limit; who asks for more than is free waits.
///
/// Requests are served in the order in which they were made, so a large one is not starved by small ones.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    total_units: u32,
    in_flight: Arc<AtomicU64>,
    peak: Arc<AtomicU64>,
}

/// Bytes taken from a [`ByteBudget`]; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping it gives the bytes back"]
pub struct BytePermit {
    bytes: u64,
    in_flight: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl BytePermit {
    /// How many bytes are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl ByteBudget {
    /// A budget of `limit_bytes`, rounded down to 4 KiB, at least 4 KiB.
    pub fn new(limit_bytes: u64) -> Self {
        let most = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
        let total_units = (limit_bytes / UNIT_BYTES).clamp(1, most) as u32;
        Self {
            free: Arc::new(Semaphore::new(total_units as usize)),
            total_units,
            in_flight: Arc::new(AtomicU64::new(0)),
            peak: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Waits until `bytes` are free and takes them.
    ///
    /// A request over the whole budget takes all of it: it runs alone. `RunConfig::check_bounds` refuses budgets under
    /// the largest single request, so this happens only to records that are larger than their own limit.
    ///
    /// # Cancel safety
    /// A caller dropped while waiting takes nothing.
    pub async fn take(&self, bytes: u64) -> BytePermit {
        // The semaphore is never closed, so the only error cannot occur; an empty permit would still be sound.
        let permit = match Arc::clone(&self.free).acquire_many_owned(self.units(bytes)).await {
            Ok(permit) => permit,
            Err(_closed) => std::future::pending().await,
        };
        self.held(bytes, permit)
    }

    /// As [`Self::take`], for a thread that may wait.
    pub fn take_blocking(&self, bytes: u64) -> BytePermit {
        match Arc::clone(&self.free).try_acquire_many_owned(self.units(bytes)) {
            Ok(permit) => self.held(bytes, permit),
            Err(_) => futures::executor::block_on(self.take(bytes)),
        }
    }

    /// What `bytes` take of a budget: whole units.
    pub fn rounded(bytes: u64) -> u64 {
        bytes.div_ceil(UNIT_BYTES).saturating_mul(UNIT_BYTES)
    }

    /// What a budget of `limit_bytes` gives out: whole units.
    pub fn usable(limit_bytes: u64) -> u64 {
        limit_bytes / UNIT_BYTES * UNIT_BYTES
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.total_units)
    }

    fn held(&self, bytes: u64, permit: OwnedSemaphorePermit) -> BytePermit {
        let now = self.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        BytePermit { bytes, in_flight: Arc::clone(&self.in_flight), _permit: permit }
    }

    /// Bytes in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The limit, in whole permits.
    pub fn limit_bytes(&self) -> u64 {
        u64::from(self.total_units) * UNIT_BYTES
    }

    /// Most bytes that were in flight at once.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_full_budget_makes_the_next_one_wait() {
        let budget = ByteBudget::new(8192);
        let first = budget.take(8192).await;
        assert!(tokio::time::timeout(Duration::from_millis(100), budget.take(1)).await.is_err());
        drop(first);
        let second = budget.take(1).await;
        assert_eq!(second.bytes(), 1);
        assert_eq!(budget.peak_bytes(), 8192);
    }

    #[test]
    fn a_thread_without_a_runtime_waits_too() {
        let budget = ByteBudget::new(8192);
        let first = budget.take_blocking(8192);
        let waiting = std::thread::spawn({
            let budget = budget.clone();
            move || budget.take_blocking(4096).bytes()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().unwrap(), 4096);
    }

    #[tokio::test]
    async fn a_request_over_the_whole_budget_runs_alone() {
        let budget = ByteBudget::new(8192);
        let large = budget.take(1 << 20).await;
        assert_eq!(large.bytes(), 1 << 20);
    }
}
