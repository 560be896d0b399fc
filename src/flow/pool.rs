//! CPU work takes a permit before a thread.
//!
//! The threads are the pool's own and as many as its permits. tokio's blocking threads come and go by the dozen, and the
//! system's allocator keeps what each of them once had: memory would grow for as long as new ones take part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

/// A fixed number of threads for work that is longer than a task may hold one.
#[derive(Debug, Clone)]
pub struct CpuPool {
    threads: Arc<rayon::ThreadPool>,
    permits: Arc<Semaphore>,
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
        Ok(Self { threads: Arc::new(threads), permits: Arc::new(Semaphore::new(width)), width })
    }

    /// Jobs that run at once.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Runs `job` on one of the threads once a permit is free. Jobs cannot be stopped, so they must be short.
    ///
    /// # Errors
    /// When the job panics.
    ///
    /// # Cancel safety
    /// A caller dropped while waiting for a permit never starts the job.
    pub async fn run<T, F>(&self, job: F) -> Result<T, JobPanicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| JobPanicked)?;
        let (reply, answer) = oneshot::channel();
        self.threads.spawn(move || {
            let output = catch_unwind(AssertUnwindSafe(job));
            drop(permit);
            // The caller may have been cancelled; then nobody wants the answer.
            reply.send(output).ok();
        });
        answer.await.map_err(|_| JobPanicked)?.map_err(|_| JobPanicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn never_more_jobs_than_permits() {
        let pool = CpuPool::new(2).unwrap();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let jobs = (0..20).map(|_| {
            let (pool, now, most) = (pool.clone(), Arc::clone(&now), Arc::clone(&most));
            async move {
                pool.run(move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                })
                .await
            }
        });
        futures::stream::iter(jobs).buffered(10).for_each(|done| async move { done.unwrap() }).await;
        assert!(most.load(Ordering::SeqCst) <= 2);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_gives_the_permit_back() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.run(|| std::panic::resume_unwind(Box::new(()))).await, Err(JobPanicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
