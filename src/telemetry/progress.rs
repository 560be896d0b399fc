//! How far each stage is, where its time goes and what is in flight, for whoever wants to show it.
//!
//! Stages count into a [`StageProgress`]; the terminal, the log, `status`, Prometheus and the report read [`Snapshot`]s. Counting
//! never waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Party;
use super::stage_timer::{Activity, DEVICE, StageTimer, TimerSnapshot};

/// All meters of a run, in the order in which the stages started, and readings of what the stages share.
#[derive(Debug, Clone, Default)]
pub struct ProgressRegistry {
    stages: Arc<Mutex<Vec<Arc<StageProgress>>>>,
    probes: Arc<Mutex<Vec<Probe>>>,
}

/// Progress of one stage.
#[derive(Debug)]
pub struct StageProgress {
    name: String,
    unit: &'static str,
    done: AtomicU64,
    resumed: AtomicU64,
    total: AtomicU64,
    started: Instant,
    finished_after_us: AtomicU64,
    finished: AtomicBool,
    clocks: Mutex<Vec<Arc<StageTimer>>>,
    shards: Mutex<Vec<Shard>>,
}

/// What of one shard is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// Its stored bytes.
    pub bytes: u64,
    /// Stored bytes that this process read of it; all of them where it is done.
    pub read_bytes: u64,
    /// Rows whose fate is committed.
    pub rows: u64,
    /// Of these, rows that were kept.
    pub kept: u64,
    /// Of these, rows that nothing wants.
    pub skipped: u64,
    /// Of these, rows that could not be used.
    pub quarantined: u64,
    /// Whether all of its rows are committed.
    pub done: bool,
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
    /// Where the time of its parts goes.
    pub parts: Vec<TimerSnapshot>,
    /// Its shards, in their order.
    pub shards: Vec<Shard>,
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

    /// Who held the stage up most, and for which share of the time: the part that worked most, or somebody outside for whom a
    /// part waited longest.
    pub fn bottleneck(&self) -> Option<(Party, f64)> {
        // A part that ended early is idle for the rest of the stage.
        let (who, time) = self.parts.iter().flat_map(TimerSnapshot::suspects).max_by_key(|(_, time)| *time)?;
        Some((who, (time.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0)))
    }

    /// The share of the time for which the device had no input; `None` where the stage has no device.
    pub fn device_starved(&self) -> Option<f64> {
        self.starved(DEVICE)
    }

    /// The share of the time that the part `name` had no input.
    pub fn starved(&self, name: &str) -> Option<f64> {
        self.parts.iter().find(|part| part.name == name).map(|part| part.share(Activity::Starved))
    }
}

/// What a reading is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down; may have a limit.
    Gauge,
    /// Only grows.
    Counter,
}

/// Something that the stages share, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What it is, in `snake_case`, with its unit.
    pub name: &'static str,
    /// What that means.
    pub help: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// Its value.
    pub value: u64,
    /// The most that it may be, where there is a limit.
    pub limit: Option<u64>,
}

type Probing = Box<dyn Fn() -> Option<u64> + Send + Sync>;

struct Probe {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    limit: Option<u64>,
    read: Probing,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProgressRegistry {
    /// Adds a stage and starts its clock. A total of 0 means unknown.
    pub fn stage(&self, name: impl Into<String>, unit: &'static str, total: u64) -> Arc<StageProgress> {
        let stage_progress = Arc::new(StageProgress {
            name: name.into(),
            unit,
            done: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            total: AtomicU64::new(total),
            started: Instant::now(),
            finished_after_us: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            clocks: Mutex::default(),
            shards: Mutex::default(),
        });
        held(&self.stages).push(Arc::clone(&stage_progress));
        stage_progress
    }

    /// Every stage as it is now.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        held(&self.stages).iter().map(|stage_progress| stage_progress.snapshot()).collect()
    }

