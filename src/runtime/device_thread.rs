//! One OS thread owns device, model and optimiser; host values cross to it, numbers come back.
//!
//! burn orders device work by thread, and tokio moves tasks between threads: a task that touched tensors directly
//! would reorder its own work.

use tokio::sync::{mpsc, oneshot};

type Job<D> = Box<dyn FnOnce(&mut D) + Send>;

/// The thread's door. Dropping it ends the thread once its last job is done.
#[derive(Debug)]
pub struct DeviceThread<D> {
    jobs: mpsc::Sender<Job<D>>,
}

/// The device's thread ended, because a job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device stopped answering after an internal error")]
pub struct DeviceGone;

impl<D: 'static> DeviceThread<D> {
    /// Starts the thread; `open` runs on it, so `D` need not be `Send`. Waits until the device is open.
    ///
    /// # Errors
    /// The outer error is the system's refusal of a thread or [`DeviceGone`] where `open` panics, the inner one
    /// is what `open` returns.
    pub async fn start<E, F>(open: F) -> Result<Result<Self, E>, DeviceGone>
    where
        E: Send + 'static,
        F: FnOnce() -> Result<D, E> + Send + 'static,
    {
        // One job waits while one runs: the next batch is prefetched, no more.
        let (jobs, mut queue) = mpsc::channel::<Job<D>>(1);
        let (opened, answer) = oneshot::channel();
        std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || match open() {
                Ok(mut device) => {
                    opened.send(Ok(())).ok();
                    while let Some(job) = queue.blocking_recv() {
                        job(&mut device);
                    }
                }
                Err(error) => {
                    opened.send(Err(error)).ok();
                }
            })
            .map_err(|_| DeviceGone)?;
        match answer.await {
            Ok(Ok(())) => Ok(Ok(Self { jobs })),
            Ok(Err(error)) => Ok(Err(error)),
            Err(_) => Err(DeviceGone),
        }
    }

    /// Runs `job` on the device's thread and waits for its answer.
    ///
    /// # Errors
    /// When this job or an earlier one panicked.
    pub async fn call<T, F>(&self, job: F) -> Result<T, DeviceGone>
    where
        T: Send + 'static,
        F: FnOnce(&mut D) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let boxed: Job<D> = Box::new(move |device| {
            // The caller may have been cancelled; then nobody wants the answer.
            reply.send(job(device)).ok();
        });
        self.jobs.send(boxed).await.map_err(|_| DeviceGone)?;
        answer.await.map_err(|_| DeviceGone)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn state_that_cannot_cross_threads_stays_on_its_own() {
        let device = DeviceThread::start(|| Ok::<_, Infallible>(Rc::new(41))).await.unwrap().unwrap();
        assert_eq!(device.call(|state| **state + 1).await, Ok(42));
    }

    #[tokio::test]
    async fn a_failed_opening_is_handed_back() {
        let opened = DeviceThread::<()>::start(|| Err("no driver")).await.unwrap();
        assert_eq!(opened.err(), Some("no driver"));
    }

    #[tokio::test]
    async fn a_panic_surfaces_now_and_later() {
        let device = DeviceThread::start(|| Ok::<_, Infallible>(())).await.unwrap().unwrap();
        let first = device.call(|()| std::panic::resume_unwind(Box::new(()))).await;
        assert_eq!(first, Err::<(), _>(DeviceGone));
        assert_eq!(device.call(|()| 1).await, Err(DeviceGone));
    }
}
