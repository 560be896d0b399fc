//! One writer at a time on a remote directory: a small object, written conditionally and renewed.
//!
//! The object `lock` holds who claims the directory. It is created if absent, and from then on replaced only if it is still
//! the version that its owner wrote (`If-Match`), every 3 s. Whoever finds one watches it: if it changes, its owner lives, and
//! the newcomer is refused; if it stays the same for 15 s of the newcomer's own clock, it is replaced, again only if it
//! is still that version. No two clocks are ever compared. An owner on this host whose process is gone is not waited for.
//! An owner that could not renew its claim for 12 s of its own clock writes nothing, from one attempt at a request to the next:
//! whoever took over is safe from it. It goes on once it has renewed a claim that nobody took.
//!
//! A store that knows no conditional writes says so, and is read before and after each write instead: whoever wrote last has
//! it. That tells two processes apart unless they start within the same second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::{Process, failpoint};
use crate::objects::StoreError;
use crate::objects::client::Client;
use crate::objects::http_error::{explain, is_conflict, is_not_found, is_unsupported};
use crate::objects::read::read_small;

/// Time between two renewals.
const RENEW: Duration = Duration::from_secs(3);
/// Time that one attempt at a renewal may take at first; each that fails allows the next one more, for slow lines.
const ATTEMPT: Duration = Duration::from_secs(3);
/// And at most.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(12);
/// Time between a renewal that failed and the next attempt.
const AGAIN: Duration = Duration::from_millis(500);
/// Time without a renewal after which the owner stops writing.
const STOP_AFTER: Duration = Duration::from_secs(12);
/// Time without a change after which a claim is void.
const VOID_AFTER: Duration = Duration::from_secs(15);
/// Time between two looks at somebody else's claim.
const LOOK: Duration = Duration::from_secs(1);

/// What the object holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Distinguishes this claim from all others.
    claim: String,
    #[serde(flatten)]
    process: Process,
    since: String,
    /// Counts the renewals: the content changes, and with it every kind of `ETag`.
    renewed: u64,
}

impl Record {
    fn new() -> Self {
        Self {
            claim: uuid::Uuid::new_v4().to_string(),
            process: Process::this(),
            since: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            renewed: 0,
        }
    }

    fn text(&self) -> String {
        format!("{} since {}", self.process, self.since)
    }
}

/// A claim that is held and renewed until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    client: Client,
    location: Path,
    /// The claim as it was last written.
    record: Mutex<Record>,
    state: Mutex<State>,
    over: AtomicBool,
}

/// How the claim stands.
#[derive(Debug)]
struct State {
    /// From before the request that last renewed it: nobody may count from later.
    renewed: Instant,
    /// Who has it instead.
    taken_by: Option<String>,
    /// Why it could not be renewed.
    trouble: Option<String>,
    attempts: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a conditional write.
enum Written {
    Yes,
    /// Another version is there.
    No,
}

/// Writes the record if the object is as `mode` demands. An answer that was lost is looked up.
async fn write(client: &Client, location: &Path, record: &Record, mode: PutMode) -> Result<Written, StoreError> {
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
        Ok(_) => Ok(Written::Yes),
        Err(error) if is_unsupported(&error) => unconditional(client, location, record, &mode, content).await,
        // Also what a store says to the second attempt at our own write, whose first answer was lost.
        Err(error) if is_conflict(&error) || (updates && is_not_found(&error)) => {
            Ok(if is_there(client, location, record).await? { Written::Yes } else { Written::No })
        }
        Err(error) => Err(explain(&url, "written", &error)),
    }
}

async fn is_there(client: &Client, location: &Path, record: &Record) -> Result<bool, StoreError> {
    Ok(read(client, location).await?.is_some_and(|(now, _)| now == *record))
}

/// For stores without conditional writes: the condition is looked at first, and whoever wrote last, as seen a second later,
/// has it.
async fn unconditional(
    client: &Client,
    location: &Path,
    record: &Record,
    mode: &PutMode,
    content: Vec<u8>,
) -> Result<Written, StoreError> {
    let url = client.url(location);
    let (there, known) = (read(client, location).await?.map(|(_, version)| version.e_tag), record.renewed > 0);
    let free = match mode {
        PutMode::Update(version) => there.is_some_and(|e_tag| e_tag == version.e_tag),
        PutMode::Create | PutMode::Overwrite => there.is_none(),
    };
    if !free {
        return Ok(if is_there(client, location, record).await? { Written::Yes } else { Written::No });
    }
    client.request(&url, "written", || client.inner.put(location, PutPayload::from(content.clone()))).await?;
    if !known {
        // A claim that is new may have met another one.
        tokio::time::sleep(LOOK).await;
    }
    Ok(if is_there(client, location, record).await? { Written::Yes } else { Written::No })
}

async fn read(client: &Client, location: &Path) -> Result<Option<(Record, UpdateVersion)>, StoreError> {
    let Some((content, e_tag)) = read_small(client, location).await? else { return Ok(None) };
    // An object that is no claim of this program's is somebody's all the same.
    let record = serde_json::from_slice(&content).unwrap_or_else(|_| Record {
        claim: blake3::hash(&content).to_hex().to_string(),
        process: Process::unknown(),
        since: "an unknown time".to_owned(),
        renewed: 0,
    });
    Ok(Some((record, UpdateVersion { e_tag, version: None })))
}

