//! The submission file and its scores.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;

use crate::catalog::url_hash;
use crate::objects::{Store, StoreError};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::error::chain;
use crate::pipeline::observe::report::ScoreReport;
use crate::pipeline::predict::questions::Questions;
use crate::pipeline::predict::ranking::Ranking;
use crate::pipeline::predict::test_set::{IdSource, TestSet, read_truth_bytes, visit_ids};
use crate::predict::bootstrap::{Interval, ScoreIntervals};
use crate::predict::evaluate::{LanguageScores, evaluate};
use crate::predict::metrics::{self, MeanScores, Tally};
use crate::predict::submission::{SubmissionError, SubmissionWriter};

/// Rankings to write.
pub(super) struct Submission<'a> {
    /// Origin of the ids, whose order the submission follows.
    pub(super) ids: &'a IdSource,
    /// File name in the run directory.
    pub(super) output: &'a str,
    pub(super) test_set: &'a TestSet,
    pub(super) ranking: &'a Ranking,
    /// Captions for ids without a ranking.
    pub(super) fallback: &'a [u32],
}

impl Submission<'_> {
    /// Writes the file and returns the number of ids with the fallback. `caption` returns the text of a caption.
    ///
    /// # Errors
    /// When the ids cannot be read again, or the file cannot be written.
    pub(super) async fn write<'c>(
        &self,
        ctx: &RunContext,
        caption: impl Fn(u32) -> &'c str,
    ) -> Result<u64, PipelineError> {
        let path = ctx.dir.temporary(self.output)?;
        let file = File::create(&path).map_err(|error| StoreError::io(&path, "created", error))?;
        let failed = |error: SubmissionError| match error {
            SubmissionError::Write { source, .. } => PipelineError::from(StoreError::io(&path, "written", source)),
        };
        let mut writer = SubmissionWriter::new(BufWriter::new(file)).map_err(failed)?;
        let mut with_fallback = 0;
        visit_ids(&ctx.store, self.ids, |id| {
            let image = self.test_set.urls.position(url_hash(id.image_url));
            let ranked = image.and_then(|image| self.ranking.captions(image));
            with_fallback += u64::from(ranked.is_none());
            let texts = ranked.unwrap_or(self.fallback).iter().map(|number| caption(*number));
            writer.write(id.id, texts).map_err(failed)
        })
        .await?;
        writer.finish().map_err(failed)?;
        ctx.dir.publish(self.output)?;
        Ok(with_fallback)
    }
}

/// Returns the classes with the most images, from the number of images of each class. Ties go to the lower number.
pub(super) fn most_frequent(images: &[u32], k: usize) -> Vec<u32> {
    let mut classes: Vec<u32> = (0..images.len() as u32).collect();
    let order = |class: &u32| (std::cmp::Reverse(images[*class as usize]), *class);
    if (1..classes.len()).contains(&k) {
        classes.select_nth_unstable_by_key(k - 1, order);
    }
    classes.truncate(k);
    classes.sort_unstable_by_key(order);
    classes
}

/// Scores the submission in the run directory against the truth. `ranking` comes with the number of ranked captions. Also
/// returns a remark for the report if ids of the truth were not ranked.
///
/// # Errors
/// When the truth or the submission cannot be read.
pub(super) async fn score(
    ctx: &RunContext,
    (truth, questions): (&str, &Questions),
    output: &str,
    test_set: &TestSet,
    (ranking, captions): (&Ranking, u64),
) -> Result<(ScoreReport, Option<String>), PipelineError> {
    let submission = ctx.dir.fetch(output)?;
    let submission = File::open(&submission).map_err(|error| StoreError::io(&submission, "opened", error))?;
    let truth_rows = read_truth_bytes(&ctx.store, truth).await?;
    let refused = |error| PipelineError::Input(format!("`{}`: {}", Store::redact(truth), chain(&error)));
    let scores = evaluate(submission, &*truth_rows, Some(&questions.image_of)).map_err(refused)?;
    let remark = (scores.missing_ids > 0).then(|| {
        format!(
            "{} of the {} ids of `{}` are not among the ranked ids and count 0 in the score",
            scores.missing_ids,
            scores.ids,
            Store::redact(truth)
        )
    });
    let (mean_rank, rank_interval) = mean_rank(questions, ranking, captions);
    let with_rank = |intervals: ScoreIntervals| ScoreIntervals { mean_rank: rank_interval, ..intervals };
    let report = ScoreReport {
        ndcg5: scores.means.ndcg5,
        ndcg5_ceiling: metrics::ceiling(test_set.ids_per_image.iter().copied()),
        ndcg5_chance: metrics::chance(captions),
        recall1: scores.means.recall1,
        recall5: scores.means.recall5,
        mrr: scores.means.mrr,
        mean_rank,
        intervals: scores.means.intervals.map(with_rank),
        ids: scores.ids,
        by_language: scores.by_language.into_iter().map(without_rank).collect(),
    };
    Ok((report, remark))
}

/// Computes the mean over ids of the best rank of a right caption among all captions, and its interval. An id without one
/// counts as the last rank.
fn mean_rank(questions: &Questions, ranking: &Ranking, captions: u64) -> (Option<f64>, Option<Interval>) {
    let place_of = |query: &usize| ranking.places.get(*query).copied().flatten();
    let mut images: BTreeMap<usize, Tally> = BTreeMap::new();
    let numbers: Vec<usize> = (0..questions.queries.len()).collect();
    for of_id in numbers.chunk_by(|one, other| questions.ids[*one] == questions.ids[*other]) {
        let best = of_id.iter().filter_map(place_of).map(|place| u64::from(place.all)).min();
        let tally = images.entry(questions.queries[of_id[0]].image).or_default();
        tally.add(None);
        tally.add_place(best.unwrap_or(captions));
    }
    let images: Vec<Tally> = images.into_values().collect();
    let means = MeanScores::from_images(&images);
    (means.mean_rank, means.intervals.and_then(|intervals| intervals.mean_rank))
}

/// Removes the mean rank, which a file knows for its own rows alone.
fn without_rank(scores: LanguageScores) -> LanguageScores {
    let intervals = scores.means.intervals.map(|intervals| ScoreIntervals { mean_rank: None, ..intervals });
    LanguageScores { means: MeanScores { mean_rank: None, intervals, ..scores.means }, ..scores }
}
