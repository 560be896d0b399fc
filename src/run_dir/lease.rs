//! Leases on a remote run directory: one writer at a time for each.
//!
//! The object of a lease, such as `lock`, names its holder. It is created if absent. Every 3 s the holder replaces it, if
//! it is still the version that the holder wrote (`If-Match`).
//!
//! A process that finds a lease watches it. If it changes, its holder is alive and the process is refused. If it stays the
//! same for 15 s by the process's own clock, it has expired and is replaced, again only if it is still that version. No two
//! clocks are compared. A lease of a process of this host that no longer runs is replaced at once.
//!
//! A holder that could not renew its lease for 12 s by its own clock stops writing before the next request, so a successor
//! is safe from it. It continues once it has renewed the lease, if nobody took it.
//!
//! Some stores refuse conditional writes. There the object is read before and after each write, and the last writer holds
//! the lease. That keeps two processes apart unless they start within the same second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::{Holder, Process, failpoint};
use crate::objects::StoreError;
use crate::objects::client::Client;
use crate::objects::http_error::{explain, is_conflict, is_not_found, is_unsupported};
use crate::objects::read::read_small;

/// Time between two renewals.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Timeout of the first attempt at a renewal. Each failure doubles it, for slow connections.
const FIRST_ATTEMPT: Duration = Duration::from_secs(3);
/// Upper bound on the timeout of an attempt.
const MAX_ATTEMPT: Duration = Duration::from_secs(12);
/// Time between a failed renewal and the next attempt.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Time without a renewal after which the holder stops writing.
const STOP_AFTER: Duration = Duration::from_secs(12);
/// Time without a change after which a lease has expired.
const EXPIRES_AFTER: Duration = Duration::from_secs(15);
/// Time between two reads of another process's lease.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Content of the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Identifies this lease.
    #[serde(rename = "claim")]
    id: String,
    #[serde(flatten)]
    process: Process,
    since: String,
    /// Work that the lease covers; empty for a whole run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    work: String,
    /// Number of renewals. It changes the content, and with it every kind of `ETag`.
    renewed: u64,
}

impl Record {
    fn new(work: &str) -> Self {
        Self {
            work: work.to_owned(),
            id: uuid::Uuid::new_v4().to_string(),
            process: Process::current(),
            since: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            renewed: 0,
        }
    }

    fn holder(&self) -> Holder {
        Holder { process: format!("{} since {}", self.process, self.since), work: self.work.clone() }
    }

    fn describe_holder(&self) -> String {
        self.holder().to_string()
    }
}

/// Lease that is renewed until it is released.
#[derive(Debug)]
pub(super) struct Lease {
    client: Client,
    location: Path,
    /// Record as it was last written.
    record: Mutex<Record>,
    state: Mutex<State>,
    released: AtomicBool,
}

