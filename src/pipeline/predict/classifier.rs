//! Prediction by a classifier: the classes of the run, ranked by their logits.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::chunk::features::Features;
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::StageRemarks;
use crate::pipeline::predict::ranking::{QueryEncoder, RankJob, Ranking};
use crate::pipeline::predict::submission::most_frequent;
use crate::pipeline::predict::{RankInput, RankOutput, Ranker};
use crate::pipeline::train::checkpoints::PickedCheckpoint;
use crate::train::HeadState;

/// Ranks the classes of the run. Memory holds the texts of ranked classes only.
pub(super) struct ClassifierRanker {
    classes: StoredClasses,
    /// Classes with the most images, most frequent first.
    frequent: Vec<u32>,
    /// Texts of the ranked classes and of the most frequent ones.
    texts: HashMap<u32, Box<str>>,
}

impl ClassifierRanker {
    /// Finds the `top_k` most frequent classes.
    ///
    /// # Errors
    /// When the run directory has no complete catalog.
    pub(super) fn open(ctx: &RunContext, top_k: usize) -> Result<Self, PipelineError> {
        let classes = StoredClasses::open(&ctx.dir)?;
        let frequent = most_frequent(&classes.read_images()?, top_k);
        Ok(Self { classes, frequent, texts: HashMap::new() })
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
        self.classes.count
    }

    fn find_captions<'t>(&self, captions: &HashSet<&'t str>) -> Result<HashMap<&'t str, u32>, PipelineError> {
        self.classes.find_all(captions)
    }

    fn read_captions(&mut self, ranking: &Ranking) -> Result<(), PipelineError> {
        let ranked = ranking.all_captions().chain(self.frequent.iter().copied());
        let ranked: Vec<u32> = ranked.collect::<BTreeSet<u32>>().into_iter().collect();
        let texts = self.classes.read_some_texts(&ranked)?;
        self.texts = ranked.into_iter().zip(texts).collect();
        Ok(())
    }

    fn caption(&self, number: u32) -> &str {
        self.texts.get(&number).map_or("", |text| &**text)
    }

    fn fallback(&self, top_k: usize) -> Vec<u32> {
        self.frequent.iter().copied().take(top_k).collect()
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
            questions: input.questions,
        };
        let ranking = job.run(ctx, &encoder).await?;
        Ok(RankOutput { ranking, report: None, remarks: StageRemarks::default() })
    }
}
