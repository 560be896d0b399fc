//! Progress of the stages, and metrics that they share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stage_timer::{Activity, DEVICE, StageTimer, TimerSnapshot};
use super::{ExpectedStage, Party};

/// Progress of all stages of a run in the order in which they started, and the run's metrics.
#[derive(Debug, Clone, Default)]
pub struct ProgressRegistry {
    stages: Arc<Mutex<Vec<Arc<StageProgress>>>>,
    probes: Arc<Mutex<Vec<Probe>>>,
    expected: Arc<Mutex<Vec<ExpectedStage>>>,
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
    timers: Mutex<Vec<Arc<StageTimer>>>,
    shards: Mutex<Vec<Shard>>,
}

/// Progress of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// Name of the shard.
    pub name: String,
    /// Stored bytes of the shard.
    pub bytes: u64,
    /// Stored bytes that this process has read; all of them once the shard is done.
    pub read_bytes: u64,
    /// Committed rows.
    pub rows: u64,
    /// Committed rows that were kept.
    pub kept: u64,
    /// Committed rows that no stage uses.
    pub skipped: u64,
    /// Committed rows that could not be used.
    pub quarantined: u64,
    /// Whether all rows of the shard are committed.
    pub done: bool,
}

/// Progress of one stage at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSnapshot {
    /// Display name of the stage.
    pub name: String,
    /// Unit of the counts.
    pub unit: &'static str,
    /// Finished units, including those of earlier processes of the same run.
    pub done: u64,
    /// Finished units of earlier processes.
    pub resumed: u64,
    /// Total units; `None` while unknown.
    pub total: Option<u64>,
    /// Time since the stage started; its duration once it has finished.
    pub elapsed: Duration,
    /// Whether the stage has finished.
    pub finished: bool,
    /// Times of the stage's parts.
    pub parts: Vec<TimerSnapshot>,
    /// Progress of the stage's shards, in order.
    pub shards: Vec<Shard>,
}

impl StageSnapshot {
    /// Returns the units per second of this process.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (self.done - self.resumed.min(self.done)) as f64 / seconds } else { 0.0 }
    }

    /// Estimates the time to the end at the rate so far; `None` while total or rate is unknown.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.done);
        let rate = self.rate();
        (rate > 0.0).then(|| Duration::from_secs_f64((left as f64 / rate).min(1e9)))
    }

    /// Returns the party that limited the stage most, and its share of the elapsed time: the part with the longest work, or
    /// an outside party with the longest wait for it.
    pub fn bottleneck(&self) -> Option<(Party, f64)> {
        // A part that has ended is idle for the rest of the stage.
        let (who, time) = self.parts.iter().flat_map(TimerSnapshot::suspects).max_by_key(|(_, time)| *time)?;
        Some((who, (time.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0)))
    }

    /// Returns the share of time that the device waited for input; `None` if the stage has no device.
    pub fn device_starved(&self) -> Option<f64> {
        self.starved(DEVICE)
    }

    /// Returns the share of time that the part `name` waited for input.
    pub fn starved(&self, name: &str) -> Option<f64> {
        self.parts.iter().find(|part| part.name == name).map(|part| part.share(Activity::Starved))
    }
}

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A value that goes up and down and may have a limit.
    Gauge,
    /// A value that only grows.
    Counter,
}

/// One metric at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Name in `snake_case`, with its unit.
    pub name: &'static str,
    /// Description for people.
    pub help: &'static str,
    /// Type of the metric.
    pub kind: MetricKind,
    /// Current value.
    pub value: u64,
    /// Upper limit of the value, where there is one.
    pub limit: Option<u64>,
}

type ReadMetric = Box<dyn Fn() -> Option<u64> + Send + Sync>;