    /// Adds something that goes up and down, with its limit where there is one; `None`: there is nothing to read any more.
    /// A later one of the same name takes its place.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        limit: Option<u64>,
        read: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) {
        self.probe(Probe { name, help, kind: Kind::Gauge, limit, read: Box::new(read) });
    }

    /// Adds something that only grows.
    pub fn counter(&self, name: &'static str, help: &'static str, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.probe(Probe { name, help, kind: Kind::Counter, limit: None, read: Box::new(move || Some(read())) });
    }

    fn probe(&self, probe: Probe) {
        let mut probes = held(&self.probes);
        probes.retain(|known| known.name != probe.name);
        probes.push(probe);
    }

    /// Every reading as it is now.
    pub fn readings(&self) -> Vec<Reading> {
        let probes = held(&self.probes);
        let read = |probe: &Probe| {
            let Probe { name, help, kind, limit, .. } = *probe;
            (probe.read)().map(|value| Reading { name, help, kind, value, limit })
        };
        probes.iter().filter_map(read).collect()
    }
}

impl StageProgress {
    /// The stage, as a person calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

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

    /// Units done so far, and in all where that is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed), (total > 0).then_some(total))
    }

    /// Adds the clock of a part.
    pub fn part(&self, clock: StageTimer) -> Arc<StageTimer> {
        let clock = Arc::new(clock);
        held(&self.clocks).push(Arc::clone(&clock));
        clock
    }

    /// Sets the shards that the stage reads, in their order.
    pub fn set_shards(&self, shards: Vec<Shard>) {
        *held(&self.shards) = shards;
    }

    /// Changes what is known of a shard.
    pub fn shard(&self, index: usize, change: impl FnOnce(&mut Shard)) {
        held(&self.shards).get_mut(index).map(change);
    }

    /// Stops the stage's clocks.
    pub fn finish(&self) {
        if !self.finished.swap(true, Ordering::SeqCst) {
            self.finished_after_us.store(self.started.elapsed().as_micros() as u64, Ordering::SeqCst);
            held(&self.clocks).iter().for_each(|clock| clock.end());
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
        let (done, total) = self.progress();
        Snapshot {
            name: self.name.clone(),
            unit: self.unit,
            done,
            resumed: self.resumed.load(Ordering::Relaxed),
            total,
            elapsed,
            finished,
            parts: held(&self.clocks).iter().map(|clock| clock.snapshot()).collect(),
            shards: held(&self.shards).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_earlier_processes_is_no_part_of_the_rate() {
        let registry = ProgressRegistry::default();
        let stage_progress = registry.stage("decode", "images", 100);
        stage_progress.add_resumed(90);
        stage_progress.finish();
        let snapshot = &registry.snapshots()[0];
        assert_eq!((snapshot.done, snapshot.resumed, snapshot.total), (90, 90, Some(100)));
        assert!(snapshot.rate().abs() < f64::EPSILON);
        assert_eq!(snapshot.eta(), None);
    }

    #[test]
    fn the_bottleneck_is_who_worked_or_was_waited_for_most() {
        let registry = ProgressRegistry::default();
        let stage_progress = registry.stage("images", "rows", 0);
        let read = stage_progress.part(StageTimer::serial("read rows").starved_by(Party::Store));
        let model = stage_progress.part(StageTimer::serial("model"));
        std::thread::sleep(Duration::from_millis(50));
        read.add(Activity::Starved, Duration::from_millis(49));
        model.add(Activity::Starved, Duration::from_millis(30));
        stage_progress.finish();
        let snapshot = stage_progress.snapshot();
        assert_eq!(snapshot.bottleneck().map(|(who, _)| who), Some(Party::Store));
        let starved = snapshot.starved("model").unwrap_or_default();
        assert!(starved > 0.0 && starved < 0.7, "{starved}");
    }

    #[test]
    fn a_reading_that_is_gone_is_not_shown_and_a_later_one_replaces_it() {
        let registry = ProgressRegistry::default();
        registry.gauge("queue", "waiting", Some(4), || None);
        registry.counter("requests_total", "requests", || 7);
        assert_eq!(registry.readings().len(), 1);
        registry.gauge("queue", "waiting", Some(4), || Some(3));
        let readings = registry.readings();
        assert_eq!(readings.len(), 2);
        assert_eq!((readings[1].value, readings[1].limit), (3, Some(4)));
    }
}
