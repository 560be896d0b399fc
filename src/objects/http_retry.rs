//! Which failures pass, and how long to wait for that.
//!
//! `object_store`'s own retry is switched off: its deadline of three minutes is shared by all attempts of a request, the
//! time that a slow consumer holds a body open included, it never resumes a body without an `ETag`, and a repeated
//! conditional write reports our own object as somebody else's. Here each failure waits longer than the one before
//! (doubling from 100 ms to 10 s, of which a random part is taken, so that many readers do not come back at once), and
//! the patience of [`super::StoreSettings`] counts from the last byte that made progress. Where no store ever answered, with an
//! error or otherwise, patience ends early.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::StoreError;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// RetryBudget with a store that has never answered: a mistyped endpoint should not take minutes to show.
const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// Attempts that are made in any case: one that only hears silence may take longer than patience by itself.
const LEAST_ATTEMPTS: u32 = 3;

/// What a failure means for the next attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may pass: timeouts, resets, 408, 425, 429, 5xx but 501, and bodies that end early.
    Passing,
    /// It stays, whatever is tried.
    Final,
}

/// The HTTP status of a failed request, where it had an answer.
///
/// `object_store` keeps the type that holds the number to itself, and prints it.
fn status(error: &Error) -> Option<u16> {
    let text = causes(error).map(ToString::to_string).find(|text| text.contains("status code: "))?;
    text.split("status code: ").nth(1)?.get(..3)?.parse().ok()
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Whether the credentials were looked for on a cloud machine's own address, where there is none.
pub(crate) fn without_credentials(error: &Error) -> bool {
    causes(error).any(|cause| {
        let text = cause.to_string();
        text.contains("169.254.169.254") || text.contains("metadata.google.internal") || text.contains("169.254.170.2")
    })
}

/// Whether a store stood behind a failure, rather than a broken way to it.
pub(crate) fn answered(error: &Error) -> bool {
    match error {
        Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::Precondition { .. }
        | Error::NotModified { .. }
        | Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. } => !without_credentials(error),
        Error::Generic { .. } => status(error).is_some() && !without_credentials(error),
        _ => false,
    }
}

/// Whether the store does not know conditional writes.
pub(crate) fn unsupported(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. }) || status(error) == Some(501)
}

/// Whether a range was asked for that the object does not have.
pub(crate) fn out_of_range(error: &Error) -> bool {
    status(error) == Some(416)
}

/// Whether the bucket is elsewhere: S3 says so by a redirect that names no place.
fn elsewhere(error: &Error) -> bool {
    matches!(status(error), Some(300..400)) || causes(error).any(|cause| cause.to_string().contains("without LOCATION"))
}

pub(crate) fn judge(error: &Error) -> Verdict {
    if without_credentials(error) {
        return Verdict::Final;
    }
    match error {
        Error::Generic { .. } => match status(error) {
            // S3 answers 400 to a body that came too slowly, and asks for another attempt.
            Some(400) if causes(error).any(|cause| cause.to_string().contains("RequestTimeout")) => Verdict::Passing,
            Some(501) => Verdict::Final,
            Some(408 | 425 | 429 | 500..) => Verdict::Passing,
            Some(_) => Verdict::Final,
            None if elsewhere(error) => Verdict::Final,
            None if causes(error).any(|cause| cause.is::<HttpError>() || cause.is::<std::io::Error>()) => {
                Verdict::Passing
            }
            // A body that is not what the protocol promises is, more often than not, a cut one.
            None => Verdict::Passing,
        },
        Error::JoinError { .. } => Verdict::Passing,
        _ => Verdict::Final,
    }
}

/// What went wrong, in few words that hold no secret: neither the request's URL with its query nor headers.
pub(crate) fn brief(error: &Error) -> String {
    if elsewhere(error) {
        return "the server sends the request elsewhere: check the bucket's region (`AWS_REGION`) and the endpoint"
            .to_owned();
    }
    if let Some(status) = status(error) {
        let text = causes(error).map(ToString::to_string).find(|text| text.contains("status code: "));
        let code =
            text.as_deref().and_then(|text| Some(text.split("<Code>").nth(1)?.split("</Code>").next()?.to_owned()));
        return code.map_or_else(
            || format!("the server answers {status}"),
            |code| format!("the server answers {status} {code}"),
        );
    }
    for cause in causes(error) {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            let deepest = causes(http).last().map(ToString::to_string).unwrap_or_default();
            return match http.kind() {
                HttpErrorKind::Connect => format!("no connection ({deepest})"),
                HttpErrorKind::Timeout => "no byte came for too long".to_owned(),
                _ => format!("the connection broke ({deepest})"),
            };
        }
    }
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// Sorts an error that no further attempt mends.
pub(crate) fn explain(url: &str, action: &'static str, error: Error) -> StoreError {
    let url = url.to_owned();
    if without_credentials(&error) {
        let hint = ": no credentials were found in the environment, the profile or the machine's metadata";
        return StoreError::Refused { url, hint };
    }
    let hint = if url.contains("://") && !url.starts_with("file://") {
        ": check the credentials and their permissions"
    } else {
        ""
    };
    // Listings do not sort their refusals.
    let status = status(&error);
    match error {
        Error::NotFound { .. } if action == "written" && !hint.is_empty() => {
            StoreError::BadUrl { url, reason: "its bucket is not there".to_owned() }
        }
        Error::NotFound { .. } => StoreError::NotFound { url },
        Error::Generic { .. } if status == Some(404) => StoreError::NotFound { url },
        Error::Generic { .. } if matches!(status, Some(401 | 403)) => StoreError::Refused { url, hint },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreError::Refused { url, hint },
        Error::Precondition { .. } | Error::NotModified { .. } => StoreError::Changed { url },
        other => {
            let io = causes(&other).find_map(|cause| cause.downcast_ref::<std::io::Error>());
            match io.map(std::io::Error::kind) {
                Some(std::io::ErrorKind::PermissionDenied) => StoreError::Refused { url, hint },
                Some(std::io::ErrorKind::NotFound) => StoreError::NotFound { url },
                _ => StoreError::Io { path: url, action, source: std::io::Error::other(brief(&other)) },
            }
        }
    }
}