/// State of the lease.
#[derive(Debug)]
struct State {
    /// Time before the request that last renewed it.
    renewed: Instant,
    /// Present holder, if another process took the lease.
    taken_by: Option<String>,
    /// Reason of the last failed renewal.
    last_error: Option<String>,
    attempts: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Outcome of a conditional write.
enum WriteOutcome {
    Written,
    /// The object is another version than expected.
    Conflict,
}

/// Writes the record if the object is in the state that `mode` demands.
async fn write_record(
    client: &Client,
    location: &Path,
    record: &Record,
    mode: PutMode,
) -> Result<WriteOutcome, StoreError> {
    let url = client.url(location);
    let content = serde_json::to_vec_pretty(record)
        .map_err(|error| StoreError::BadUrl { url: url.clone(), reason: error.to_string() })?;
    let updates = matches!(mode, PutMode::Update(_));
    let answer = client
        .retry(&url, "written", || {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            client.inner.put_opts(location, PutPayload::from(content.clone()), options)
        })
        .await?;
    match answer {
        Ok(_) => Ok(WriteOutcome::Written),
        Err(error) if is_unsupported(&error) => write_unconditionally(client, location, record, &mode, content).await,
        // The store also reports a conflict when it repeats our own write whose answer was lost.
        Err(error) if is_conflict(&error) || (updates && is_not_found(&error)) => {
            Ok(if is_stored(client, location, record).await? { WriteOutcome::Written } else { WriteOutcome::Conflict })
        }
        Err(error) => Err(explain(&url, "written", &error)),
    }
}

async fn is_stored(client: &Client, location: &Path, record: &Record) -> Result<bool, StoreError> {
    Ok(read_record(client, location).await?.is_some_and(|(now, _)| now == *record))
}

/// Writes the record to a store without conditional writes: checks the condition first, and who wrote last a second later.
async fn write_unconditionally(
    client: &Client,
    location: &Path,
    record: &Record,
    mode: &PutMode,
    content: Vec<u8>,
) -> Result<WriteOutcome, StoreError> {
    let url = client.url(location);
    let (current, is_new) =
        (read_record(client, location).await?.map(|(_, version)| version.e_tag), record.renewed == 0);
    let free = match mode {
        PutMode::Update(version) => current.is_some_and(|e_tag| e_tag == version.e_tag),
        PutMode::Create | PutMode::Overwrite => current.is_none(),
    };
    if !free {
        return Ok(if is_stored(client, location, record).await? {
            WriteOutcome::Written
        } else {
            WriteOutcome::Conflict
        });
    }
    client.request(&url, "written", || client.inner.put(location, PutPayload::from(content.clone()))).await?;
    if is_new {
        // Another process may have written at the same time.
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(if is_stored(client, location, record).await? { WriteOutcome::Written } else { WriteOutcome::Conflict })
}

async fn read_record(client: &Client, location: &Path) -> Result<Option<(Record, UpdateVersion)>, StoreError> {
    let Some((content, e_tag)) = read_small(client, location).await? else { return Ok(None) };
    // An object in another format still belongs to somebody.
    let record = serde_json::from_slice(&content).unwrap_or_else(|_| Record {
        id: blake3::hash(&content).to_hex().to_string(),
        process: Process::unknown(),
        since: "an unknown time".to_owned(),
        work: String::new(),
        renewed: 0,
    });
    Ok(Some((record, UpdateVersion { e_tag, version: None })))
}

impl Lease {
    /// Acquires a lease on a directory, for `work`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] names the present holder; other errors are the store's.
    pub(super) async fn acquire(
        client: Client,
        location: Path,
        directory: String,
        work: &str,
    ) -> Result<Arc<Self>, StoreError> {
        let own = Record::new(work);
        let (url, mut retry_budget) = (client.url(&location), client.retry_budget());
        let subject = url.strip_prefix(&directory).unwrap_or(&url).trim_start_matches('/').to_owned();
        loop {
            // Read first, because a store may ignore the condition of a write.
            let mode = match read_record(&client, &location).await? {
                None => PutMode::Create,
                Some((other, version)) => {
                    if !other.process.is_gone() {
                        tracing::info!(
                            "`{directory}` is leased by {}: waiting up to {} s to see whether that process is alive",
                            other.describe_holder(),
                            EXPIRES_AFTER.as_secs()
                        );
                        if !Self::is_expired(&client, &location, &other).await? {
                            return Err(StoreError::InUse { path: directory, holder: other.describe_holder() });
                        }
                    }
                    tracing::info!(
                        "the lease of {} on `{directory}` has expired: taking over",
                        other.describe_holder()
                    );
                    PutMode::Update(version)
                }
            };
            let asked = Instant::now();
            failpoint::point("put", &subject);
            let written = write_record(&client, &location, &own, mode).await?;
            failpoint::point("put-done", &subject);
            if let WriteOutcome::Written = written {
                return Ok(Self::start(client, location, own, asked));
            }
            retry_budget.wait(&url, "claimed", "another process is writing it".to_owned()).await?;
        }
    }

    /// Returns the holder of a lease; `None` if there is none. With `watch`, waits until the lease is renewed or expires.
    pub(super) async fn find_holder(
        client: &Client,
        location: &Path,
        watch: bool,
    ) -> Result<Option<Holder>, StoreError> {
        let Some((record, _)) = read_record(client, location).await? else { return Ok(None) };
        let is_gone = record.process.is_gone() || (watch && Self::is_expired(client, location, &record).await?);
        Ok((!is_gone).then(|| record.holder()))
    }

    /// Watches another process's lease until it changes or expires.
    async fn is_expired(client: &Client, location: &Path, observed: &Record) -> Result<bool, StoreError> {
        let since = Instant::now();
        while since.elapsed() < EXPIRES_AFTER {
            tokio::time::sleep(POLL_EVERY).await;
            match read_record(client, location).await? {
                Some((now, _)) if now == *observed => {}
                Some(_) => return Ok(false),
                None => return Ok(true),
            }
        }
        Ok(true)
    }

    fn start(client: Client, location: Path, record: Record, renewed: Instant) -> Arc<Self> {
        let state = State { renewed, taken_by: None, last_error: None, attempts: 0 };
        let lease = Arc::new(Self {
            client,
            location,
            record: Mutex::new(record),
            state: Mutex::new(state),
            released: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&lease);
        tokio::spawn(async move {
            let (mut pause, mut limit) = (RENEW_EVERY, FIRST_ATTEMPT);
            loop {
                tokio::time::sleep(pause).await;
                let Some(lease) = weak.upgrade() else { return };
                if lease.released.load(Ordering::SeqCst) {
                    return;
                }
                let last_error = match tokio::time::timeout(limit, lease.renew()).await {
                    Ok(Ok(true)) => None,
                    // Another process holds it.
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("no answer arrived before the timeout".to_owned()),
                };
                (pause, limit) = match last_error {
                    None => (RENEW_EVERY, FIRST_ATTEMPT),
                    Some(last_error) => {
                        tracing::debug!(last_error, "the lease on the run directory could not be renewed");
                        let mut state = lock(&lease.state);
                        state.last_error = Some(last_error);
                        state.attempts += 1;
                        (RETRY_AFTER, (limit * 2).min(MAX_ATTEMPT))
                    }
                };
            }
        });
        lease
    }

    /// Renews the lease once; returns false if another process holds it.
    async fn renew(&self) -> Result<bool, StoreError> {
        let own = lock(&self.record).clone();
        loop {
            let version = match read_record(&self.client, &self.location).await? {
                Some((now, version)) if now.id == own.id => version,
                other => {
                    let by = other.map_or_else(
                        || "a process that removed the lease".to_owned(),
                        |(now, _)| now.describe_holder(),
                    );
                    lock(&self.state).taken_by = Some(by);
                    return Ok(false);
                }
            };
            let record = Record { renewed: lock(&self.record).renewed + 1, ..own.clone() };
            let asked = Instant::now();
            // Counted before the answer, which may be lost: the next record must differ from this one.
            lock(&self.record).renewed = record.renewed;
            if let WriteOutcome::Written =
                write_record(&self.client, &self.location, &record, PutMode::Update(version)).await?
            {
                let mut state = lock(&self.state);
                (state.renewed, state.last_error, state.attempts) = (asked, None, 0);
                return Ok(true);
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Waits until this process may write; returns at once while its lease is fresh.
    ///
    /// # Errors
    /// [`StoreError::Lost`] if another process took over; [`StoreError::Unreachable`] if the lease cannot be renewed within
    /// the store's retry budget.
    pub(super) async fn wait_until_held(&self) -> Result<(), StoreError> {
        let since = Instant::now();
        let mut warned = false;
        loop {
            {
                let state = lock(&self.state);
                let path = self.client.url(&self.location);
                if let Some(holder) = state.taken_by.clone() {
                    return Err(StoreError::Lost { path, holder });
                }
                if state.renewed.elapsed() <= STOP_AFTER {
                    return Ok(());
                }
                let reason = state.last_error.clone().unwrap_or_else(|| "this process was suspended".to_owned());
                if since.elapsed() > self.client.retry_budget {
                    let waited = Duration::from_secs(state.renewed.elapsed().as_secs());
                    return Err(StoreError::Unreachable {
                        url: path,
                        action: "renewed",
                        reason,
                        attempts: state.attempts,
                        waited: humantime::format_duration(waited).to_string(),
                    });
                }
                if !warned {
                    tracing::warn!("the lease on the run directory cannot be renewed ({reason}): writing waits");
                    warned = true;
                }
            }
            tokio::time::sleep(RETRY_AFTER / 5).await;
        }
    }

    /// Returns whether this process has released the lease.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// Releases the lease, so that the next process need not wait.
    pub(super) async fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
        let id = lock(&self.record).id.clone();
        if let Ok(Some((now, _))) = read_record(&self.client, &self.location).await
            && now.id == id
        {
            let url = self.client.url(&self.location);
            // Otherwise it expires.
            self.client.retry(&url, "removed", || self.client.inner.delete(&self.location)).await.ok();
        }
    }
}
