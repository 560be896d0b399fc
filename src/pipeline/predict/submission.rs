//! The submission file and its scores.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufWriter;

use crate::catalog::url_hash;
use crate::objects::{Store, StoreError};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::error::chain;
use crate::pipeline::observe::report::ScoreReport;
use crate::pipeline::predict::Ranker;
use crate::pipeline::predict::ranking::Ranking;
use crate::pipeline::predict::test_set::{IdSource, TestSet, read_truth_bytes, read_truth_rows, visit_ids};
use crate::predict::evaluate::evaluate;
use crate::predict::metrics;
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

/// Looks for a right caption of the truth among the ranked captions, and for one of its ids among the test ids. The inner
/// error says why there is no score.
///
/// # Errors
/// When the truth or the ids cannot be read.
pub(super) async fn find_right_captions(
    ctx: &RunContext,
    truth: &str,
    ids: &IdSource,
    ranker: &impl Ranker,
) -> Result<Result<(), String>, PipelineError> {
    let rows = read_truth_rows(&ctx.store, truth).await?;
    let captions: HashSet<&str> = rows.iter().map(|row| &*row.caption).collect();
    let shown = Store::redact(truth);
    if !ranker.ranks_any_of(&captions)? {
        return Ok(Err(format!(
            "no score: the {} ranked captions hold none of the right captions of `{shown}` (`predict.truth`)",
            ranker.captions()
        )));
    }
    let known: HashSet<&str> = rows.iter().map(|row| &*row.id).collect();
    let mut found = false;
    visit_ids(&ctx.store, ids, |id| {
        found |= known.contains(id.id);
        Ok(())
    })
    .await?;
    if found {
        return Ok(Ok(()));
    }
    Ok(Err(format!("no score: `{shown}` (`predict.truth`) has no id of {}", ids.name())))
}

/// Scores the submission in the run directory against the truth. `captions` is the number of ranked captions.
///
/// # Errors
/// When the truth or the submission cannot be read.
pub(super) async fn score(
    ctx: &RunContext,
    truth: &str,
    output: &str,
    test_set: &TestSet,
    captions: u64,
) -> Result<ScoreReport, PipelineError> {
    let submission = ctx.dir.fetch(output)?;
    let submission = File::open(&submission).map_err(|error| StoreError::io(&submission, "opened", error))?;
    let truth_rows = read_truth_bytes(&ctx.store, truth).await?;
    let refused = |error| PipelineError::Input(format!("`{}`: {}", Store::redact(truth), chain(&error)));
    let scores = evaluate(submission, &*truth_rows).map_err(refused)?;
    Ok(ScoreReport {
        ndcg5: scores.ndcg5,
        ndcg5_ceiling: metrics::ceiling(test_set.ids_per_image.iter().copied()),
        ndcg5_chance: metrics::chance(captions),
        recall1: scores.recall1,
        recall5: scores.recall5,
        mrr: scores.mrr,
        ids: scores.ids,
    })
}
