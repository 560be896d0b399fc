//! Waits between attempts at a request, and the point at which to give up.
//!
//! `object_store`'s own retries are switched off. Their deadline of three minutes is shared by all attempts of a request and
//! includes the time that a slow consumer holds a body open. They never resume a body without an `ETag`, and they report
//! the second attempt at a conditional write as somebody else's object. The crate `backon` has no deadline that progress
//! renews, which is most of the code below.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::StoreError;

/// Wait after the first failure; each further failure doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Upper bound of a wait.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Retry budget with a store that has never answered: a mistyped endpoint should fail within seconds.
const FIRST_CONTACT: Duration = Duration::from_secs(15);
/// Lower bound of attempts: a single attempt that times out may already exceed the budget.
const MIN_ATTEMPTS: u32 = 3;

/// Time for which a request may fail again and again, counted from the last byte of progress.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    limit: Duration,
    /// Whether the store has ever answered.
    reached: Arc<AtomicBool>,
    since: Instant,
    wait: Duration,
    attempts: u32,
    /// Attempts whose response ended early.
    truncated: u32,
}

impl RetryBudget {
    /// Creates a budget of `limit`; `reached` says whether the store has ever answered.
    pub(crate) fn new(limit: Duration, reached: Arc<AtomicBool>) -> Self {
        Self { limit, reached, since: Instant::now(), wait: FIRST_WAIT, attempts: 0, truncated: 0 }
    }

    /// Renews the whole budget, because bytes arrived.
    pub(crate) fn renew(&mut self) {
        self.since = Instant::now();
        self.wait = FIRST_WAIT;
        (self.attempts, self.truncated) = (0, 0);
    }

    /// Counts a response that ended early; returns their number since the last progress.
    pub(crate) fn count_truncated(&mut self) -> u32 {
        self.truncated += 1;
        self.truncated
    }

    /// Returns the number of failed attempts since the last progress.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts a failed attempt and waits before the next one. A random part of the wait keeps readers from returning at once.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when the budget is spent.
    pub(crate) async fn wait(&mut self, url: &str, action: &'static str, reason: String) -> Result<(), StoreError> {
        self.attempts += 1;
        let waited = self.since.elapsed();
        let limit = if self.reached.load(Ordering::Relaxed) { self.limit } else { self.limit.min(FIRST_CONTACT) };
        if waited >= limit && self.attempts >= MIN_ATTEMPTS {
            let waited = humantime::format_duration(Duration::from_secs(waited.as_secs())).to_string();
            return Err(StoreError::Unreachable {
                url: url.to_owned(),
                action,
                reason,
                attempts: self.attempts,
                waited,
            });
        }
        tracing::debug!(url, action, reason, attempt = self.attempts, "attempt failed, retrying");
        let random = f64::from(random_u32()) / f64::from(u32::MAX);
        tokio::time::sleep(self.wait.mul_f64(0.25 + 0.75 * random)).await;
        self.wait = (self.wait * 2).min(MAX_WAIT);
        Ok(())
    }
}

/// Returns a random number; only waits depend on it.
fn random_u32() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn budget_ends_and_progress_renews_it() {
        let budget = |seconds| RetryBudget::new(Duration::from_secs(seconds), Arc::new(true.into()));
        let mut empty = budget(0);
        for _ in 1..MIN_ATTEMPTS {
            empty.wait("s3://b/k", "read", "no connection".into()).await.unwrap();
        }
        let error = empty.wait("s3://b/k", "read", "no connection".into()).await.unwrap_err().to_string();
        assert!(error.contains("s3://b/k") && error.contains("gave up after 3 attempts"), "{error}");
        let mut budget = budget(60);
        for _ in 0..3 {
            budget.wait("s3://b/k", "read", "x".into()).await.unwrap();
        }
        assert_eq!(budget.attempts(), 3);
        budget.renew();
        assert_eq!(budget.attempts(), 0);
    }

    #[tokio::test]
    async fn store_that_never_answered_is_given_up_early() {
        let reached = Arc::new(AtomicBool::new(false));
        let mut budget = RetryBudget::new(Duration::from_mins(5), Arc::clone(&reached));
        (budget.since, budget.attempts) = (budget.since.checked_sub(FIRST_CONTACT).unwrap(), MIN_ATTEMPTS);
        budget.wait("s3://b/k", "read", "no connection".into()).await.unwrap_err();
        // Any answer counts, even a 503 to another request.
        reached.store(true, Ordering::Relaxed);
        budget.wait("s3://b/k", "read", "the server answers 503".into()).await.unwrap();
    }
}
