//! `hf:` checkpoints as directories: from the hub's cache, or downloaded into it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::{PipelineError, stopped_by_nobody};
use crate::config::{ConfigError, HubName, Problem, RunConfig};
use crate::hf_hub::{Download, Hub, Missing, Repo, RepoKind};
use crate::objects::Store;
use crate::runtime::Shutdown;
use crate::telemetry::{ProgressRegistry, StageProgress};

/// Which of a plan's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// `model.checkpoint`.
    Backbone,
    /// `text.encoder`.
    Encoder,
}

/// The repository that a checkpoint names; `None` where it names a directory.
///
/// # Errors
/// When the name is malformed.
pub(super) fn repo(checkpoint: &str, which: Which) -> Result<Option<Repo>, PipelineError> {
    let Some(name) = HubName::parse(checkpoint) else { return Ok(None) };
    let (key, kind) = match which {
        Which::Backbone => ("model.checkpoint", RepoKind::Images),
        Which::Encoder => ("text.encoder", RepoKind::Text),
    };
    let HubName { repo, revision } = name.map_err(|what| ConfigError(vec![Problem { key: key.to_owned(), what }]))?;
    Ok(Some(Repo { name: repo, revision, kind }))
}

fn planned(plan: &RunConfig, which: Which) -> Result<Option<Repo>, PipelineError> {
    let pipeline = plan.pipeline();
    let name = match which {
        Which::Backbone => pipeline.model.as_ref().map(|model| &model.checkpoint),
        Which::Encoder => pipeline.text.as_ref().map(|text| &text.encoder),
    };
    name.map_or(Ok(None), |name| repo(name, which))
}

/// The directory of the plan's checkpoint on the hub, after downloading what the cache lacks.
///
/// # Errors
/// When it cannot be had; or when the run is stopped, and goes on from there.
pub(super) async fn fetch(
    plan: &RunConfig,
    which: Which,
    store: &Store,
    registry: &ProgressRegistry,
    stop: &Shutdown,
) -> Result<Option<PathBuf>, PipelineError> {
    let Some(repo) = planned(plan, which)? else { return Ok(None) };
    // A stage only where there is something to download.
    let stage_progress: OnceLock<Arc<StageProgress>> = OnceLock::new();
    let tell = |step| {
        let stage_progress = stage_progress.get_or_init(|| registry.stage("download", "bytes", 0));
        match step {
            Download::Total(bytes) => stage_progress.set_total(bytes),
            Download::Resumed(bytes) => stage_progress.add_resumed(bytes),
            Download::Received(bytes) => stage_progress.add(bytes),
        }
    };
    let hub = Hub::new(store);
    let fetched = tokio::select! {
        fetched = hub.fetch(&repo, &tell) => fetched?,
        () = stop.raised() => return Err(stop.signal().map_or_else(stopped_by_nobody, PipelineError::Stopped)),
    };
    if let Some(stage_progress) = stage_progress.get() {
        stage_progress.finish();
    }
    Ok(Some(fetched))
}

/// The directory of a plan's checkpoint on the hub, from the cache alone; `None` where the plan names a directory itself.
///
/// # Errors
/// When the cache does not have all of it.
pub(super) fn cached(plan: &RunConfig, which: Which, store: &Store) -> Result<Option<PathBuf>, PipelineError> {
    Ok(planned(plan, which)?.map(|repo| Hub::new(store).cached(&repo)).transpose()?)
}

/// What the cache lacks of the plan's checkpoint, or its directory; `None` where the plan names a directory itself.
///
/// # Errors
/// When the hub has no such checkpoint or cannot be asked.
pub(super) async fn look(
    plan: &RunConfig,
    which: Which,
    store: &Store,
) -> Result<Option<Result<PathBuf, Missing>>, PipelineError> {
    let Some(repo) = planned(plan, which)? else { return Ok(None) };
    Ok(Some(Hub::new(store).find_missing(&repo).await?))
}
