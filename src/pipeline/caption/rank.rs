//! Ranks a list of captions by the similarity of their vectors to those of the generated captions.

use std::fs::File;
use std::io::BufWriter;
use std::sync::Arc;

use crate::catalog::{Texts, url_hash};
use crate::config::{ConfigError, Problem};
use crate::objects::{Store, StoreError};
use crate::pipeline::captions::{self, Encoder, VectorStore};
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{DeviceWorker, linear_layer};
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::hub::{self, HubModel};
use crate::pipeline::observe::report::{self, CaptionRankingReport, Report, ScoreReport};
use crate::pipeline::predict::{Candidates, IdSource, TestSet, check_truth, read_truth_bytes, visit_ids};
use crate::pipeline::resolve::{paired_encoder_dir, require_captions};
use crate::predict::evaluate::{ImageOfId, evaluate};
use crate::predict::metrics;
use crate::predict::submission::{SubmissionError, SubmissionWriter};

use super::write::GeneratedCaptions;

/// Generated captions that are ranked for at once.
const BATCH_CAPTIONS: usize = 1024;

/// Ranking whose list and encoder were checked.
pub(super) struct CaptionRanking {
    encoder: Encoder,
    candidates: Candidates,
    /// Captions to rank for each image.
    top_k: usize,
    /// CSV file with the right caption of each id.
    truth: Option<String>,
}

impl CaptionRanking {
    /// Reads the list and opens the text encoder.
    ///
    /// # Errors
    /// When a file cannot be used, or the list has fewer captions than are to be ranked.
    pub(super) async fn open(ctx: &RunContext, top_k: u32) -> Result<Self, PipelineError> {
        let RunContext { config, store, progress, shutdown, .. } = ctx;
        let refuse = |what: &str| PipelineError::from(ConfigError(vec![Problem::new("caption.rank", what)]));
        let text = config.text().cloned().ok_or_else(|| refuse("needs a text encoder: add `[text]`"))?;
        let candidates = Candidates::read_list(ctx).await?.ok_or_else(|| refuse("needs a list of captions"))?;
        require_captions(candidates.len(), top_k)?;
        let mut dir = hub::download(config, HubModel::TextEncoder, store, progress, shutdown).await?;
        if text.is_paired() {
            let backbone = hub::download(config, HubModel::Backbone, store, progress, shutdown).await?;
            dir = paired_encoder_dir(config, backbone.as_deref());
        }
        let encoder = tokio::task::spawn_blocking(move || Encoder::open(&text, dir)).await??;
        captions::require_vector_memory(config, &encoder, candidates.len())?;
        let truth = config.predict().and_then(|predict| predict.truth.clone());
        if let Some(truth) = &truth {
            check_truth(store, truth).await?;
        }
        Ok(Self { encoder, candidates, top_k: top_k as usize, truth })
    }

    /// Ranks the list for each id and writes the file `output`.
    ///
    /// # Errors
    /// When the device or the disk fails; [`PipelineError::Stopped`] if the run has to stop.
    pub(super) async fn run(
        self,
        ctx: &RunContext,
        device: &Arc<DeviceWorker>,
        generated: &GeneratedCaptions,
        (ids, test_set): (&IdSource, &TestSet),
        output: &str,
    ) -> Result<CaptionRankingReport, PipelineError> {
        let ranked = self.rank(ctx, device, generated).await?;
        let list = &self.candidates.captions;
        let fallback: Vec<u32> = (0..self.top_k as u32).collect();
        let path = ctx.dir.temporary(output)?;
        let file = File::create(&path).map_err(|error| StoreError::io(&path, "created", error))?;
        let failed = |error: SubmissionError| match error {
            SubmissionError::Write { source, .. } => PipelineError::from(StoreError::io(&path, "written", source)),
        };
        let mut writer = SubmissionWriter::new(BufWriter::new(file)).map_err(failed)?;
        let mut image_of = ImageOfId::new();
        visit_ids(&ctx.store, ids, |id| {
            let hash = url_hash(id.image_url);
            if self.truth.is_some() {
                image_of.insert(id.id.into(), hash);
            }
            let number = test_set.urls().position(hash).and_then(|image| generated.number(image));
            let best = number.map_or(&fallback, |number| &ranked[number as usize]);
            writer.write(id.id, best.iter().map(|caption| list.get(*caption).unwrap_or_default())).map_err(failed)
        })
        .await?;
        writer.finish().map_err(failed)?;
        ctx.dir.publish(output)?;
        let scores = match &self.truth {
            Some(truth) => Some(self.score(ctx, truth, output, test_set, &image_of).await?),
            None => None,
        };
        let head = Report::load(&ctx.dir, report::FILE)?.prediction.and_then(|prediction| prediction.scores);
        Ok(CaptionRankingReport {
            source: self.candidates.source.clone(),
            captions: self.candidates.len() as u64,
            encoder: ctx.config.text().map(|text| text.encoder.clone()).unwrap_or_default(),
            scores,
            head_ndcg5: head.map(|scores| scores.ndcg5),
        })
    }

