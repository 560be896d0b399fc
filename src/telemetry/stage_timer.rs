//! Where the time of one part of a stage goes: working, starved of input, or blocked by whoever takes its output.
//!
//! A part with one lane is always in one of the three, so only waits are measured and the rest is work. A pool of workers
//! measures work, and the rest is starvation. A wait that is going on counts up to now, so that a stalled store shows
//! while it stalls.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Party;

/// Name of the part of a stage that is the accelerator.
pub(super) const DEVICE: &str = "device";

/// What a part is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Its own work.
    Busy,
    /// Waiting for its input.
    Starved,
    /// Waiting for room in its output.
    Blocked,
}

type Measured = Box<dyn Fn() -> Duration + Send + Sync>;

/// Adds up the time of one part of a stage.
pub struct StageTimer {
    name: &'static str,
    lanes: u32,
    rest: Activity,
    starved_by: Option<Party>,
    blocked_by: Option<Party>,
    /// Starvation that somebody else measures.
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

/// A [`StageTimer`] at one moment. The three times add up to lanes × elapsed.
#[derive(Debug, Clone, PartialEq)]
pub struct TimerSnapshot {
    /// What the part does.
    pub name: &'static str,
    /// Units of it that work side by side.
    pub lanes: u32,
    /// Time since the part started, or that it took.
    pub elapsed: Duration,
    /// Time of work, summed over the lanes.
    pub busy: Duration,
    /// Time without input.
    pub starved: Duration,
    /// Time without room in the output.
    pub blocked: Duration,
    /// Whose slowness starvation is, where that is no part of the stage.
    pub starved_by: Option<Party>,
    /// Whose slowness blocking is, where that is no part of the stage.
    pub blocked_by: Option<Party>,
}

impl TimerSnapshot {
    /// The part's share of the time, 0 to 1, that went into `doing`.
    pub fn share(&self, doing: Activity) -> f64 {
        let all = self.elapsed.as_secs_f64() * f64::from(self.lanes);
        let part = match doing {
            Activity::Busy => self.busy,
            Activity::Starved => self.starved,
            Activity::Blocked => self.blocked,
        };
        if all > 0.0 { (part.as_secs_f64() / all).min(1.0) } else { 0.0 }
    }

    /// What this part's time says of the stage's slowest link: (who, time, averaged over the lanes).
    pub fn suspects(&self) -> impl Iterator<Item = (Party, Duration)> + '_ {
        let outside = |who: &Option<Party>, time| who.clone().map(|who| (who, time));
        let own = Some((Party::Part(Cow::Borrowed(self.name)), self.busy / self.lanes));
        [own, outside(&self.starved_by, self.starved), outside(&self.blocked_by, self.blocked)].into_iter().flatten()
    }
}

impl StageTimer {
    fn new(name: &'static str, lanes: u32, rest: Activity) -> Self {
        Self {
            name,
            lanes,
            rest,
            starved_by: None,
            blocked_by: None,
            starvation: None,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// A part that does one thing at a time.
    pub fn serial(name: &'static str) -> Self {
        Self::new(name, 1, Activity::Busy)
    }

    /// The accelerator that a stage feeds, as one part.
    pub fn device() -> Self {
        Self::serial(DEVICE)
    }

    /// A part of `lanes` workers, which report what they did by [`Self::add`].
    pub fn pool(name: &'static str, lanes: u32) -> Self {
        Self::new(name, lanes.max(1), Activity::Starved)
    }

    /// Names who is slow when this part starves, where that is no part of the stage.
    #[must_use]
    pub fn starved_by(self, who: Party) -> Self {
        Self { starved_by: Some(who), ..self }
    }

    /// Names who is slow when this part is blocked, where that is no part of the stage.
    #[must_use]
    pub fn blocked_by(self, who: Party) -> Self {
        Self { blocked_by: Some(who), ..self }
    }

    /// Starvation in the middle of the part's own work, which only its input can measure: all of it so far.
    #[must_use]
    pub fn starvation(self, measured: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { starvation: Some(Box::new(measured)), ..self }
    }

    /// Waits for `future`, and counts the time as `doing`.
    pub async fn wait<T>(&self, doing: Activity, future: impl Future<Output = T>) -> T {
        let _waiting = self.start(doing);
        future.await
    }

    /// Counts the time until the guard is dropped as `doing`.
    pub fn start(&self, doing: Activity) -> Waiting<'_> {
        self.state().waiting = Some((doing, Instant::now()));
        Waiting(self)
    }

    /// Counts time that was measured elsewhere.
    pub fn add(&self, doing: Activity, time: Duration) {
        self.state().spent[doing as usize] += time;
    }

    /// Stops the clock.
    pub fn end(&self) {
        let elapsed = self.started.elapsed();
        self.state().ended.get_or_insert(elapsed);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock as it is now.
    pub fn snapshot(&self) -> TimerSnapshot {
        let state = self.state();
        let elapsed = state.ended.unwrap_or_else(|| self.started.elapsed());
        let mut spent = state.spent;
        if let (Some((doing, since)), None) = (state.waiting, state.ended) {
            spent[doing as usize] += since.elapsed();
        }
        drop(state);
        if let Some(measured) = &self.starvation {
            spent[Activity::Starved as usize] += measured();
        }
        let all = elapsed * self.lanes;
        spent[self.rest as usize] = Duration::ZERO;
        let known = spent.iter().sum();
        spent[self.rest as usize] = all.saturating_sub(known);
        let [busy, starved, blocked] = spent;
        let (name, lanes) = (self.name, self.lanes);
        let (starved_by, blocked_by) = (self.starved_by.clone(), self.blocked_by.clone());
        TimerSnapshot { name, lanes, elapsed, busy, starved, blocked, starved_by, blocked_by }
    }
}

/// A wait that is going on; dropping it ends the wait.
#[derive(Debug)]
#[must_use = "dropping it ends the wait"]
pub struct Waiting<'a>(&'a StageTimer);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some((doing, since)) = state.waiting.take() {
            state.spent[doing as usize] += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_wait_is_work() {
        let clock = StageTimer::serial("write").blocked_by(Party::RunDirectory);
        clock.wait(Activity::Blocked, tokio::time::sleep(Duration::from_millis(60))).await;
        clock.add(Activity::Starved, Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(40)).await;
        clock.end();
        let now = clock.snapshot();
        assert!(now.blocked >= Duration::from_millis(60) && now.starved == Duration::from_millis(20));
        assert_eq!(now.busy + now.starved + now.blocked, now.elapsed);
        let suspects: Vec<String> = now.suspects().map(|(who, _)| who.to_string()).collect();
        assert_eq!(suspects, ["write", "the run directory"]);
    }

    #[tokio::test]
    async fn a_wait_shows_while_it_lasts_and_a_dropped_one_ends() {
        let clock = StageTimer::serial("read");
        let waits = clock.wait(Activity::Starved, std::future::pending::<()>());
        assert!(tokio::time::timeout(Duration::from_millis(50), waits).await.is_err());
        let after = clock.snapshot().starved;
        assert!(after >= Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(clock.snapshot().starved, after);
    }

    #[test]
    fn a_pool_starves_when_it_does_not_work() {
        let clock = StageTimer::pool("decode", 4);
        clock.add(Activity::Busy, Duration::from_nanos(1));
        clock.end();
        let now = clock.snapshot();
        assert_eq!(now.busy + now.starved, now.elapsed * 4);
    }
}