struct Probe {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    limit: Option<u64>,
    read: ReadMetric,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProgressRegistry {
    /// Adds a stage and starts its timer. A total of 0 means unknown.
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
            timers: Mutex::default(),
            shards: Mutex::default(),
        });
        lock(&self.stages).push(Arc::clone(&stage_progress));
        stage_progress
    }

    /// Returns the progress of every stage.
    pub fn snapshots(&self) -> Vec<StageSnapshot> {
        lock(&self.stages).iter().map(|stage_progress| stage_progress.snapshot()).collect()
    }

    /// Sets the stages that the run will have, in order.
    pub fn expect(&self, stages: Vec<ExpectedStage>) {
        *lock(&self.expected) = stages;
    }

    /// Returns the stages that the run will have; none before they are known.
    pub fn expected(&self) -> Vec<ExpectedStage> {
        lock(&self.expected).clone()
    }

    /// Adds a gauge, which replaces an earlier metric of the same name. `read` returns `None` once there is no value left.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        limit: Option<u64>,
        read: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) {
        self.add_probe(Probe { name, help, kind: MetricKind::Gauge, limit, read: Box::new(read) });
    }

    /// Adds a counter, which replaces an earlier metric of the same name.
    pub fn counter(&self, name: &'static str, help: &'static str, read: impl Fn() -> u64 + Send + Sync + 'static) {
        self.add_probe(Probe {
            name,
            help,
            kind: MetricKind::Counter,
            limit: None,
            read: Box::new(move || Some(read())),
        });
    }

    fn add_probe(&self, probe: Probe) {
        let mut probes = lock(&self.probes);
        probes.retain(|known| known.name != probe.name);
        probes.push(probe);
    }

    /// Returns the current value of every metric that has one.
    pub fn readings(&self) -> Vec<Metric> {
        let probes = lock(&self.probes);
        let read = |probe: &Probe| {
            let Probe { name, help, kind, limit, .. } = *probe;
            (probe.read)().map(|value| Metric { name, help, kind, value, limit })
        };
        probes.iter().filter_map(read).collect()
    }
}

impl StageProgress {
    /// Returns the display name of the stage.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts units that this process finished.
    pub fn add(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Counts units that an earlier process of the same run finished.
    pub fn add_resumed(&self, units: u64) {
        self.resumed.fetch_add(units, Ordering::Relaxed);
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Sets the total units; 0 means unknown.
    pub fn set_total(&self, units: u64) {
        self.total.store(units, Ordering::Relaxed);
    }

    /// Returns the finished units and, where known, the total.
    pub fn progress(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed), (total > 0).then_some(total))
    }

    /// Adds the timer of a part.
    pub fn part(&self, timer: StageTimer) -> Arc<StageTimer> {
        let timer = Arc::new(timer);
        lock(&self.timers).push(Arc::clone(&timer));
        timer
    }

    /// Sets the shards that the stage reads, in order.
    pub fn set_shards(&self, shards: Vec<Shard>) {
        *lock(&self.shards) = shards;
    }

    /// Updates the progress of one shard.
    pub fn shard(&self, index: usize, change: impl FnOnce(&mut Shard)) {
        lock(&self.shards).get_mut(index).map(change);
    }

    /// Marks the stage as finished and stops its timers.
    pub fn finish(&self) {
        if !self.finished.swap(true, Ordering::SeqCst) {
            self.finished_after_us.store(self.started.elapsed().as_micros() as u64, Ordering::SeqCst);
            lock(&self.timers).iter().for_each(|timer| timer.end());
        }
    }

    /// Returns the progress at this moment.
    pub fn snapshot(&self) -> StageSnapshot {
        let finished = self.finished.load(Ordering::SeqCst);
        let elapsed = if finished {
            Duration::from_micros(self.finished_after_us.load(Ordering::SeqCst))
        } else {
            self.started.elapsed()
        };
        let (done, total) = self.progress();
        StageSnapshot {
            name: self.name.clone(),
            unit: self.unit,
            done,
            resumed: self.resumed.load(Ordering::Relaxed),
            total,
            elapsed,
            finished,
            parts: lock(&self.timers).iter().map(|timer| timer.snapshot()).collect(),
            shards: lock(&self.shards).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_excludes_earlier_processes() {
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
    fn bottleneck_is_the_longest_work_or_outside_wait() {
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
    fn metric_without_value_is_hidden_until_replaced() {
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
