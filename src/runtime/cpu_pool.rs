//! CPU work on threads of its own.
//!
//! A thread goes from work to work without asking anybody: it waits in the pool's queue, and whoever hands it in bounds how much.
//! tokio's blocking threads come and go by the dozen, and the system's allocator keeps what each of them once had: memory would grow for
//! as long as new ones take part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A fixed number of threads for work that is longer than a task may hold one.
#[derive(Debug, Clone)]
pub struct CpuPool {
    threads: Arc<rayon::ThreadPool>,
    width: usize,
}

/// A job panicked; its result is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an internal error ended a worker thread")]
pub struct JobPanicked;

/// The system gives no threads.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no {width} threads for decoding: {reason}; lower `limits.cpu_workers`")]
pub struct NoThreads {
    width: usize,
    reason: String,
}

impl CpuPool {
    /// A pool that runs at most `width` jobs at once.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(width: usize) -> Result<Self, NoThreads> {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(width).thread_name(|index| format!("decode-{index}"));
        let threads = threads.build().map_err(|error| NoThreads { width, reason: error.to_string() })?;
        Ok(Self { threads: Arc::new(threads), width })
    }

    /// Jobs that run at once.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Has `work` run as often as there are threads, or `items`, and waits for all of it. Each run begins as soon as a thread is
    /// free, in the order of the calls, which may be when another one has done everything: it has to look for what is left to do.
    ///
    /// The caller must not be one of the threads, and blocks its own.
    ///
    /// # Errors
    /// When the work panics.
    pub fn all(&self, items: usize, work: impl Fn() + Sync) -> Result<(), JobPanicked> {
        let shared = || {
            self.threads.in_place_scope_fifo(|scope| {
                (0..self.width.min(items)).for_each(|_| scope.spawn_fifo(|_| work()));
            });
        };
        catch_unwind(AssertUnwindSafe(shared)).map_err(|_| JobPanicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn all_threads_take_part_and_no_more_than_there_is_work_for() {
        let pool = CpuPool::new(3).unwrap();
        for (items, expected) in [(0, 0), (1, 1), (2, 2), (3, 3), (100, 3)] {
            let (barrier, count) = (Barrier::new(expected), AtomicUsize::new(0));
            pool.all(items, || {
                // Only threads that run at once get past it.
                barrier.wait();
                count.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
            assert_eq!(count.into_inner(), expected, "{items} items");
        }
    }

    #[test]
    fn never_more_at_once_than_threads_whoever_calls() {
        let pool = CpuPool::new(2).unwrap();
        let (now, most, left) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(0..200));
        let work = || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while left.lock().unwrap().next().is_some() {
                std::thread::yield_now();
            }
            now.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| pool.all(100, work).unwrap());
            }
        });
        assert!((1..=2).contains(&most.into_inner()));
        assert_eq!(left.into_inner().unwrap().next(), None);
    }

    #[test]
    fn a_panic_is_an_error_and_the_next_work_is_done() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.all(1, || std::panic::resume_unwind(Box::new(()))), Err(JobPanicked));
        let done = AtomicUsize::new(0);
        assert_eq!(pool.all(1, || done.store(7, Ordering::SeqCst)), Ok(()));
        assert_eq!(done.into_inner(), 7);
    }
}
