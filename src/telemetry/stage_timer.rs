//! Time of one part of a stage, split into work, waits for input and waits for room in the output.
//!
//! A part with one worker is always in one of the three states, so only waits are measured and the rest is work. A pool
//! measures its work, and the rest is waiting for input. A wait in progress counts up to the present, so a stalled store
//! shows while it stalls.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// State of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Working.
    Busy,
    /// Waiting for input.
    Starved,
    /// Waiting for room in the output.
    Blocked,
}

type Measured = Box<dyn Fn() -> Duration + Send + Sync>;

/// Measures the time of one part of a stage.
pub struct StageTimer {
    name: &'static str,
    workers: u32,
    rest: Activity,
    starved_by: Option<&'static str>,
    blocked_by: Option<&'static str>,
    /// Measures waits for input from outside, where the part cannot see them.
    starvation: Option<Measured>,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    spent: [Duration; 3],
    waiting: Option<(Activity, Instant)>,
    ended: Option<Duration>,
}

impl std::fmt::Debug for StageTimer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("StageTimer").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}

/// Times of a part at one moment. The three times add up to workers × elapsed.
#[derive(Debug, Clone, PartialEq)]
pub struct TimerSnapshot {
    /// Name of the part.
    pub name: &'static str,
    /// Number of parallel workers.
    pub workers: u32,
    /// Time since the part started; its duration once it has ended.
    pub elapsed: Duration,
    /// Time spent working, summed over the workers.
    pub busy: Duration,
    /// Time spent waiting for input, summed over the workers.
    pub starved: Duration,
    /// Time spent waiting for room in the output, summed over the workers.
    pub blocked: Duration,
    /// Party outside the stage that supplies the input.
    pub starved_by: Option<&'static str>,
    /// Party outside the stage that takes the output.
    pub blocked_by: Option<&'static str>,
}

impl TimerSnapshot {
    /// Returns the share of the part's time, 0 to 1, that was spent in `activity`.
    pub fn share(&self, activity: Activity) -> f64 {
        let all = self.elapsed.as_secs_f64() * f64::from(self.workers);
        let part = match activity {
            Activity::Busy => self.busy,
            Activity::Starved => self.starved,
            Activity::Blocked => self.blocked,
        };
        if all > 0.0 { (part.as_secs_f64() / all).min(1.0) } else { 0.0 }
    }

    /// Returns the parties that may limit the stage, each with its time averaged over the workers.
    pub fn suspects(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        let outside = |who: Option<&'static str>, time| who.map(|who| (who, time));
        let own = Some((self.name, self.busy / self.workers));
        [own, outside(self.starved_by, self.starved), outside(self.blocked_by, self.blocked)].into_iter().flatten()
    }
}

impl StageTimer {
    fn new(name: &'static str, workers: u32, rest: Activity) -> Self {
        Self {
            name,
            workers,
            rest,
            starved_by: None,
            blocked_by: None,
            starvation: None,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Creates the timer of a part with one worker.
    pub fn serial(name: &'static str) -> Self {
        Self::new(name, 1, Activity::Busy)
    }

    /// Creates the timer of a pool whose workers report their time with [`Self::add`].
    pub fn pool(name: &'static str, workers: u32) -> Self {
        Self::new(name, workers.max(1), Activity::Starved)
    }

    /// Names the party outside the stage that supplies the input.
    #[must_use]
    pub fn starved_by(self, who: &'static str) -> Self {
        Self { starved_by: Some(who), ..self }
    }

    /// Names the party outside the stage that takes the output.
    #[must_use]
    pub fn blocked_by(self, who: &'static str) -> Self {
        Self { blocked_by: Some(who), ..self }
    }

    /// Adds waits for input that occur inside the part's work; `measured` returns their total so far.
    #[must_use]
    pub fn starvation(self, measured: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { starvation: Some(Box::new(measured)), ..self }
    }

    /// Awaits `future` and counts the time as `activity`.
    pub async fn wait<T>(&self, activity: Activity, future: impl Future<Output = T>) -> T {
        let _waiting = self.start(activity);
        future.await
    }

    /// Counts the time as `activity` until the guard is dropped.
    pub fn start(&self, activity: Activity) -> Waiting<'_> {
        self.state().waiting = Some((activity, Instant::now()));
        Waiting(self)
    }

    /// Adds time that was measured elsewhere.
    pub fn add(&self, activity: Activity, time: Duration) {
        self.state().spent[activity as usize] += time;
    }

    /// Stops the timer.
    pub fn end(&self) {
        let elapsed = self.started.elapsed();
        self.state().ended.get_or_insert(elapsed);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the times at this moment.
    pub fn snapshot(&self) -> TimerSnapshot {
        let state = self.state();
        let elapsed = state.ended.unwrap_or_else(|| self.started.elapsed());
        let mut spent = state.spent;
        if let (Some((activity, since)), None) = (state.waiting, state.ended) {
            spent[activity as usize] += since.elapsed();
        }
        drop(state);
        if let Some(measured) = &self.starvation {
            spent[Activity::Starved as usize] += measured();
        }
        let all = elapsed * self.workers;
        spent[self.rest as usize] = Duration::ZERO;
        let known = spent.iter().sum();
        spent[self.rest as usize] = all.saturating_sub(known);
        let [busy, starved, blocked] = spent;
        let (name, workers) = (self.name, self.workers);
        let (starved_by, blocked_by) = (self.starved_by, self.blocked_by);
        TimerSnapshot { name, workers, elapsed, busy, starved, blocked, starved_by, blocked_by }
    }
}

/// Wait in progress; dropping the guard ends it.
#[derive(Debug)]
#[must_use = "dropping it ends the wait"]
pub struct Waiting<'a>(&'a StageTimer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some((activity, since)) = state.waiting.take() {
            state.spent[activity as usize] += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rest_of_serial_part_is_work() {
        let timer = StageTimer::serial("write").blocked_by("the run directory");
        timer.wait(Activity::Blocked, tokio::time::sleep(Duration::from_millis(60))).await;
        timer.add(Activity::Starved, Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(40)).await;
        timer.end();
        let now = timer.snapshot();
        assert!(now.blocked >= Duration::from_millis(60) && now.starved == Duration::from_millis(20));
        assert_eq!(now.busy + now.starved + now.blocked, now.elapsed);
        let suspects: Vec<&str> = now.suspects().map(|(who, _)| who).collect();
        assert_eq!(suspects, ["write", "the run directory"]);
    }

    #[tokio::test]
    async fn wait_counts_while_it_lasts_and_ends_when_dropped() {
        let timer = StageTimer::serial("read");
        let waits = timer.wait(Activity::Starved, std::future::pending::<()>());
        assert!(tokio::time::timeout(Duration::from_millis(50), waits).await.is_err());
        let after = timer.snapshot().starved;
        assert!(after >= Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(timer.snapshot().starved, after);
    }

    #[test]
    fn rest_of_pool_is_starvation() {
        let timer = StageTimer::pool("decode", 4);
        timer.add(Activity::Busy, Duration::from_nanos(1));
        timer.end();
        let now = timer.snapshot();
        assert_eq!(now.busy + now.starved, now.elapsed * 4);
    }
}
