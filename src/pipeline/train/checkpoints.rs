//! Checkpoints of a run: folder names, complete checkpoints, and the choice of the checkpoint for prediction.
//!
//! The only head, or the first of a sweep, has the folder `checkpoints/step-N`. The other heads of a sweep have folders
//! `step-N-trial-K` next to it, which are completed first.

use std::collections::BTreeSet;
use std::path::Path;

use super::curve::Curve;
use super::ensemble::EnsembleFile;
use crate::objects::StoreError;
use crate::pipeline::device::damaged;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::ValidationPoint;
use crate::run_dir::{Directory, LocalCopy};
use crate::train::text::{Ensemble, TextHead};
use crate::train::{HeadState, checkpoint};
use crate::types::Pick;

/// Files of a checkpoint without those of the optimiser.
pub(super) const HEAD_FILES: [&str; 2] = [checkpoint::HEAD_FILE, checkpoint::STATE_FILE];

/// Folder of the checkpoints.
pub(super) const FOLDER: &str = "checkpoints";

/// Training curve so far. A resumed run drops the points after its checkpoint.
pub(super) const CURVE_FILE: &str = "training.csv";

/// Returns the name of a head's checkpoint folder, relative to the run directory.
pub(super) fn folder_name(step: u64, trial: usize) -> String {
    match trial {
        0 => format!("{FOLDER}/step-{step}"),
        _ => format!("{FOLDER}/step-{step}-trial-{trial}"),
    }
}

/// Complete checkpoint folders of a run directory.
pub(super) struct CheckpointList(BTreeSet<String>);

impl CheckpointList {
    /// Lists the complete checkpoints.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn read(dir: &Directory) -> Result<Self, PipelineError> {
        let files = dir.list_recursive(FOLDER)?;
        // On S3, the files of a checkpoint appear and disappear one by one.
        let is_complete =
            |folder: &&str| checkpoint::FILES.iter().all(|file| files.contains_key(&format!("{folder}/{file}")));
        let folders = files.keys().filter_map(|file| Some(file.rsplit_once('/')?.0));
        Ok(Self(folders.filter(is_complete).map(ToOwned::to_owned).collect()))
    }

    /// Returns whether a head has a checkpoint at a step.
    pub(super) fn contains(&self, step: u64, trial: usize) -> bool {
        self.0.contains(&folder_name(step, trial))
    }

    /// Returns whether a head has a checkpoint at any step.
    fn has_head(&self, trial: usize) -> bool {
        self.steps().into_iter().any(|step| self.contains(step, trial))
    }

    /// Returns the steps at which any head has a checkpoint, ascending.
    pub(super) fn steps(&self) -> Vec<u64> {
        let prefix = format!("{FOLDER}/step-");
        let number = |folder: &String| folder.strip_prefix(&prefix)?.split('-').next()?.parse().ok();
        let mut steps: Vec<u64> = self.0.iter().filter_map(number).collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    /// Returns the newest step at which all heads of a sweep have checkpoints.
    pub(super) fn newest_complete(&self, trials: usize) -> Option<u64> {
        self.steps().into_iter().rev().find(|step| (0..trials).all(|trial| self.contains(*step, trial)))
    }
}

/// Fetches files of a checkpoint to local disk.
///
/// # Errors
/// When a file cannot be fetched.
pub(super) fn fetch(dir: &Directory, (step, trial): (u64, usize), files: &[&str]) -> Result<LocalCopy, StoreError> {
    dir.fetch_folder(&folder_name(step, trial), files)
}

/// Reads the training curve up to a step. It names the best checkpoint, so it is required once there are checkpoints:
/// each is saved after the curve.
///
/// # Errors
/// When the file cannot be read, or is missing beside checkpoints.
pub(super) fn read_curve(dir: &Directory, saved: &CheckpointList, up_to_step: u64) -> Result<Curve, PipelineError> {
    let refused = |what: &str| {
        let path = dir.display(CURVE_FILE);
        PipelineError::Input(format!(
            "`{path}` {what}, so the best checkpoint in `{}` is unknown; nothing was removed: put the file back, or train again \
             with --from train",
            dir.display(FOLDER)
        ))
    };
    match dir.read(CURVE_FILE)? {
        Some(content) => Curve::from_csv(&content, up_to_step)
            .map_err(|error| refused(&format!("is not a training curve ({error})"))),
        None if saved.0.is_empty() => Ok(Curve::default()),
        None => Err(refused("is missing")),
    }
}

