//! `hf:` checkpoints: their directories in the hub's cache, and downloads into it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::config::{ConfigError, HubName, Problem, RunConfig, TextConfig};
use crate::hf_hub::{Download, Hub, Missing, Repo, RepoKind};
use crate::objects::Store;
use crate::pipeline::context::stopped;
use crate::pipeline::error::PipelineError;
use crate::runtime::Shutdown;
use crate::telemetry::{ProgressRegistry, StageProgress};

/// A model of the configuration that may be on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HubModel {
    /// `model.checkpoint`.
    Backbone,
    /// `text.encoder`.
    TextEncoder,
    /// `caption.checkpoint`.
    Captioner,
}

/// Parses the name of a checkpoint; `None` if it is a directory.
///
/// # Errors
/// When the name is malformed.
pub(crate) fn parse_repo(checkpoint: &str, model: HubModel) -> Result<Option<Repo>, PipelineError> {
    let Some(name) = HubName::parse(checkpoint) else { return Ok(None) };
    let (key, kind) = match model {
        HubModel::Backbone => ("model.checkpoint", RepoKind::Images),
        HubModel::TextEncoder => ("text.encoder", RepoKind::Text),
        HubModel::Captioner => ("caption.checkpoint", RepoKind::Captions),
    };
    let HubName { repo, revision } = name.map_err(|what| ConfigError(vec![Problem { key: key.to_owned(), what }]))?;
    Ok(Some(Repo { name: repo, revision, kind }))
}

/// Refuses a checkpoint whose directory does not exist, if its name could be one of the hub.
///
/// # Errors
/// Names the key and the spelling for the hub.
pub(crate) fn require_checkpoint(key: &str, name: &str, dir: &Path) -> Result<(), PipelineError> {
    let on_hub = format!("hf:{name}");
    if dir.is_dir() || HubName::parse(name).is_some() || !matches!(HubName::parse(&on_hub), Some(Ok(_))) {
        return Ok(());
    }
    Err(PipelineError::Model(format!(
        "`{key}`: there is no directory `{name}`; if that is the name of a checkpoint on the Hugging Face hub, write `{on_hub}`"
    )))
}

fn configured_repo(config: &RunConfig, model: HubModel) -> Result<Option<Repo>, PipelineError> {
    let name = match model {
        HubModel::Backbone => config.model().map(|model| &model.checkpoint),
        HubModel::TextEncoder => config.text().filter(|text| !text.is_paired()).map(|text| &text.encoder),
        HubModel::Captioner => config.caption().map(|caption| &caption.checkpoint),
    };
    let Some(mut repo) = name.map_or(Ok(None), |name| parse_repo(name, model))? else { return Ok(None) };
    if model == HubModel::Backbone && config.text().is_some_and(TextConfig::is_paired) {
        repo.kind = RepoKind::Paired;
    }
    Ok(Some(repo))
}

/// Downloads the files that the cache lacks and returns the checkpoint's directory; `None` if the configuration names a
/// directory.
///
/// # Errors
/// When a file cannot be downloaded; or when the run has to stop, after which another call resumes.
pub(crate) async fn download(
    config: &RunConfig,
    model: HubModel,
    store: &Store,
    progress: &ProgressRegistry,
    shutdown: &Shutdown,
) -> Result<Option<PathBuf>, PipelineError> {
    let Some(repo) = configured_repo(config, model)? else { return Ok(None) };
    // The stage appears only if there is something to download.
    let stage_progress: OnceLock<Arc<StageProgress>> = OnceLock::new();
    let on_step = |step| {
        let stage_progress = stage_progress.get_or_init(|| progress.stage("download", "bytes", 0));
        match step {
            Download::Total(bytes) => stage_progress.set_total(bytes),
            Download::Resumed(bytes) => stage_progress.add_resumed(bytes),
            Download::Received(bytes) => stage_progress.add(bytes),
        }
    };
    let hub = Hub::new(store);
    let fetched = tokio::select! {
        fetched = hub.fetch(&repo, &on_step) => fetched?,
        () = shutdown.raised() => return Err(stopped(shutdown)),
    };
    if let Some(stage_progress) = stage_progress.get() {
        stage_progress.finish();
    }
    Ok(Some(fetched))
}

/// Finds the checkpoint's directory in the cache; `None` if the configuration names a directory.
///
/// # Errors
/// When the cache lacks a file.
pub(crate) fn find_cached(
    config: &RunConfig,
    model: HubModel,
    store: &Store,
) -> Result<Option<PathBuf>, PipelineError> {
    Ok(configured_repo(config, model)?.map(|repo| Hub::new(store).cached(&repo)).transpose()?)
}

/// Looks for the checkpoint without a download. Returns its directory, or the files that the cache lacks; `None` if the
/// configuration names a directory.
///
/// # Errors
/// When the hub has no such checkpoint or cannot be reached.
pub(crate) async fn look_up(
    config: &RunConfig,
    model: HubModel,
    store: &Store,
) -> Result<Option<Result<PathBuf, Missing>>, PipelineError> {
    let Some(repo) = configured_repo(config, model)? else { return Ok(None) };
    Ok(Some(Hub::new(store).find_missing(&repo).await?))
}
