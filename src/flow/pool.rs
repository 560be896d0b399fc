//! CPU work takes a permit before a thread.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// A bounded share of tokio's blocking threads.
#[derive(Debug, Clone)]
pub struct CpuPool {
    permits: Arc<Semaphore>,
    width: usize,
}

/// A job panicked; its result is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an internal error ended a worker thread")]
pub struct JobPanicked;

impl CpuPool {
    /// A pool that runs at most `width` jobs at once.
    pub fn new(width: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(width)), width }
    }

    /// Jobs that run at once.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Runs `job` on a thread of its own once a permit is free. Jobs cannot be stopped, so they must be short.
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
        tokio::task::spawn_blocking(move || {
            let output = job();
            drop(permit);
            output
        })
        .await
        .map_err(|_| JobPanicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn never_more_jobs_than_permits() {
        let pool = CpuPool::new(2);
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
        let pool = CpuPool::new(1);
        assert_eq!(pool.run(|| std::panic::resume_unwind(Box::new(()))).await, Err(JobPanicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
