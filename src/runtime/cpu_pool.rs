//! Dedicated threads for CPU work.
//!
//! The threads live as long as the pool. tokio's blocking threads come and go by the dozen, and the allocator keeps the
//! memory that each of them once used, so memory would grow with every new thread. Jobs wait in the pool's queue; callers
//! bound its length.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Fixed number of threads for jobs that would occupy an async task for too long.
#[derive(Debug, Clone)]
pub struct CpuPool {
    threads: Arc<rayon::ThreadPool>,
    width: usize,
}

/// A job panicked; its result is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an internal error ended a worker thread")]
pub struct JobPanicked;

/// The system refused to start the threads of a [`CpuPool`].
#[derive(Debug, thiserror::Error)]
#[error("the system cannot start {width} threads for decoding: {reason}; lower `limits.cpu_workers`")]
pub struct NoThreads {
    width: usize,
    reason: String,
}

impl CpuPool {
    /// Creates a pool of `width` threads.
    ///
    /// # Errors
    /// When the system refuses to start them.
    pub fn new(width: usize) -> Result<Self, NoThreads> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(width).thread_name(|index| format!("decode-{index}"));
        let threads = threads.build().map_err(|error| NoThreads { width, reason: error.to_string() })?;
        Ok(Self { threads: Arc::new(threads), width })
    }

    /// Returns the number of threads.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Runs `job` once on each thread, at most `items` times, and waits for all runs.
    ///
    /// Runs start in the order of the calls, each as soon as a thread is free. A run may start after another one has
    /// finished all items, so `job` must check for remaining items itself. Blocks the calling thread, which must not belong
    /// to the pool.
    ///
    /// # Errors
    /// When a run panics.
    pub fn run_on_all(&self, items: usize, job: impl Fn() + Sync) -> Result<(), JobPanicked> {
        let run = || {
            self.threads.in_place_scope_fifo(|scope| {
                (0..self.width.min(items)).for_each(|_| scope.spawn_fifo(|_| job()));
            });
        };
        catch_unwind(AssertUnwindSafe(run)).map_err(|_| JobPanicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn job_runs_once_a_thread_and_at_most_once_an_item() {
        let pool = CpuPool::new(3).unwrap();
        for (items, expected) in [(0, 0), (1, 1), (2, 2), (3, 3), (100, 3)] {
            let (barrier, count) = (Barrier::new(expected), AtomicUsize::new(0));
            pool.run_on_all(items, || {
                // Opens only when `expected` runs are active at once.
                barrier.wait();
                count.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
            assert_eq!(count.into_inner(), expected, "{items} items");
        }
    }

    #[test]
    fn concurrent_callers_share_the_threads() {
        let pool = CpuPool::new(2).unwrap();
        let (active, peak, items) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(0..200));
        let job = || {
            peak.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while items.lock().unwrap().next().is_some() {
                std::thread::yield_now();
            }
            active.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| pool.run_on_all(100, job).unwrap());
            }
        });
        assert!((1..=2).contains(&peak.into_inner()));
        assert_eq!(items.into_inner().unwrap().next(), None);
    }

    #[test]
    fn pool_survives_a_panic() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.run_on_all(1, || std::panic::resume_unwind(Box::new(()))), Err(JobPanicked));
        let result = AtomicUsize::new(0);
        assert_eq!(pool.run_on_all(1, || result.store(7, Ordering::SeqCst)), Ok(()));
        assert_eq!(result.into_inner(), 7);
    }
}
