//! Limit on the bytes in flight across all stages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per semaphore permit: a semaphore counts permits in `u32`, and budgets exceed 4 GiB.
const UNIT_BYTES: u64 = 4096;

/// Grants bytes up to a limit; a request for more than is free waits.
///
/// Requests are granted in the order in which they were made, so small ones cannot starve a large one.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    free: Arc<Semaphore>,
    total_units: u32,
    in_flight: Arc<AtomicU64>,
    peak: Arc<AtomicU64>,
}

/// Bytes granted by a [`ByteBudget`]; dropping the permit returns them.
#[derive(Debug)]
#[must_use = "dropping the permit returns the bytes"]
pub struct BytePermit {
    bytes: u64,
    in_flight: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl BytePermit {
    /// Returns the number of granted bytes.
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
    /// Creates a budget of `limit_bytes`, rounded down to a multiple of 4 KiB; the minimum is 4 KiB.
    pub fn new(limit_bytes: u64) -> Self {
        let max_units = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
        let total_units = (limit_bytes / UNIT_BYTES).clamp(1, max_units) as u32;
        Self {
            free: Arc::new(Semaphore::new(total_units as usize)),
            total_units,
            in_flight: Arc::new(AtomicU64::new(0)),
            peak: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Waits until `bytes` are free and grants them.
    ///
    /// A request for more than the whole budget waits for all of it and then runs alone. `RunConfig::check_bounds` refuses
    /// budgets below the largest regular request, so this happens only to records that exceed their own limit.
    ///
    /// # Cancel safety
    /// A caller that is dropped while it waits holds no bytes.
    pub async fn acquire(&self, bytes: u64) -> BytePermit {
        // The semaphore is never closed, so this error cannot occur.
        let permit = match Arc::clone(&self.free).acquire_many_owned(self.units(bytes)).await {
            Ok(permit) => permit,
            Err(_closed) => std::future::pending().await,
        };
        self.grant(bytes, permit)
    }

    /// Blocks the calling thread until `bytes` are free and grants them.
    pub fn acquire_blocking(&self, bytes: u64) -> BytePermit {
        match Arc::clone(&self.free).try_acquire_many_owned(self.units(bytes)) {
            Ok(permit) => self.grant(bytes, permit),
            Err(_) => futures::executor::block_on(self.acquire(bytes)),
        }
    }

    /// Rounds `bytes` up to the units that a request takes from a budget.
    pub fn rounded(bytes: u64) -> u64 {
        bytes.div_ceil(UNIT_BYTES).saturating_mul(UNIT_BYTES)
    }

    /// Rounds `limit_bytes` down to the units that a budget of this limit can grant.
    pub fn usable(limit_bytes: u64) -> u64 {
        limit_bytes / UNIT_BYTES * UNIT_BYTES
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.total_units)
    }

    fn grant(&self, bytes: u64, permit: OwnedSemaphorePermit) -> BytePermit {
        let now = self.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        BytePermit { bytes, in_flight: Arc::clone(&self.in_flight), _permit: permit }
    }

    /// Returns the bytes in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns the limit, in whole units.
    pub fn limit_bytes(&self) -> u64 {
        u64::from(self.total_units) * UNIT_BYTES
    }

    /// Returns the largest number of bytes that were in flight at once.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn full_budget_makes_next_request_wait() {
        let budget = ByteBudget::new(8192);
        let first = budget.acquire(8192).await;
        assert!(tokio::time::timeout(Duration::from_millis(100), budget.acquire(1)).await.is_err());
        drop(first);
        let second = budget.acquire(1).await;
        assert_eq!(second.bytes(), 1);
        assert_eq!(budget.peak_bytes(), 8192);
    }

    #[test]
    fn thread_without_runtime_waits() {
        let budget = ByteBudget::new(8192);
        let first = budget.acquire_blocking(8192);
        let waiting = std::thread::spawn({
            let budget = budget.clone();
            move || budget.acquire_blocking(4096).bytes()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().unwrap(), 4096);
    }

    #[tokio::test]
    async fn request_over_whole_budget_runs_alone() {
        let budget = ByteBudget::new(8192);
        let large = budget.acquire(1 << 20).await;
        assert_eq!(large.bytes(), 1 << 20);
    }
}
