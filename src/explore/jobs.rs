//! Background jobs: each result is built once, one at a time, with progress.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::lock;
use crate::pipeline::PipelineError;

/// Time for which a caller waits for a job before it gets the progress instead.
const PATIENCE: Duration = Duration::from_millis(900);

/// Progress of a job, which counts rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<[AtomicU64; 2]>);

impl Progress {
    pub(super) fn set_total(&self, rows: u64) {
        self.0[1].store(rows, Ordering::Relaxed);
    }

    pub(super) fn add(&self, rows: u64) {
        self.0[0].fetch_add(rows, Ordering::Relaxed);
    }
}

/// A job under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Building {
    /// Description of the work, for people.
    pub what: String,
    /// Rows done.
    pub done: u64,
    /// Rows in all, 0 if they are not counted yet.
    pub total: u64,
}

/// A result, or the progress of the job that makes it.
#[derive(Debug)]
pub enum Built<T> {
    /// The result.
    Ready(Arc<T>),
    /// The job is under way; ask again.
    Building(Building),
}

enum Job<T> {
    Running(watch::Receiver<bool>, Progress),
    Done(Arc<T>),
    /// The error is reported once; the next call tries again.
    Failed(PipelineError),
}

/// Results by name.
pub(super) struct Jobs<T>(Arc<Mutex<BTreeMap<String, Job<T>>>>);

impl<T> Default for Jobs<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Permit to build. Jobs of all runs of a process share it, which bounds their memory.
fn gate() -> &'static Semaphore {
    static GATE: OnceLock<Semaphore> = OnceLock::new();
    GATE.get_or_init(|| Semaphore::new(1))
}

impl<T: Send + Sync + 'static> Jobs<T> {
    /// Returns the result of the job `name`. Starts it if nobody has, and waits a moment for its end.
    ///
    /// # Errors
    /// Those of the job.
    pub(super) async fn get<F>(
        &self,
        name: &str,
        what: &str,
        build: impl FnOnce(Progress) -> F,
    ) -> Result<Built<T>, PipelineError>
    where
        F: Future<Output = Result<T, PipelineError>> + Send + 'static,
    {
        let (mut ended, progress) = {
            let mut jobs = lock(&self.0);
            match jobs.get(name) {
                Some(Job::Done(result)) => return Ok(Built::Ready(Arc::clone(result))),
                Some(Job::Running(ended, progress)) => (ended.clone(), progress.clone()),
                Some(Job::Failed(_)) | None => {
                    let (sender, ended) = watch::channel(false);
                    let progress = Progress::default();
                    jobs.insert(name.to_owned(), Job::Running(ended.clone(), progress.clone()));
                    let (shared, name, job) = (Arc::clone(&self.0), name.to_owned(), build(progress.clone()));
                    tokio::spawn(async move {
                        let outcome = tokio::spawn(async move {
                            let _permit = gate().acquire().await.ok();
                            job.await
                        });
                        let outcome = match outcome.await.unwrap_or_else(|error| Err(error.into())) {
                            Ok(result) => Job::Done(Arc::new(result)),
                            Err(error) => Job::Failed(error),
                        };
                        lock(&shared).insert(name, outcome);
                        sender.send_replace(true);
                    });
                    (ended, progress)
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended.wait_for(|ended| *ended)).await.ok();
        let mut jobs = lock(&self.0);
        match jobs.get(name) {
            Some(Job::Done(result)) => Ok(Built::Ready(Arc::clone(result))),
            Some(Job::Failed(_)) => match jobs.remove(name) {
                Some(Job::Failed(error)) => Err(error),
                _ => Err(super::internal("a job has no outcome")),
            },
            Some(Job::Running(..)) | None => {
                let [done, total] = [0, 1].map(|at| progress.0[at].load(Ordering::Relaxed));
                Ok(Built::Building(Building { what: what.to_owned(), done, total }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All jobs of a process share the gate, so a test that holds it delays the other.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test]
    async fn job_runs_once_and_failure_is_tried_again() {
        let _alone = ALONE.lock().await;
        let (jobs, runs) = (Jobs::<u64>::default(), Arc::new(AtomicU64::new(0)));
        let build = |fail: bool| {
            let runs = Arc::clone(&runs);
            move |_: Progress| async move {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                if fail { Err(PipelineError::Input("no".to_owned())) } else { Ok(run) }
            }
        };
        assert!(jobs.get("a", "", build(true)).await.is_err());
        for _ in 0..2 {
            let Built::Ready(run) = jobs.get("a", "", build(false)).await.unwrap() else { panic!("not ready") };
            assert_eq!(*run, 1);
        }
    }

    #[tokio::test]
    async fn slow_job_shows_its_progress() {
        let _alone = ALONE.lock().await;
        let (jobs, (release, held)) = (Jobs::<u8>::default(), tokio::sync::oneshot::channel::<()>());
        let slow = |progress: Progress| async move {
            progress.set_total(9);
            progress.add(4);
            held.await.ok();
            Ok(5)
        };
        let Built::Building(building) = jobs.get("a", "waiting", slow).await.unwrap() else { panic!("ready") };
        assert_eq!(building, Building { what: "waiting".to_owned(), done: 4, total: 9 });
        release.send(()).unwrap();
        let again = |_: Progress| async { Err(PipelineError::Input("started twice".to_owned())) };
        assert!(matches!(jobs.get("a", "", again).await.unwrap(), Built::Ready(result) if *result == 5));
    }
}
