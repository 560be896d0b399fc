//! [`RunContext`]: the configuration, the run directory and the services that all stages share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ConfigError, Problem, RunConfig};
use crate::objects::{Store, StoreError, TrafficSnapshot};
use crate::pipeline::claims;
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::require_run_directory;
use crate::pipeline::observe::events::Events;
use crate::pipeline::store::open_store;
use crate::run_dir::{Directory, Lock};
use crate::runtime::{ByteBudget, CpuPool, Shutdown, usable_cores};
use crate::telemetry::ProgressRegistry;
use crate::types::Part;

/// Time between two attempts to lock a run directory that another process holds.
const CLAIM_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Everything that each stage of a run needs. Cheap to clone: all clones share the same services.
#[derive(Debug, Clone)]
pub(crate) struct RunContext {
    /// The checked configuration.
    pub(crate) config: Arc<RunConfig>,
    /// Part of the shards that this process works on; `None` for a whole run.
    pub(crate) part: Option<Part>,
    /// The run directory. This process has locked it, or a part of it.
    pub(crate) dir: Directory,
    /// Client for all input objects.
    pub(crate) store: Store,
    /// Bytes that may be in flight between stages (`limits.memory`).
    pub(crate) budget: ByteBudget,
    /// Decoding threads.
    pub(crate) pool: CpuPool,
    /// Raised when the run has to stop.
    pub(crate) shutdown: Shutdown,
    /// Progress of each stage.
    pub(crate) progress: ProgressRegistry,
    /// The event log of this process.
    pub(crate) events: Events,
}

impl RunContext {
    /// Opens the run directory, locks it for a whole run or a `part`, and starts the shared services. Events are not logged
    /// yet.
    ///
    /// If the owner of the lock may still be alive, the lock is watched for a while; with `wait`, until it is free.
    ///
    /// # Errors
    /// When the directory is in use or cannot be opened; or when the run has to stop.
    pub(crate) async fn open(
        config: RunConfig,
        part: Option<Part>,
        wait: bool,
        progress: ProgressRegistry,
        shutdown: Shutdown,
    ) -> Result<(Self, Lock), PipelineError> {
        let config = Arc::new(config);
        let store = open_store(config.store());
        let mut holder_shown = None;
        let (dir, lock) = loop {
            let (own, client) = (Arc::clone(&config), store.clone());
            let locking = tokio::task::spawn_blocking(move || claim_directory(&own, &client, part));
            let locked = tokio::select! {
                locked = locking => locked?,
                () = shutdown.raised() => return Err(stopped(&shutdown)),
            };
            match locked {
                Err(PipelineError::Store(StoreError::InUse { path, holder })) if wait => {
                    if holder_shown.as_ref() != Some(&holder) {
                        tracing::info!("waiting for `{path}`, which is in use by {holder}");
                        holder_shown = Some(holder);
                    }
                }
                locked => break locked?,
            }
            tokio::select! {
                () = tokio::time::sleep(CLAIM_AGAIN_AFTER) => {}
                () = shutdown.raised() => return Err(stopped(&shutdown)),
            }
        };
        let budget = ByteBudget::new(config.limits().memory.0);
        let pool = CpuPool::new(workers(&config))?;
        Ok((Self { config, part, dir, store, budget, pool, shutdown, progress, events: Events::default() }, lock))
    }

    /// Returns the scratch folder of this run, or of its part.
    pub(crate) fn scratch_path(&self) -> PathBuf {
        own_scratch_path(&self.config, self.part)
    }

    /// Returns the name of a file that each process writes: in the run directory, or in the folder of the part.
    pub(crate) fn own_file(&self, name: &str) -> String {
        match self.part {
            None => name.to_owned(),
            Some(part) => format!("{}/{name}", claims::part_folder(part)),
        }
    }

    /// Refuses a `limits.disk` below the `bytes` that `what` takes.
    ///
    /// # Errors
    /// A configuration error that names the key.
    pub(crate) fn require_disk(&self, bytes: u64, what: &str) -> Result<(), PipelineError> {
        let problem = disk_problem(&self.config, bytes, what);
        problem.map_or(Ok(()), |problem| Err(ConfigError(vec![problem]).into()))
    }

    /// Returns the error of a stage that ended because the run has to stop.
    pub(crate) fn stopped(&self) -> PipelineError {
        stopped(&self.shutdown)
    }

    /// Registers the gauges and counters of the services that all stages share.
    pub(crate) fn register_metrics(&self) {
        let (bytes, limit) = (self.budget.clone(), Some(self.budget.limit_bytes()));
        let in_flight = move || Some(bytes.in_flight_bytes());
        self.progress.gauge("in_flight_bytes", "Bytes in flight between stages", limit, in_flight);
        let counter = |name, help, pick: fn(TrafficSnapshot) -> u64| {
            let traffic = self.store.traffic();
            self.progress.counter(name, help, move || pick(traffic.snapshot()));
        };
        counter("store_requests", "Requests to remote stores, repeated ones included", |traffic| traffic.requests);
        counter("store_retries", "Requests that repeated one that had failed", |traffic| traffic.retries);
        counter("store_read_bytes", "Bytes read of inputs and of the run directory", |traffic| traffic.bytes_read);
        counter("store_written_bytes", "Bytes written to a remote run directory", |traffic| traffic.bytes_written);
    }
}

