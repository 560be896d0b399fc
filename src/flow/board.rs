//! How far each stage is, for whoever wants to show it.
//!
//! Stages count into a [`Meter`]; the terminal, the log and the report read [`Snapshot`]s. Counting never waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// All meters of a run, in the order in which the stages started.
#[derive(Debug, Clone, Default)]
pub struct Board {
    meters: Arc<Mutex<Vec<Arc<Meter>>>>,
}

/// Progress of one stage.
#[derive(Debug)]
pub struct Meter {
    name: String,
    unit: &'static str,
    done: AtomicU64,
    resumed: AtomicU64,
    total: AtomicU64,
    started: Instant,
    finished_after_us: AtomicU64,
    finished: AtomicBool,
}

/// A meter at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Stage, as a person calls it.
    pub name: String,
    /// What is counted.
    pub unit: &'static str,
    /// Units done, those of earlier processes of the same run included.
    pub done: u64,
    /// Of these, units that earlier processes did.
    pub resumed: u64,
    /// Units in all, where known.
    pub total: Option<u64>,
    /// Time since the stage started, or that it took.
    pub elapsed: Duration,
    /// Whether it is over.
    pub finished: bool,
}

impl Snapshot {
    /// Units per second of this process.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (self.done - self.resumed.min(self.done)) as f64 / seconds } else { 0.0 }
    }

    /// Time to the end at the rate so far, where the total is known and something was done.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        let rate = self.rate();
        (rate > 0.0).then(|| Duration::from_secs_f64((left as f64 / rate).min(1e9)))
    }
}

impl Board {
    /// Adds a stage and starts its clock. A total of 0 means unknown.
    pub fn stage(&self, name: impl Into<String>, unit: &'static str, total: u64) -> Arc<Meter> {
        let meter = Arc::new(Meter {
            name: name.into(),
            unit,
            done: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            total: AtomicU64::new(total),
            started: Instant::now(),
            finished_after_us: AtomicU64::new(0),
            finished: AtomicBool::new(false),
        });
        self.meters.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&meter));
        meter
    }

    /// Every stage as it is now.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        meters.iter().map(|meter| meter.snapshot()).collect()
    }
}

impl Meter {
    /// Counts units that this process did.
    pub fn add(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Counts units that an earlier process of the same run did.
    pub fn add_resumed(&self, units: u64) {
        self.resumed.fetch_add(units, Ordering::Relaxed);
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Sets what is known of the total.
    pub fn set_total(&self, units: u64) {
        self.total.store(units, Ordering::Relaxed);
    }

    /// Stops the stage's clock.
    pub fn finish(&self) {
        if !self.finished.swap(true, Ordering::SeqCst) {
            self.finished_after_us.store(self.started.elapsed().as_micros() as u64, Ordering::SeqCst);
        }
    }

    /// The meter as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let finished = self.finished.load(Ordering::SeqCst);
        let elapsed = if finished {
            Duration::from_micros(self.finished_after_us.load(Ordering::SeqCst))
        } else {
            self.started.elapsed()
        };
        let total = self.total.load(Ordering::Relaxed);
        Snapshot {
            name: self.name.clone(),
            unit: self.unit,
            done: self.done.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
            total: (total > 0).then_some(total),
            elapsed,
            finished,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_earlier_processes_is_no_part_of_the_rate() {
        let board = Board::default();
        let meter = board.stage("decode", "images", 100);
        meter.add_resumed(90);
        meter.finish();
        let snapshot = &board.snapshots()[0];
        assert_eq!((snapshot.done, snapshot.resumed, snapshot.total), (90, 90, Some(100)));
        assert!(snapshot.rate().abs() < f64::EPSILON);
        assert_eq!(snapshot.eta(), None);
    }
}
