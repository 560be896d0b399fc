//! One writer at a time on a remote directory: a small object, written conditionally and renewed.
//!
//! The object `lock` holds who claims the directory. It is created if absent, and from then on replaced only if it is still
//! the version that its owner wrote (`If-Match`), every 4 s. Whoever finds one watches it: if it changes, its owner lives, and
//! the newcomer is refused; if it stays the same for 15 s of the newcomer's own clock, it is replaced, again only if it
//! is still that version. No two clocks are ever compared. An owner on this host whose process is gone is not waited for.
//! An owner that could not renew its claim for 12 s of its own clock stops writing: whoever took over is safe from it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::client::Client;
use super::read::small;
use super::retry::explain;

/// Time between two renewals.
const RENEW: Duration = Duration::from_secs(4);
/// Time without a renewal after which the owner stops writing.
const STOP_AFTER: Duration = Duration::from_secs(12);
/// Time without a change after which a claim is void.
const VOID_AFTER: Duration = Duration::from_secs(15);
/// Time between two looks at somebody else's claim.
const LOOK: Duration = Duration::from_secs(1);

/// This machine's name.
pub(super) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this host".to_owned(), |name| name.trim().to_owned())
}

/// What the object holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Distinguishes this claim from all others.
    claim: String,
    process: u32,
    host: String,
    /// Which boot of the host, and which space of process numbers in it.
    space: String,
    since: String,
    /// Counts the renewals: the content changes, and with it every kind of `ETag`.
    renewed: u64,
}

impl Record {
    fn new() -> Self {
        Self {
            claim: uuid::Uuid::new_v4().to_string(),
            process: std::process::id(),
            host: host(),
            space: space(),
            since: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            renewed: 0,
        }
    }

    fn text(&self) -> String {
        format!("process {} on {} since {}", self.process, self.host, self.since)
    }

    /// Whether its process ran on this host and is gone.
    fn is_dead(&self) -> bool {
        !self.space.is_empty()
            && self.space == space()
            && !std::path::Path::new(&format!("/proc/{}", self.process)).exists()
    }
}

pub(super) fn space() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processes = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    if boot.is_empty() || processes.is_empty() { String::new() } else { format!("{} {processes}", boot.trim()) }
}

/// A claim that is held and renewed until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    client: Client,
    location: Path,
    /// The claim as it was last written, and the version of that.
    state: Mutex<(Record, UpdateVersion)>,
    renewed: Mutex<Instant>,
    taken_by: Mutex<Option<String>>,
    over: AtomicBool,
}

/// What came of a conditional write.
enum Written {
    Yes(UpdateVersion),
    /// Another version is there.
    No,
}

/// Writes the record if the object is as `mode` demands. An answer that was lost is looked up.
async fn write(client: &Client, location: &Path, record: &Record, mode: PutMode) -> Result<Written, StoreError> {
    let url = client.url(location);
    let content = serde_json::to_vec_pretty(record)
        .map_err(|error| StoreError::BadUrl { url: url.clone(), reason: error.to_string() })?;
    let answer = client
        .answer(&url, "written", || {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            client.inner.put_opts(location, PutPayload::from(content.clone()), options)
        })
        .await?;
    match answer {
        Ok(put) => Ok(Written::Yes(UpdateVersion { e_tag: put.e_tag, version: put.version })),
        Err(Error::NotImplemented { .. }) => unconditional(client, location, record, content).await,
        // Also what a store says to the second attempt at our own write, whose first answer was lost.
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. }) => {
            match read(client, location).await? {
                Some((now, version)) if now == *record => Ok(Written::Yes(version)),
                _ => Ok(Written::No),
            }
        }
        Err(error) => Err(explain(&url, "written", error)),
    }
}

/// For stores without conditional writes: whoever wrote last, as seen a second later, has it.
async fn unconditional(
    client: &Client,
    location: &Path,
    record: &Record,
    content: Vec<u8>,
) -> Result<Written, StoreError> {
    let url = client.url(location);
    client.ask(&url, "written", || client.inner.put(location, PutPayload::from(content.clone()))).await?;
    tokio::time::sleep(LOOK).await;
    match read(client, location).await? {
        Some((now, version)) if now == *record => Ok(Written::Yes(version)),
        _ => Ok(Written::No),
    }
}

async fn read(client: &Client, location: &Path) -> Result<Option<(Record, UpdateVersion)>, StoreError> {
    let Some((content, e_tag)) = small(client, location).await? else { return Ok(None) };
    // An object that is no claim of this program's is somebody's all the same.
    let record = serde_json::from_slice(&content).unwrap_or_else(|_| Record {
        claim: blake3::hash(&content).to_hex().to_string(),
        process: 0,
        host: "an unknown host".to_owned(),
        space: String::new(),
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
        let mut mode = PutMode::Create;
        loop {
            if let Written::Yes(version) = write(&client, &location, &own, mode).await? {
                return Ok(Self::start(client, location, own, version));
            }
            let Some((other, version)) = read(&client, &location).await? else {
                mode = PutMode::Create;
                continue;
            };
            if !other.is_dead() {
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
            mode = PutMode::Update(version);
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

    fn start(client: Client, location: Path, record: Record, version: UpdateVersion) -> Arc<Self> {
        let lease = Arc::new(Self {
            client,
            location,
            state: Mutex::new((record, version)),
            renewed: Mutex::new(Instant::now()),
            taken_by: Mutex::new(None),
            over: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&lease);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW).await;
                let Some(lease) = weak.upgrade() else { return };
                if lease.over.load(Ordering::SeqCst) || !lease.renew().await {
                    return;
                }
            }
        });
        lease
    }

    /// Renews once; false when somebody else has it.
    async fn renew(&self) -> bool {
        let (mut record, version) = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        record.renewed += 1;
        let asked = Instant::now();
        match write(&self.client, &self.location, &record, PutMode::Update(version)).await {
            Ok(Written::Yes(version)) => {
                *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (record, version);
                // From before the request: nobody may count from later.
                *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
                true
            }
            Ok(Written::No) => {
                let now = read(&self.client, &self.location).await.ok().flatten();
                // Our own claim under another version: an earlier renewal whose answer was lost twice.
                if let Some((now, version)) = now.as_ref().filter(|(now, _)| now.claim == record.claim) {
                    *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (now.clone(), version.clone());
                    return true;
                }
                let by = now.map_or_else(|| "somebody who removed the claim".to_owned(), |(now, _)| now.text());
                *self.taken_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(by);
                false
            }
            Err(error) => {
                tracing::warn!("the claim on the run directory could not be renewed: {error}");
                true
            }
        }
    }

    /// Whether this process may still write.
    ///
    /// # Errors
    /// [`StoreError::Lost`] where another process took over, or may have.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let path = self.client.url(&self.location);
        let taken = self.taken_by.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(holder) = taken {
            return Err(StoreError::Lost { path, holder });
        }
        if self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > STOP_AFTER {
            return Err(StoreError::Lost { path, holder: "another process, perhaps,".to_owned() });
        }
        Ok(())
    }

    /// Gives the claim up, so that the next process need not wait.
    pub(super) async fn release(&self) {
        self.over.store(true, Ordering::SeqCst);
        let claim = self.state.lock().unwrap_or_else(PoisonError::into_inner).0.claim.clone();
        match read(&self.client, &self.location).await {
            Ok(Some((now, _))) if now.claim == claim => {
                // One that stays is void a little later.
                self.client.inner.delete(&self.location).await.ok();
            }
            _ => {}
        }
    }
}
