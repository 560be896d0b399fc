//! The checkpoints of a run: what they are called, which are whole, which head predicts.
//!
//! `checkpoints/step-N` is that of the only head, or of the first of a sweep; the others of a sweep have folders
//! `step-N-trial-K` beside it, which are there before it.

use super::PipelineError;
use super::curve::Curve;
use super::report::ValidationPoint;
use super::worker::damaged;
use crate::config::value::Pick;
use crate::objects::StoreError;
use crate::run_dir::{Directory, LocalCopy};
use crate::train::text::TextHead;
use crate::train::{HeadState, checkpoint};

/// Folder of the checkpoints.
pub(super) const FOLDER: &str = "checkpoints";

/// The curve so far; points behind the checkpoint that a run resumes from are dropped.
pub(super) const CURVE: &str = "training.csv";

/// The folder of a head at a step, relative to the run directory.
pub(super) fn name(step: u64, trial: usize) -> String {
    match trial {
        0 => format!("{FOLDER}/step-{step}"),
        _ => format!("{FOLDER}/step-{step}-trial-{trial}"),
    }
}

/// The complete folders of checkpoints.
pub(super) struct Found(std::collections::BTreeSet<String>);

impl Found {
    /// Looks into the run directory.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn list(directory: &Directory) -> Result<Self, PipelineError> {
        let files = directory.list_recursive(FOLDER)?;
        // On S3 the files of a checkpoint come and go one by one: it is there when all of them are.
        let whole =
            |folder: &&str| checkpoint::FILES.iter().all(|file| files.contains_key(&format!("{folder}/{file}")));
        let folders = files.keys().filter_map(|file| Some(file.rsplit_once('/')?.0));
        Ok(Self(folders.filter(whole).map(ToOwned::to_owned).collect()))
    }

    /// Whether a head's checkpoint is there.
    pub(super) fn has(&self, step: u64, trial: usize) -> bool {
        self.0.contains(&name(step, trial))
    }

    /// The steps of which something is there, ascending.
    pub(super) fn steps(&self) -> Vec<u64> {
        let prefix = format!("{FOLDER}/step-");
        let number = |folder: &String| folder.strip_prefix(&prefix)?.split('-').next()?.parse().ok();
        let mut steps: Vec<u64> = self.0.iter().filter_map(number).collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    /// The newest step that all heads of a sweep have.
    pub(super) fn newest(&self, trials: usize) -> Option<u64> {
        self.steps().into_iter().rev().find(|step| (0..trials).all(|trial| self.has(*step, trial)))
    }
}

/// A checkpoint on local disk.
///
/// # Errors
/// When it cannot be brought there.
pub(super) fn fetch(
    directory: &Directory,
    (step, trial): (u64, usize),
    files: &[&str],
) -> Result<LocalCopy, StoreError> {
    directory.fetch_folder(&name(step, trial), files)
}

/// The curve up to a step.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read_curve(directory: &Directory, up_to_step: u64) -> Result<Curve, PipelineError> {
    Ok(directory.read(CURVE)?.map(|content| Curve::read(&content, up_to_step)).unwrap_or_default())
}

/// The best of the points by NDCG@5.
pub(super) fn best(points: &[ValidationPoint]) -> Option<&ValidationPoint> {
    // The first of equals, so that the choice does not depend on what came later.
    points.iter().rev().max_by(|one, other| one.ndcg5.total_cmp(&other.ndcg5))
}

/// The checkpoint that predicts.
pub(super) struct Picked {
    pub(super) step: u64,
    /// Its number within the sweep.
    pub(super) trial: u32,
    /// Its files, but for the optimiser's.
    pub(super) copy: LocalCopy,
}

impl Picked {
    /// Its head of classes.
    ///
    /// # Errors
    /// When it is not what was saved, or another kind of head.
    pub(super) fn head(&self) -> Result<HeadState, PipelineError> {
        checkpoint::load_head(&self.copy).map_err(damaged)
    }

    /// Its map into the space of captions' vectors.
    ///
    /// # Errors
    /// When it is not what was saved, or another kind of head.
    pub(super) fn text_head(&self) -> Result<TextHead, PipelineError> {
        checkpoint::load_text_head(&self.copy).map_err(damaged)
    }
}

/// The checkpoint that predicts; `None` where the run has none.
///
/// # Errors
/// When it cannot be fetched.
pub(super) fn pick(directory: &Directory, pick: Pick) -> Result<Option<Picked>, PipelineError> {
    let found = Found::list(directory)?;
    let curve = read_curve(directory, u64::MAX)?;
    let best = best(&curve.validations).map(|point| (point.step, point.trial as usize));
    let winner = best.map_or(0, |(_, trial)| trial);
    let newest =
        found.steps().into_iter().rev().map(|step| (step, winner)).find(|(step, trial)| found.has(*step, *trial));
    let best = best.filter(|(step, trial)| pick == Pick::Best && found.has(*step, *trial));
    let Some((step, trial)) = best.or(newest) else { return Ok(None) };
    let copy = fetch(directory, (step, trial), &[checkpoint::HEAD_FILE, checkpoint::STATE_FILE])?;
    Ok(Some(Picked { step, trial: trial as u32, copy }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Found {
        Found(names.iter().map(|name| format!("{FOLDER}/{name}")).collect())
    }

    #[test]
    fn a_sweep_goes_on_from_the_newest_step_that_all_heads_have() {
        let some = found(&["step-9", "step-9-trial-1", "step-20", "step-30-trial-1"]);
        assert_eq!((some.steps(), some.newest(1), some.newest(2)), (vec![9, 20, 30], Some(20), Some(9)));
        assert!(some.has(30, 1) && !some.has(30, 0) && !some.has(9, 2));
        assert_eq!(found(&[]).newest(1), None);
    }
}