/// Waits between attempts, and for how long there will be any.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    limit: Duration,
    /// Whether the store ever answered.
    reached: Arc<AtomicBool>,
    since: Instant,
    wait: Duration,
    attempts: u32,
    /// Of these, answers that ended early.
    short: u32,
}

impl RetryBudget {
    /// `reached`: whether the store ever answered.
    pub(crate) fn new(limit: Duration, reached: Arc<AtomicBool>) -> Self {
        Self { limit, reached, since: Instant::now(), wait: FIRST_WAIT, attempts: 0, short: 0 }
    }

    /// Something came: the count starts again.
    pub(crate) fn progress(&mut self) {
        self.since = Instant::now();
        self.wait = FIRST_WAIT;
        (self.attempts, self.short) = (0, 0);
    }

    /// An answer ended early; says how often since the last progress.
    pub(crate) fn short(&mut self) -> u32 {
        self.short += 1;
        self.short
    }

    /// How often it was tried in vain since the last progress.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// When patience is at its end.
    pub(crate) async fn wait(&mut self, url: &str, action: &'static str, reason: String) -> Result<(), StoreError> {
        self.attempts += 1;
        let waited = self.since.elapsed();
        let limit = if self.reached.load(Ordering::Relaxed) { self.limit } else { self.limit.min(FIRST_CONTACT) };
        if waited >= limit && self.attempts >= LEAST_ATTEMPTS {
            let waited = humantime::format_duration(Duration::from_secs(waited.as_secs())).to_string();
            return Err(StoreError::Unreachable {
                url: url.to_owned(),
                action,
                reason,
                attempts: self.attempts,
                waited,
            });
        }
        tracing::debug!(url, action, reason, attempt = self.attempts, "will be tried again");
        let share = f64::from(jitter()) / f64::from(u32::MAX);
        tokio::time::sleep(self.wait.mul_f64(0.25 + 0.75 * share)).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }
}

/// A random number for the wait alone: nothing that is written depends on it.
fn jitter() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let server =
            |status: &str| answer(&format!("Error performing GET - Server returned non-2xx status code: {status}"));
        for status in
            ["429 Too Many Requests: ", "500 x", "503 Slow Down", "408 x", "400 Bad: <Code>RequestTimeout</Code>"]
        {
            assert_eq!(judge(&server(status)), Verdict::Passing, "{status}");
        }
        for status in
            ["400 Bad Request: <Code>ExpiredToken</Code>", "301 Moved", "416 Range", "501 Not Implemented: <Code>x"]
        {
            assert_eq!(judge(&server(status)), Verdict::Final, "{status}");
            assert!(answered(&server(status)));
        }
        let moved =
            answer("Received redirect without LOCATION, this normally indicates an incorrectly configured region");
        assert_eq!(judge(&moved), Verdict::Final);
        assert!(brief(&moved).contains("AWS_REGION") && brief(&server("307 x")).contains("AWS_REGION"));
        assert!(unsupported(&server("501 Not Implemented")) && out_of_range(&server("416 Range")));
        assert_eq!(brief(&server("503 x: <Error><Code>SlowDown</Code>")), "the server answers 503 SlowDown");
    }

    #[tokio::test]
    async fn patience_ends_and_progress_renews_it() {
        let patience =
            |seconds, reached: bool| RetryBudget::new(Duration::from_secs(seconds), Arc::new(reached.into()));
        let mut patience_of_none = patience(0, true);
        for _ in 1..LEAST_ATTEMPTS {
            patience_of_none.wait("s3://b/k", "read", "no connection".into()).await.unwrap();
        }
        let error = patience_of_none.wait("s3://b/k", "read", "no connection".into()).await.unwrap_err().to_string();
        assert!(error.contains("s3://b/k") && error.contains("gave up after 3 attempts"), "{error}");
        let mut patience = patience(60, true);
        for _ in 0..3 {
            patience.wait("s3://b/k", "read", "x".into()).await.unwrap();
        }
        assert_eq!(patience.attempts(), 3);
        patience.progress();
        assert_eq!(patience.attempts(), 0);
    }

    #[tokio::test]
    async fn a_store_that_never_answered_is_given_up_early_and_one_that_did_is_not() {
        let reached = Arc::new(AtomicBool::new(false));
        let mut patience = RetryBudget::new(Duration::from_mins(5), Arc::clone(&reached));
        (patience.since, patience.attempts) = (patience.since.checked_sub(FIRST_CONTACT).unwrap(), LEAST_ATTEMPTS);
        patience.wait("s3://b/k", "read", "no connection".into()).await.unwrap_err();
        // A 503 is an answer, also one that came while this request was already waiting.
        reached.store(true, Ordering::Relaxed);
        patience.wait("s3://b/k", "read", "the server answers 503".into()).await.unwrap();
    }
}
