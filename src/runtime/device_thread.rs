//! OS thread that owns device, model and optimiser; jobs go in and host values come back.
//!
//! burn orders device work by thread and tokio moves tasks between threads, so a task that used tensors directly would
//! reorder its own work.

use tokio::sync::{mpsc, oneshot};

type Job<D> = Box<dyn FnOnce(&mut D) + Send>;

/// Handle to the thread. Dropping it ends the thread after its last job.
#[derive(Debug)]
pub struct DeviceThread<D> {
    jobs: mpsc::Sender<Job<D>>,
}

/// The device thread ended because a job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device stopped answering after an internal error")]
pub struct DeviceGone;

impl<D: 'static> DeviceThread<D> {
    /// Starts the thread and waits until `open` has opened the device on it; `D` need not be `Send`.
    ///
    /// # Errors
    /// The outer error: the system refused the thread, or `open` panicked. The inner error: `open` returned it.
    pub async fn start<E, F>(open: F) -> Result<Result<Self, E>, DeviceGone>
    where
        E: Send + 'static,
        F: FnOnce() -> Result<D, E> + Send + 'static,
    {
        // At most one job waits while another runs, so one batch is prefetched.
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

    /// Runs `job` on the device thread and returns its result.
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
            // The caller may have been cancelled.
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
    async fn state_need_not_be_send() {
        let device = DeviceThread::start(|| Ok::<_, Infallible>(Rc::new(41))).await.unwrap().unwrap();
        assert_eq!(device.call(|state| **state + 1).await, Ok(42));
    }

    #[tokio::test]
    async fn failure_to_open_is_returned() {
        let opened = DeviceThread::<()>::start(|| Err("no driver")).await.unwrap();
        assert_eq!(opened.err(), Some("no driver"));
    }

    #[tokio::test]
    async fn panic_fails_this_and_later_calls() {
        let device = DeviceThread::start(|| Ok::<_, Infallible>(())).await.unwrap().unwrap();
        let first = device.call(|()| std::panic::resume_unwind(Box::new(()))).await;
        assert_eq!(first, Err::<(), _>(DeviceGone));
        assert_eq!(device.call(|()| 1).await, Err(DeviceGone));
    }
}
