//! Prediction by a classifier: the classes of the run, ranked by their logits.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::chunk::features::Features;
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::DeviceWorker;
use crate::pipeline::error::PipelineError;
use crate::pipeline::manifest::Manifest;
use crate::pipeline::observe::report::StageRemarks;
use crate::pipeline::predict::examples::ChosenExamples;
use crate::pipeline::predict::held_out::HeldOutImages;
use crate::pipeline::predict::ranking::{QueryEncoder, RankJob, Ranking};
use crate::pipeline::predict::submission::most_frequent;
use crate::pipeline::predict::{RankInput, RankOutput, Ranker};
use crate::pipeline::train::checkpoints::PickedCheckpoint;
use crate::train::HeadState;

/// Captions that are ranked for a held-out image.
const EXAMPLE_CAPTIONS: usize = 10;
/// Held-out images that are ranked at once.
const EXAMPLE_ROWS: usize = 256;
/// Feature chunks whose held-out images may become examples, since a remote run directory has to be read for them.
const EXAMPLE_CHUNKS: usize = 32;

/// Ranks the classes of the run. Memory holds the texts of ranked classes only.
pub(super) struct ClassifierRanker<'a> {
    manifest: &'a Manifest,
    classes: StoredClasses,
    /// Classes with the most images, most frequent first.
    frequent: Vec<u32>,
    /// Texts of the ranked classes and of the most frequent ones.
    texts: HashMap<u32, Box<str>>,
}

impl<'a> ClassifierRanker<'a> {
    /// Finds the `top_k` most frequent classes.
    ///
    /// # Errors
    /// When the run directory has no complete catalog.
    pub(super) fn open(ctx: &RunContext, manifest: &'a Manifest, top_k: usize) -> Result<Self, PipelineError> {
        let classes = StoredClasses::open(&ctx.dir)?;
        let frequent = most_frequent(&classes.read_images()?, top_k);
        Ok(Self { manifest, classes, frequent, texts: HashMap::new() })
    }

    /// Ranks the classes for the held-out images, and writes the page of examples.
    async fn write_examples(
        &self,
        ctx: &RunContext,
        head: Arc<HeadState>,
        device: &Arc<DeviceWorker>,
        remarks: &mut StageRemarks,
    ) -> Result<(), PipelineError> {
        let dim = head.dim;
        let read = || HeldOutImages::read(ctx, self.manifest, dim, EXAMPLE_CHUNKS, |_| Ok(Vec::new()));
        let Some(held_out) = tokio::task::block_in_place(read)? else { return Ok(()) };
        let images = &held_out.images;
        let top_k = EXAMPLE_CAPTIONS.min(head.classes);
        let scorer = device.load_scorer(head).await?;
        let mut ranked = Vec::with_capacity(images.images());
        for features in images.features.chunks(EXAMPLE_ROWS * dim) {
            if let Some(signal) = ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            ranked.extend(scorer.top_k(features.to_vec(), features.len() / dim, top_k).await?);
        }
        scorer.unload().await?;
        let examples = ChosenExamples::choose(images, |image| ranked[image].classes.clone());
        let write = || {
            let shown = examples.classes();
            let (texts, languages) = (self.classes.read_some_texts(&shown)?, self.classes.read_languages()?);
            let caption = |class: u32| {
                let text = shown.binary_search(&class).ok().and_then(|place| texts.get(place));
                (text.map_or("", |text| &**text), languages.language(class))
            };
            let how = format!("all {} classes are ranked by the classifier", self.classes.count);
            examples.write(ctx, &held_out, caption, &how, remarks)
        };
        tokio::task::block_in_place(write)
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

impl Ranker for ClassifierRanker<'_> {
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
        let (head, mut remarks) = (Arc::new(head), StageRemarks::default());
        let encoder = RawFeatures { dim: head.dim };
        let job = RankJob {
            features: input.features,
            layer: Arc::clone(&head),
            urls: &input.test_set.urls,
            top_k: input.top_k,
            stage: "rank".to_owned(),
            log: ctx.scratch_path().join(format!("{}.ranks", input.stem)),
            device: input.device,
            questions: input.questions,
        };
        let ranking = job.run(ctx, &encoder).await?;
        if input.own {
            self.write_examples(ctx, head, input.device, &mut remarks).await?;
        }
        Ok(RankOutput { ranking, report: None, remarks })
    }
}