/// Refuses a curve without the best validation that a checkpoint was saved with.
///
/// # Errors
/// When the file was cut or exchanged.
pub(super) fn require_best(
    dir: &Directory,
    selection: Selection,
    curve: &Curve,
    saved: Option<f64>,
) -> Result<(), PipelineError> {
    let found = selection.best_score(&curve.validations);
    let Some(saved) = saved.filter(|saved| found.is_none_or(|found| found.to_bits() != saved.to_bits())) else {
        return Ok(());
    };
    Err(PipelineError::Input(format!(
        "`{}` lacks the validation with NDCG@5 {saved:.4}, which the newest checkpoint in `{}` was saved with; nothing was \
         removed: put the file back, or train again with --from train",
        dir.display(CURVE_FILE),
        dir.display(FOLDER)
    )))
}

/// Returns the point with the highest NDCG@5. Ties go to the first point, so that later points never change the choice.
pub(super) fn best_point(points: &[ValidationPoint]) -> Option<&ValidationPoint> {
    points.iter().rev().max_by(|one, other| one.ndcg5.total_cmp(&other.ndcg5))
}

/// Choice of the best checkpoint: one head by its NDCG@5, or all heads of an ensemble by its NDCG@5 averaged over languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selection {
    /// Number of heads of an ensemble, which is the `trial` of its points.
    ensemble: Option<u32>,
}

impl Selection {
    /// Creates the choice for an ensemble of a number of heads, or for heads that rank alone.
    pub(super) fn new(ensemble: Option<u32>) -> Self {
        Self { ensemble }
    }

    /// Returns the best point.
    pub(super) fn best(self, points: &[ValidationPoint]) -> Option<&ValidationPoint> {
        let Some(heads) = self.ensemble else { return best_point(points) };
        let score = |point: &ValidationPoint| point.ndcg5_languages.unwrap_or_default();
        let own = points.iter().rev().filter(|point| point.trial == heads);
        own.max_by(|one, other| score(one).total_cmp(&score(other)))
    }

    /// Returns the score of the best point.
    pub(super) fn best_score(self, points: &[ValidationPoint]) -> Option<f64> {
        let best = self.best(points)?;
        if self.ensemble.is_some() { best.ndcg5_languages } else { Some(best.ndcg5) }
    }

    /// Returns step and number of the heads whose checkpoints make the best point.
    pub(super) fn best_heads(self, points: &[ValidationPoint]) -> Vec<(u64, usize)> {
        let Some(best) = self.best(points) else { return Vec::new() };
        match self.ensemble {
            Some(heads) => (0..heads as usize).map(|trial| (best.step, trial)).collect(),
            None => vec![(best.step, best.trial as usize)],
        }
    }
}

/// Checkpoint that was picked for prediction.
pub(crate) struct PickedCheckpoint {
    pub(crate) step: u64,
    /// Number of the head in its sweep.
    pub(crate) trial: u32,
    /// Folders with the files of the checkpoint, except those of the optimiser, and the weight of each head.
    copies: Vec<(LocalCopy, f64)>,
}

impl PickedCheckpoint {
    /// Loads a classifier.
    ///
    /// # Errors
    /// When the files are damaged, or hold another kind of head.
    pub(crate) fn load_classifier(&self) -> Result<HeadState, PipelineError> {
        match self.copies.as_slice() {
            [(copy, _)] => checkpoint::load_head(copy).map_err(damaged),
            _ => Err(PipelineError::Internal("an ensemble is no classifier".to_owned())),
        }
    }

    /// Loads a projection head, or the heads of an ensemble.
    ///
    /// # Errors
    /// As [`PickedCheckpoint::load_classifier`].
    pub(crate) fn load_projection(&self) -> Result<Ensemble, PipelineError> {
        let load = |(copy, weight): &(LocalCopy, f64)| Ok((load_text_head(copy)?, *weight));
        let heads = self.copies.iter().map(load).collect::<Result<_, PipelineError>>()?;
        Ensemble::new(heads).map_err(damaged)
    }
}

