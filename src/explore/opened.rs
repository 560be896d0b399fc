//! Configuration and head of a run.

use std::sync::Arc;

use crate::config::{HeadConfig, MachineFile, PipelineFile, RunConfig};
use crate::objects::Store;
use crate::pipeline::PipelineError;
use crate::pipeline::manifest::RunFile;
use crate::pipeline::train::checkpoints;
use crate::run_dir::Directory;
use crate::train::HeadState;
use crate::train::text::Ensemble;
use crate::types::Pick;

/// A run directory with its configuration and head.
pub(super) struct OpenRun {
    pub(super) dir: Directory,
    pub(super) store: Store,
    pub(super) config: Arc<RunConfig>,
    pub(super) head: Head,
    /// Update of the head's checkpoint; `None` for a paired head.
    pub(super) step: Option<u64>,
}

/// Head that compares images with captions.
pub(super) enum Head {
    /// Linear classifier: a caption is a class.
    Classes(Arc<HeadState>),
    /// Projection of a feature into the space of caption vectors.
    Projection(Arc<Ensemble>),
    /// Features are in the space of caption vectors already.
    Paired,
}

/// Returns a name for the state of a run directory. It changes when the run ends, and when its first checkpoint appears.
///
/// # Errors
/// When the directory cannot be read.
pub(super) fn stamp(dir: &Directory) -> Result<String, PipelineError> {
    let files = dir.read_all(&["run.toml".to_owned(), "report.json".to_owned()])?;
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        hasher.update(file.as_deref().unwrap_or_default()).update(b"\0");
    }
    let has_checkpoint = !dir.list("checkpoints")?.is_empty();
    Ok(format!("{} {has_checkpoint}", hasher.finalize().to_hex()))
}

impl OpenRun {
    /// Reads the configuration and the head of a run. Blocks the thread.
    ///
    /// # Errors
    /// When the run has no head, or a file is damaged.
    pub(super) fn open(dir: Directory, store: Store) -> Result<Self, PipelineError> {
        let absent =
            || PipelineError::Input(format!("`{}` has no configuration yet: the run has not started", dir.display("")));
        let file = RunFile::read(&dir)?.ok_or_else(absent)?;
        let config = RunConfig::check(PipelineFile::from(file.config), &MachineFile::default())?;
        if config.model().is_none() {
            return Err(PipelineError::Input(
                "the run has no model: its product are pixels, so there are no captions to rank".to_owned(),
            ));
        }
        let kind = config.head().clone();
        let pick = config.predict().map_or(Pick::Best, |predict| predict.checkpoint);
        let picked = match kind {
            HeadConfig::Paired { .. } => None,
            HeadConfig::Classes | HeadConfig::Text { .. } => checkpoints::pick(&dir, pick)?,
        };
        let step = picked.as_ref().map(|picked| picked.step);
        let head = match (&kind, picked) {
            (HeadConfig::Paired { .. }, _) => Head::Paired,
            (HeadConfig::Classes, Some(picked)) => Head::Classes(Arc::new(picked.load_classifier()?)),
            (HeadConfig::Text { .. }, Some(picked)) => Head::Projection(Arc::new(picked.load_projection()?)),
            (_, None) => {
                return Err(PipelineError::Input(
                    "the run has no trained head yet: look again after the first checkpoint of stage `train`"
                        .to_owned(),
                ));
            }
        };
        Ok(Self { dir, store, config: Arc::new(config), head, step })
    }

    /// Returns the name of the head's kind.
    pub(super) fn kind(&self) -> &'static str {
        match self.head {
            Head::Classes(_) => "classes",
            Head::Projection(_) => "text",
            Head::Paired => "paired",
        }
    }
}
