//! CPU work on threads of its own.
//!
//! A thread goes from job to job without asking anybody: jobs wait in the pool's queue, and whoever hands them in bounds how many.
//! tokio's blocking threads come and go by the dozen, and the system's allocator keeps what each of them once had: memory would grow for
//! as long as new ones take part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;

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

    /// Runs `job` on one of the threads once one is free, in the order of the calls. Jobs cannot be stopped, so they must be short.
    ///
    /// # Errors
    /// When the job panics.
    ///
    /// # Cancel safety
    /// The job of a caller that was dropped before a thread was free is not run.
    pub async fn run<T, F>(&self, job: F) -> Result<T, JobPanicked>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.threads.spawn(move || {
            if reply.is_closed() {
                return;
            }
            let output = catch_unwind(AssertUnwindSafe(job));
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
    async fn never_more_jobs_than_threads() {
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
    async fn the_job_of_a_caller_that_is_gone_is_not_run() {
        let pool = CpuPool::new(1).unwrap();
        let (free, wait) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || wait.recv().is_ok()).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let second = pool.run(move || count.fetch_add(1, Ordering::SeqCst));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), second).await.is_err());
        free.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!((pool.run(|| 7).await, ran.load(Ordering::SeqCst)), (Ok(7), 0));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_job_runs() {
        let pool = CpuPool::new(1).unwrap();
        assert_eq!(pool.run(|| std::panic::resume_unwind(Box::new(()))).await, Err(JobPanicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