impl Lease {
    /// Claims, or says who has it.
    ///
    /// # Errors
    /// [`StoreError::InUse`], or the store's refusal.
    pub(super) async fn acquire(client: Client, location: Path, directory: String) -> Result<Arc<Self>, StoreError> {
        let own = Record::new();
        let (url, mut retry_budget) = (client.url(&location), client.retry_budget());
        loop {
            // Looked at before it is written to: a store that ignores the condition must not give away what another holds.
            let mode = match read(&client, &location).await? {
                None => PutMode::Create,
                Some((other, version)) => {
                    if !other.process.is_gone() {
                        tracing::info!(
                            "`{directory}` was claimed by {}: waiting up to {} s to see whether it is alive",
                            other.text(),
                            VOID_AFTER.as_secs()
                        );
                        if !Self::is_void(&client, &location, &other).await? {
                            return Err(StoreError::InUse { path: directory, holder: other.text() });
                        }
                    }
                    tracing::info!("the claim of {} on `{directory}` is void: it is taken over", other.text());
                    PutMode::Update(version)
                }
            };
            let asked = Instant::now();
            failpoint::point("put", "lock");
            let written = write(&client, &location, &own, mode).await?;
            failpoint::point("put-done", "lock");
            if let Written::Yes = written {
                return Ok(Self::start(client, location, own, asked));
            }
            retry_budget.wait(&url, "claimed", "another write was going on".to_owned()).await?;
        }
    }

    /// Watches somebody else's claim.
    async fn is_void(client: &Client, location: &Path, seen: &Record) -> Result<bool, StoreError> {
        let since = Instant::now();
        while since.elapsed() < VOID_AFTER {
            tokio::time::sleep(LOOK).await;
            match read(client, location).await? {
                Some((now, _)) if now == *seen => {}
                Some(_) => return Ok(false),
                None => return Ok(true),
            }
        }
        Ok(true)
    }

    fn start(client: Client, location: Path, record: Record, renewed: Instant) -> Arc<Self> {
        let state = State { renewed, taken_by: None, trouble: None, attempts: 0 };
        let lease = Arc::new(Self {
            client,
            location,
            record: Mutex::new(record),
            state: Mutex::new(state),
            over: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&lease);
        tokio::spawn(async move {
            let (mut pause, mut limit) = (RENEW, ATTEMPT);
            loop {
                tokio::time::sleep(pause).await;
                let Some(lease) = weak.upgrade() else { return };
                if lease.over.load(Ordering::SeqCst) {
                    return;
                }
                let trouble = match tokio::time::timeout(limit, lease.renew()).await {
                    Ok(Ok(true)) => None,
                    // Somebody else has it.
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("no answer came for too long".to_owned()),
                };
                (pause, limit) = match trouble {
                    None => (RENEW, ATTEMPT),
                    Some(trouble) => {
                        tracing::debug!(trouble, "the claim on the run directory could not be renewed");
                        let mut state = locked(&lease.state);
                        state.trouble = Some(trouble);
                        state.attempts += 1;
                        (AGAIN, (limit * 2).min(LONGEST_ATTEMPT))
                    }
                };
            }
        });
        lease
    }

    /// Renews once; false when somebody else has it.
    async fn renew(&self) -> Result<bool, StoreError> {
        let own = locked(&self.record).clone();
        loop {
            let version = match read(&self.client, &self.location).await? {
                Some((now, version)) if now.claim == own.claim => version,
                other => {
                    let by = other.map_or_else(|| "somebody who removed the claim".to_owned(), |(now, _)| now.text());
                    locked(&self.state).taken_by = Some(by);
                    return Ok(false);
                }
            };
            let record = Record { renewed: locked(&self.record).renewed + 1, ..own.clone() };
            let asked = Instant::now();
            // Counted in any case: the write may be done although its answer is lost, and the next one has to differ from it.
            locked(&self.record).renewed = record.renewed;
            if let Written::Yes = write(&self.client, &self.location, &record, PutMode::Update(version)).await? {
                let mut state = locked(&self.state);
                (state.renewed, state.trouble, state.attempts) = (asked, None, 0);
                return Ok(true);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits until this process may write: at once, as long as its claim is fresh.
    ///
    /// # Errors
    /// [`StoreError::Lost`] where another process took over; [`StoreError::Unreachable`] where the claim cannot be renewed for
    /// longer than the store's retry_budget.
    pub(super) async fn held(&self) -> Result<(), StoreError> {
        let since = Instant::now();
        let mut told = false;
        loop {
            {
                let state = locked(&self.state);
                let path = self.client.url(&self.location);
                if let Some(holder) = state.taken_by.clone() {
                    return Err(StoreError::Lost { path, holder });
                }
                if state.renewed.elapsed() <= STOP_AFTER {
                    return Ok(());
                }
                let reason = state.trouble.clone().unwrap_or_else(|| "this process was halted".to_owned());
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
                if !told {
                    tracing::warn!("the claim on the run directory cannot be renewed ({reason}): writing waits");
                    told = true;
                }
            }
            tokio::time::sleep(AGAIN / 5).await;
        }
    }

    /// Gives the claim up, so that the next process need not wait.
    pub(super) async fn release(&self) {
        self.over.store(true, Ordering::SeqCst);
        let claim = locked(&self.record).claim.clone();
        if let Ok(Some((now, _))) = read(&self.client, &self.location).await
            && now.claim == claim
        {
            let url = self.client.url(&self.location);
            // One that stays is void a little later.
            self.client.retry(&url, "removed", || self.client.inner.delete(&self.location)).await.ok();
        }
    }
}