/// Picks the checkpoint for prediction; `None` if the run has none.
///
/// # Errors
/// When the checkpoints cannot be listed or fetched.
pub(crate) fn pick(dir: &Directory, pick: Pick) -> Result<Option<PickedCheckpoint>, PipelineError> {
    let fetch = |step, trial| fetch(dir, (step, trial), &HEAD_FILES);
    if let Some(file) = EnsembleFile::read(dir)? {
        let own = file.pick(pick);
        let used = own.members.iter().enumerate().filter(|(_, member)| member.weight > 0.0);
        let copies = used.map(|(trial, member)| Ok((fetch(own.step, trial)?, member.weight)));
        let copies = copies.collect::<Result<_, PipelineError>>()?;
        return Ok(Some(PickedCheckpoint { step: own.step, trial: 0, copies }));
    }
    let Some((step, trial)) = choose(dir, pick)? else { return Ok(None) };
    let copies = vec![(fetch(step, trial)?, 1.0)];
    Ok(Some(PickedCheckpoint { step, trial: trial as u32, copies }))
}

/// Loads a projection head from the folder of a checkpoint.
///
/// # Errors
/// When the files are damaged, or hold another kind of head.
pub(super) fn load_text_head(dir: &Path) -> Result<TextHead, PipelineError> {
    checkpoint::load_text_head(dir).map_err(damaged)
}

/// Returns step and trial of the checkpoint that [`pick`] picks; of an ensemble the step and 0.
///
/// # Errors
/// When the checkpoints cannot be listed.
pub(crate) fn choose(dir: &Directory, pick: Pick) -> Result<Option<(u64, usize)>, PipelineError> {
    if let Some(file) = EnsembleFile::read(dir)? {
        return Ok(Some((file.pick(pick).step, 0)));
    }
    let saved = CheckpointList::read(dir)?;
    let mut curve = read_curve(dir, &saved, u64::MAX)?;
    // The scores of an ensemble in training are of no single head.
    curve.validations.retain(|point| saved.has_head(point.trial as usize));
    let best = best_point(&curve.validations).map(|point| (point.step, point.trial as usize));
    let winner = best.map_or(0, |(_, trial)| trial);
    let newest = saved.steps().into_iter().rev().find(|step| saved.contains(*step, winner)).map(|step| (step, winner));
    let best = best.filter(|(step, trial)| pick == Pick::Best && saved.contains(*step, *trial));
    Ok(best.or(newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> CheckpointList {
        CheckpointList(names.iter().map(|name| format!("{FOLDER}/{name}")).collect())
    }

    #[test]
    fn best_of_an_ensemble_is_by_its_own_points_and_all_heads() {
        let point = |step, trial, ndcg5, languages| ValidationPoint {
            step,
            trial,
            ndcg5,
            ndcg5_languages: Some(languages),
            ..ValidationPoint::default()
        };
        let points = [point(5, 0, 0.9, 0.9), point(5, 2, 0.4, 0.6), point(9, 2, 0.5, 0.5), point(12, 2, 0.3, 0.6)];
        let selection = Selection::new(Some(2));
        assert_eq!(selection.best_heads(&points), [(5, 0), (5, 1)]);
        assert_eq!(selection.best_score(&points), Some(0.6));
        assert_eq!(Selection::new(None).best_heads(&points), [(5, 0)]);
        assert_eq!(Selection::new(None).best_score(&points), Some(0.9));
        assert_eq!(selection.best_heads(&points[..1]), []);
    }

    #[test]
    fn sweep_resumes_from_newest_complete_step() {
        let some = list(&["step-9", "step-9-trial-1", "step-20", "step-30-trial-1"]);
        let newest = (some.newest_complete(1), some.newest_complete(2));
        assert_eq!((some.steps(), newest), (vec![9, 20, 30], (Some(20), Some(9))));
        assert!(some.contains(30, 1) && !some.contains(30, 0) && !some.contains(9, 2));
        assert_eq!(list(&[]).newest_complete(1), None);
    }
}