/// Opens the run directory and locks it for a whole run or a part. Blocks the thread.
fn claim_directory(config: &RunConfig, store: &Store, part: Option<Part>) -> Result<(Directory, Lock), PipelineError> {
    // Before anything is created in it.
    require_run_directory(&Directory::read_only(store, config.run_dir())?)?;
    let dir = Directory::open(store, config.run_dir(), &own_scratch_path(config, part).join("staging"))?;
    let lock = match part {
        None => claims::claim_run(&dir),
        Some(part) => {
            dir.warn_of_network_disk();
            claims::claim_part(&dir, part)
        }
    };
    let lock = lock.inspect_err(|_| dir.abandon(None))?;
    remove_other_scratch(config, part);
    Ok((dir, lock))
}

/// Returns the error of work that ended because `shutdown` was raised.
pub(crate) fn stopped(shutdown: &Shutdown) -> PipelineError {
    shutdown.signal().map_or_else(
        || PipelineError::Internal("a stage stopped without being asked to".to_owned()),
        PipelineError::Stopped,
    )
}

/// Returns the problem of a `limits.disk` below the `bytes` that `what` takes.
pub(crate) fn disk_problem(config: &RunConfig, bytes: u64, what: &str) -> Option<Problem> {
    let limit = config.limits().disk;
    let text = || format!("`{limit}` is less than the {} that {what} take: raise it", bytesize::ByteSize(bytes));
    (bytes > limit.0).then(|| Problem::new("limits.disk", text()))
}

/// Returns the number of decoding threads of a configuration.
pub(crate) fn workers(config: &RunConfig) -> usize {
    match config.limits().cpu_workers {
        0 => usable_cores(),
        count => count as usize,
    }
}

/// Returns the scratch folder of a run. Each run directory has its own, so that runs can share `scratch.dir`.
pub(crate) fn scratch_path(config: &RunConfig) -> PathBuf {
    let (run, scratch) = (config.run_dir(), &config.machine().scratch_dir);
    let remote = Store::is_remote(run);
    if scratch.is_none() && !remote {
        return Path::new(run.strip_prefix("file://").unwrap_or(run)).join("scratch");
    }
    let name =
        if remote { run.into() } else { std::path::absolute(run).map_or_else(|_| run.into(), PathBuf::into_os_string) };
    let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
    let root = scratch.clone().unwrap_or_else(std::env::temp_dir);
    root.join(format!("wikicap-{}", &hash[..16]))
}

/// Prefix of the scratch folders of parts.
const SCRATCH_OF_PART: &str = "part-";

/// Returns the scratch folder of a process. Parts on one machine have a folder each.
fn own_scratch_path(config: &RunConfig, part: Option<Part>) -> PathBuf {
    let path = scratch_path(config);
    part.map_or_else(|| path.clone(), |part| path.join(format!("{SCRATCH_OF_PART}{}", part.folder())))
}

/// Removes the scratch folders of processes that can no longer be at work: those of all parts beside a whole run, and those
/// of other partitions beside a part. What cannot be removed only takes space.
fn remove_other_scratch(config: &RunConfig, part: Option<Part>) {
    for entry in std::fs::read_dir(scratch_path(config)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let other = name.to_str().and_then(|name| Part::from_folder(name.strip_prefix(SCRATCH_OF_PART)?));
        if other.is_some_and(|other| part.is_none_or(|part| part.count() != other.count())) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

#[cfg(test)]
impl RunContext {
    /// Creates a context for unit tests. Its run directory is never written to.
    pub(crate) fn for_test(threads: usize, memory_bytes: u64) -> Self {
        use crate::config::{MachineFile, PipelineFile};
        const PIPELINE: &str = "[run]\ndir = \"run\"\n[images]\nshards = [\"images.csv\"]\n";
        let (pipeline, machine) = (PipelineFile::parse(PIPELINE).unwrap(), MachineFile::parse("").unwrap());
        let config = RunConfig::check(pipeline, &machine).unwrap();
        let store = Store::default();
        Self {
            part: None,
            dir: Directory::read_only(&store, "run").unwrap(),
            config: Arc::new(config),
            store,
            budget: ByteBudget::new(memory_bytes),
            pool: CpuPool::new(threads).unwrap(),
            shutdown: Shutdown::default(),
            progress: ProgressRegistry::default(),
            events: Events::default(),
        }
    }
}