    /// Returns the best captions of the list for each generated one.
    async fn rank(
        &self,
        ctx: &RunContext,
        device: &Arc<DeviceWorker>,
        generated: &GeneratedCaptions,
    ) -> Result<Vec<Vec<u32>>, PipelineError> {
        if generated.texts.is_empty() {
            return Ok(Vec::new());
        }
        let dim = self.encoder.checkpoint.dim();
        let list = self.embed(ctx, device, "captions to rank", &self.candidates.captions).await?;
        // The vectors of generated captions may be on the scratch disk, since there can be one for each image.
        let texts = Arc::clone(&generated.texts);
        let set = captions::embed(ctx, &self.encoder, device, "generated captions", texts).await?;
        let queries = Arc::new(VectorStore::open(ctx, set).await?);
        let layer = linear_layer(list, vec![0.0; self.candidates.len()], dim);
        let scorer = device.load_scorer(Arc::new(layer)).await?;
        let mut ranked = Vec::with_capacity(generated.texts.len());
        let numbers: Vec<u32> = (0..generated.texts.len() as u32).collect();
        for numbers in numbers.chunks(BATCH_CAPTIONS) {
            if let Some(signal) = ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let (queries, own) = (Arc::clone(&queries), numbers.to_vec());
            let mut batch = tokio::task::spawn_blocking(move || queries.read(&own)).await??;
            batch.chunks_mut(dim).for_each(scale_to_unit_length);
            let tops = scorer.top_k(batch, numbers.len(), self.top_k).await?;
            ranked.extend(tops.into_iter().map(|top| top.classes));
        }
        scorer.unload().await?;
        Ok(ranked)
    }

    /// Returns the vectors of texts, each of unit length.
    async fn embed(
        &self,
        ctx: &RunContext,
        device: &Arc<DeviceWorker>,
        stage: &str,
        texts: &Arc<Texts>,
    ) -> Result<Vec<f32>, PipelineError> {
        let set = captions::embed(ctx, &self.encoder, device, stage, Arc::clone(texts)).await?;
        let mut vectors = tokio::task::spawn_blocking(move || set.read_all()).await??;
        vectors.chunks_mut(self.encoder.checkpoint.dim()).for_each(scale_to_unit_length);
        Ok(vectors)
    }

    /// Scores the file of ranked captions.
    async fn score(
        &self,
        ctx: &RunContext,
        truth: &str,
        output: &str,
        test_set: &TestSet,
        image_of: &ImageOfId,
    ) -> Result<ScoreReport, PipelineError> {
        let path = ctx.dir.fetch(output)?;
        let submission = File::open(&path).map_err(|error| StoreError::io(&path, "opened", error))?;
        let rows = read_truth_bytes(&ctx.store, truth).await?;
        let refused = |error| PipelineError::Input(format!("`{}`: {}", Store::redact(truth), chain(&error)));
        let scores = evaluate(submission, &*rows, Some(image_of)).map_err(refused)?;
        Ok(ScoreReport {
            ndcg5: scores.means.ndcg5,
            ndcg5_ceiling: metrics::ceiling(test_set.ids_per_image.iter().copied()),
            ndcg5_chance: metrics::chance(self.candidates.len() as u64),
            recall1: scores.means.recall1,
            recall5: scores.means.recall5,
            mrr: scores.means.mrr,
            mean_rank: None,
            intervals: scores.means.intervals,
            ids: scores.ids,
            by_language: scores.by_language,
        })
    }
}

/// Scales a vector to unit length; one of length 0 stays.
fn scale_to_unit_length(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}
