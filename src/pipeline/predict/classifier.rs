//! Prediction by a classifier: the classes of the run, ranked by their logits.

use crate::chunk::features::Features;
use crate::pipeline::catalog::{self, Caption};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::StageRemarks;
use crate::pipeline::predict::ranking::{QueryEncoder, RankJob};
use crate::pipeline::predict::submission::most_frequent;
use crate::pipeline::predict::{RankInput, RankOutput, Ranker};
use crate::pipeline::train::checkpoints::PickedCheckpoint;
use crate::train::HeadState;

/// Ranks the classes of the run.
pub(super) struct ClassifierRanker {
    classes: Vec<Caption>,
}

impl ClassifierRanker {
    /// Loads the classes.
    ///
    /// # Errors
    /// When the run directory has no complete catalog.
    pub(super) fn open(ctx: &RunContext) -> Result<Self, PipelineError> {
        Ok(Self { classes: catalog::load_captions(&ctx.dir)? })
    }
}

/// Query encoder of a classifier: the queries are the features themselves.
struct RawFeatures {
    /// Feature dimension that the classifier expects.
    dim: usize,
}

impl QueryEncoder for RawFeatures {
    fn log_key(&self) -> String {
        String::new()
    }

    async fn encode(&self, chunk: Features) -> Result<Vec<f32>, PipelineError> {
        if chunk.dim != self.dim {
            return Err(PipelineError::Generation(
                "the test features do not fit the head; recompute with --from predict".to_owned(),
            ));
        }
        Ok(chunk.values)
    }
}

impl Ranker for ClassifierRanker {
    const FALLBACK: &'static str = "the most frequent captions (the first of the list where no image has a label)";
    type Head = HeadState;

    fn captions(&self) -> usize {
        self.classes.len()
    }

    fn caption(&self, number: u32) -> &str {
        &self.classes[number as usize].text
    }

    fn fallback(&self, top_k: usize) -> Vec<u32> {
        most_frequent(&self.classes, top_k)
    }

    fn load_head(&self, checkpoint: Option<&PickedCheckpoint>) -> Result<Option<HeadState>, PipelineError> {
        checkpoint.map(PickedCheckpoint::load_classifier).transpose()
    }

    async fn rank(&self, ctx: &RunContext, head: HeadState, input: RankInput<'_>) -> Result<RankOutput, PipelineError> {
        let encoder = RawFeatures { dim: head.dim };
        let job = RankJob {
            features: input.features,
            layer: head,
            urls: &input.test_set.urls,
            top_k: input.top_k,
            stage: "rank".to_owned(),
            log: ctx.scratch_path().join(format!("{}.ranks", input.stem)),
            device: input.device,
        };
        let ranking = job.run(ctx, &encoder).await?;
        Ok(RankOutput { ranking, report: None, remarks: StageRemarks::default() })
    }
}
