//! Ensembles: the weights of their members, and the file that names both.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checkpoints::FOLDER;
use super::held_out::HeldOut;
use crate::pipeline::device::{DeviceWorker, model_error};
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::{EnsembleReport, MemberReport};
use crate::run_dir::Directory;
use crate::train::closed_form::{Answers, Candidate};
use crate::train::text::{Ensemble, MemberSpec, TextHead, WeightSearch};
use crate::types::{MemberWeights, Pick};

/// Name of the file in the folder of the checkpoints.
const FILE: &str = "ensemble.json";
/// The ensemble of a finished training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EnsembleFile {
    /// At the step with the best score on held-out images.
    pub(crate) best: EnsembleReport,
    /// At the last step.
    pub(crate) last: EnsembleReport,
}

/// Returns the path of the file in a run directory.
pub(crate) fn file_name() -> String {
    format!("{FOLDER}/{FILE}")
}

impl EnsembleFile {
    /// Reads the file; `None` without an ensemble, or before its training is finished.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(crate) fn read(dir: &Directory) -> Result<Option<Self>, PipelineError> {
        let Some(content) = dir.read(&file_name())? else { return Ok(None) };
        serde_json::from_slice(&content).map(Some).map_err(|error| {
            let path = dir.display(&file_name());
            PipelineError::Input(format!("`{path}` is damaged ({error}): train again with --from train"))
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the run directory cannot be written.
    pub(crate) fn write(&self, dir: &Directory) -> Result<(), PipelineError> {
        let mut content =
            serde_json::to_vec_pretty(self).map_err(|error| PipelineError::Internal(error.to_string()))?;
        content.push(b'\n');
        Ok(dir.write(&file_name(), &content)?)
    }

    /// Returns the ensemble that a prediction takes.
    pub(crate) fn pick(&self, pick: Pick) -> &EnsembleReport {
        match pick {
            Pick::Best => &self.best,
            Pick::Last => &self.last,
        }
    }
}

/// Heads of an ensemble at one step.
pub(crate) struct Members {
    pub(crate) step: u64,
    pub(crate) heads: Vec<TextHead>,
    /// Settings of heads in closed form.
    pub(crate) chosen: Vec<Candidate>,
}

/// Images that weights are chosen on.
pub(crate) struct WeightData {
    pub(crate) held_out: Arc<HeldOut>,
    pub(crate) answers: Arc<Answers>,
}

/// Scores heads on held-out images, each alone and all together, and chooses their weights.
///
/// # Errors
/// When the device fails, or the heads do not belong together.
pub(crate) async fn combine(
    device: &Arc<DeviceWorker>,
    data: &WeightData,
    members: Members,
    specs: &[MemberSpec],
    kind: MemberWeights,
) -> Result<EnsembleReport, PipelineError> {
    let mut projected = Vec::with_capacity(members.heads.len());
    for head in &members.heads {
        let projector = device.load_projector(&Arc::new(Ensemble::from(head.clone()))).await?;
        projected.push(projector.project(data.held_out.features.clone(), data.held_out.images()).await?);
        projector.unload().await?;
    }
    let (held_out, answers, specs) = (Arc::clone(&data.held_out), Arc::clone(&data.answers), specs.to_vec());
    let choose = move || {
        let Members { step, heads, chosen } = members;
        let search = WeightSearch { heads: &heads, images: &projected, captions: &held_out.vectors, answers: &answers };
        let scored = !answers.is_empty();
        let equal = vec![1.0; heads.len()];
        let (weights, ndcg5) = match kind {
            _ if !scored => (equal, None),
            MemberWeights::Equal => {
                let score = search.score(&equal).map_err(model_error)?;
                (equal, Some(score))
            }
            MemberWeights::HeldOut => {
                let (weights, score) = search.climb(equal).map_err(model_error)?;
                (weights, Some(score))
            }
        };
        let sum: f64 = weights.iter().sum();
        let member = |(number, spec): (usize, &MemberSpec)| {
            let mut alone = vec![0.0; heads.len()];
            alone[number] = 1.0;
            let ndcg5 = if scored { Some(search.score(&alone).map_err(model_error)?) } else { None };
            let (weight, chosen) = (weights[number] / sum, chosen.get(number).cloned());
            Ok(MemberReport { layer: spec.layer, seed: spec.seed, weight, ndcg5, closed_form: chosen })
        };
        let members = specs.iter().enumerate().map(member).collect::<Result<_, PipelineError>>()?;
        Ok(EnsembleReport { step, weights: kind, ndcg5, members })
    };
    tokio::task::spawn_blocking(choose).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_round_trips_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::objects::Store::default();
        let own = Directory::open(&store, dir.path().to_str().unwrap(), &dir.path().join("scratch")).unwrap();
        assert_eq!(EnsembleFile::read(&own).unwrap(), None);
        let member = MemberReport { layer: Some(7), seed: 3, weight: 0.5, ..MemberReport::default() };
        let best = EnsembleReport { step: 4, members: vec![member.clone(), member], ..EnsembleReport::default() };
        let file = EnsembleFile { last: EnsembleReport { step: 9, ..best.clone() }, best };
        file.write(&own).unwrap();
        assert_eq!(EnsembleFile::read(&own).unwrap(), Some(file.clone()));
        assert_eq!((file.pick(Pick::Best).step, file.pick(Pick::Last).step), (4, 9));
        own.write(&file_name(), b"{").unwrap();
        assert!(EnsembleFile::read(&own).unwrap_err().to_string().contains("ensemble.json` is damaged"));
    }
}
