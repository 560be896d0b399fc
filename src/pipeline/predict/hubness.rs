//! Hubness correction: captions that are close to every image (hubs) are ranked lower.

use std::sync::Arc;

use crate::pipeline::chunk_files::FeatureSet;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{DeviceWorker, LoadedScorer};
use crate::pipeline::error::PipelineError;
use crate::pipeline::predict::ranking::{QueryEncoder, read_chunk};
use crate::train::HeadState;
use crate::types::Correction;

/// Number of a caption's nearest images whose mean similarity CSLS subtracts.
const CSLS_NEIGHBOURS: usize = 10;
/// Fewest images that tell which captions are close to every image. With one image, a softmax makes all captions equal.
pub(super) const LEAST_IMAGES: u64 = 10;
/// Passes over the images of Sinkhorn's algorithm.
const SINKHORN_ROUNDS: usize = 3;

/// A correction and its strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CorrectionSettings {
    pub(super) kind: Correction,
    /// Factor of the cosine similarities in `softmax` and `sinkhorn`; `None` for that of the logits.
    pub(super) strength: Option<f64>,
}

/// Strength of a softmax correction that is not chosen on held-out images.
const DEFAULT_STRENGTH: f64 = 20.0;
/// Strengths to choose from.
const STRENGTHS: [f64; 6] = [5.0, 10.0, 15.0, 20.0, 30.0, 40.0];

impl CorrectionSettings {
    /// Returns the settings to start with: `auto` is a softmax until a choice is made.
    pub(super) fn initial(kind: Correction, strength: Option<f64>) -> Self {
        match kind {
            Correction::Auto => Self { kind: Correction::Softmax, strength: Some(DEFAULT_STRENGTH) },
            kind => Self { kind, strength },
        }
    }

    /// Returns the settings that `auto` chooses from. Of equal scores the first counts.
    pub(super) fn options() -> Vec<Self> {
        let others = [Correction::None, Correction::Csls].map(|kind| Self { kind, strength: None });
        let with_strengths = |kind| STRENGTHS.map(|strength| Self { kind, strength: Some(strength) });
        let scaled = [Correction::Softmax, Correction::Sinkhorn].into_iter().flat_map(with_strengths);
        others.into_iter().chain(scaled).collect()
    }

    /// Describes the settings.
    pub(super) fn describe(self) -> String {
        match self.strength {
            Some(strength) => format!("{} of strength {strength}", self.kind),
            None => self.kind.to_string(),
        }
    }

    /// Returns the factor between the logits of a layer, whose similarities have the factor `scale`, and those that the
    /// correction is computed from.
    pub(super) fn factor(self, scale: f32) -> f32 {
        self.strength.map_or(1.0, |strength| strength as f32 / scale)
    }
}

/// Returns the layer whose logits are `factor` times those of `layer`.
pub(super) fn scale_layer(layer: &Arc<HeadState>, factor: f32) -> Arc<HeadState> {
    if factor.to_bits() == 1.0_f32.to_bits() {
        return Arc::clone(layer);
    }
    let mut scaled = HeadState::clone(layer);
    scaled.weight.iter_mut().chain(&mut scaled.bias).for_each(|value| *value *= factor);
    Arc::new(scaled)
}

/// Statistics over images that determine the correction of each caption.
pub(super) enum HubnessCorrection {
    None,
    Odds(Odds),
    /// The largest logits of each caption.
    Csls(Vec<Vec<f32>>),
}

/// Summed odds of captions over all images, for `softmax` and `sinkhorn`.
///
/// Sinkhorn's algorithm (Sinkhorn and Knopp 1967) scales the exponentials of the logits so that in turn those of each image and those of
/// each caption add up to one. The first round is that of `softmax`, which scales captions alone.
pub(super) struct Odds {
    rounds: usize,
    /// Rounds that are finished.
    finished: usize,
    /// `log Σ exp` of each caption's logits in this round so far.
    sums: Vec<f64>,
    /// Value that the finished rounds subtract from the logits of each caption.
    subtracted: Vec<f64>,
    /// Factor of these logits relative to those that are corrected.
    factor: f32,
}

impl HubnessCorrection {
    /// Creates the statistics of no images, for logits with a [factor](CorrectionSettings::factor).
    pub(super) fn new(kind: Correction, captions: usize, factor: f32) -> Self {
        match kind {
            Correction::None => Self::None,
            // `auto` is replaced before.
            Correction::Softmax | Correction::Auto => Self::Odds(Odds::new(1, captions, factor)),
            Correction::Sinkhorn => Self::Odds(Odds::new(SINKHORN_ROUNDS, captions, factor)),
            Correction::Csls => Self::Csls(vec![Vec::new(); captions]),
        }
    }

    /// Measures the correction over all images of a set of features, for the captions that `layer` ranks with similarities of
    /// the factor `scale`.
    ///
    /// # Errors
    /// When a chunk or the device fails; [`PipelineError::Stopped`] if the run has to stop.
    pub(super) async fn measure(
        ctx: &RunContext,
        settings: CorrectionSettings,
        features: &FeatureSet,
        (layer, scale): (&Arc<HeadState>, f32),
        device: &Arc<DeviceWorker>,
        encoder: &impl QueryEncoder,
    ) -> Result<Option<Vec<f32>>, PipelineError> {
        if settings.kind == Correction::None || features.images() < LEAST_IMAGES {
            return Ok(None);
        }
        let factor = settings.factor(scale);
        let mut correction = Self::new(settings.kind, layer.classes, factor);
        let images = features.images() * correction.rounds() as u64;
        let stage_progress = ctx.progress.stage("hubness of captions", "images", images);
        let mut scaled = scale_layer(layer, factor);
        for _ in 0..correction.rounds() {
            let scorer = device.load_scorer(Arc::clone(&scaled)).await?;
            for file in features.files() {
                if let Some(signal) = ctx.shutdown.signal() {
                    return Err(PipelineError::Stopped(signal));
                }
                let chunk = read_chunk(features, file).await?;
                let count = chunk.rows.len();
                let queries = encoder.encode(chunk).await?;
                correction.add(&scorer, queries, count).await?;
                stage_progress.add(count as u64);
            }
            scorer.unload().await?;
            correction.finish_round(&mut scaled);
        }
        ctx.events.stage_finished(&stage_progress);
        Ok(correction.bias())
    }

    /// Measures the correction over images in memory, as [`HubnessCorrection::measure`] does for chunks.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) async fn measure_in_memory(
        settings: CorrectionSettings,
        (layer, scale): (&Arc<HeadState>, f32),
        device: &Arc<DeviceWorker>,
        queries: &[f32],
        images: usize,
    ) -> Result<Option<Vec<f32>>, PipelineError> {
        if settings.kind == Correction::None || (images as u64) < LEAST_IMAGES {
            return Ok(None);
        }
        let factor = settings.factor(scale);
        let mut correction = Self::new(settings.kind, layer.classes, factor);
        let mut scaled = scale_layer(layer, factor);
        for _ in 0..correction.rounds() {
            let scorer = device.load_scorer(Arc::clone(&scaled)).await?;
            correction.add(&scorer, queries.to_vec(), images).await?;
            scorer.unload().await?;
            correction.finish_round(&mut scaled);
        }
        Ok(correction.bias())
    }

    /// Returns how often all images are visited.
    fn rounds(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Odds(odds) => odds.rounds,
            Self::Csls(_) => 1,
        }
    }

    /// Adds images by their queries. `scorer` has the logits less what the finished rounds subtract.
    ///
    /// # Errors
    /// When the device fails.
    async fn add(&mut self, scorer: &LoadedScorer, queries: Vec<f32>, images: usize) -> Result<(), PipelineError> {
        match self {
            Self::None => {}
            Self::Odds(odds) => {
                let more = match odds.finished {
                    0 => scorer.lse_by_class(queries, images).await?,
                    _ => scorer.shared_lse_by_class(queries, images).await?,
                };
                for (sum, more) in odds.sums.iter_mut().zip(more) {
                    let (low, high) = if *sum < more { (*sum, more) } else { (more, *sum) };
                    *sum = if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() };
                }
            }
            Self::Csls(largest) => {
                let lists = std::mem::take(largest);
                *largest = scorer.largest_by_class(queries, images, CSLS_NEIGHBOURS, lists).await?;
            }
        }
        Ok(())
    }

    /// Ends a visit of all images: subtracts what it found from the logits of `layer`, which the next round visits.
    fn finish_round(&mut self, layer: &mut Arc<HeadState>) {
        let Self::Odds(odds) = self else { return };
        odds.finished += 1;
        if odds.finished < odds.rounds {
            Arc::make_mut(layer).bias.iter_mut().zip(&odds.sums).for_each(|(bias, sum)| *bias -= *sum as f32);
        }
        for (less, sum) in odds.subtracted.iter_mut().zip(&mut odds.sums) {
            *less += std::mem::replace(sum, f64::NEG_INFINITY);
        }
    }

    /// Returns the values to add to the logits of each caption.
    fn bias(&self) -> Option<Vec<f32>> {
        match self {
            Self::None => None,
            Self::Odds(Odds { subtracted, factor, .. }) => {
                Some(subtracted.iter().map(|less| (-*less / f64::from(*factor)) as f32).collect())
            }
            // CSLS is twice the similarity minus both means. Neither the image's own mean nor a factor of one half
            // changes the order.
            Self::Csls(largest) => {
                let mean = |list: &Vec<f32>| list.iter().sum::<f32>() / list.len().max(1) as f32;
                Some(largest.iter().map(|list| -0.5 * mean(list)).collect())
            }
        }
    }
}

impl Odds {
    fn new(rounds: usize, captions: usize, factor: f32) -> Self {
        let (sums, subtracted) = (vec![f64::NEG_INFINITY; captions], vec![0.0; captions]);
        Self { rounds, finished: 0, sums, subtracted, factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MachineConfig;
    use crate::pipeline::device::{self, MemoryNeeds, linear_layer};
    use crate::types::{DeviceKind, Precision};

    const CAPTIONS: usize = 5;
    const DIM: usize = 3;

    /// Returns what `rounds` rounds of Sinkhorn's algorithm subtract from each caption's similarities, by its definition.
    fn sinkhorn(similarities: &[Vec<f64>], strength: f64, rounds: usize) -> Vec<f64> {
        let mut odds: Vec<Vec<f64>> =
            similarities.iter().map(|row| row.iter().map(|value| (strength * value).exp()).collect()).collect();
        let mut scaled = [1.0_f64; CAPTIONS];
        for round in 0..rounds {
            if round > 0 {
                for row in &mut odds {
                    let sum: f64 = row.iter().sum();
                    for value in row.iter_mut() {
                        *value /= sum;
                    }
                }
            }
            for (caption, scaled) in scaled.iter_mut().enumerate() {
                let sum: f64 = odds.iter().map(|row| row[caption]).sum();
                for row in &mut odds {
                    row[caption] /= sum;
                }
                *scaled *= sum;
            }
        }
        scaled.iter().map(|sum| sum.ln() / strength).collect()
    }

    #[tokio::test]
    async fn corrections_are_those_of_their_definitions() {
        let cpu = crate::device::select_device(DeviceKind::Cpu, 0).unwrap();
        let (needs, settings) = (MemoryNeeds::for_head(Precision::F32), MachineConfig::default().device);
        let device = device::open(&cpu, needs, settings, std::path::Path::new("/nonexistent")).await.unwrap();
        let (images, scale, strength) = (12, 4.0_f32, 9.0);
        let weight: Vec<f32> = (0..CAPTIONS * DIM).map(|at| scale * (at as f32 * 0.9).sin()).collect();
        let queries: Vec<f32> = (0..images * DIM).map(|at| (at as f32 * 0.7).cos()).collect();
        let similarity = |image: usize, caption: usize| {
            let product = |at: usize| f64::from(queries[image * DIM + at] * weight[caption * DIM + at] / scale);
            (0..DIM).map(product).sum::<f64>()
        };
        let similarities: Vec<Vec<f64>> =
            (0..images).map(|image| (0..CAPTIONS).map(|caption| similarity(image, caption)).collect()).collect();
        let layer = Arc::new(linear_layer(weight.clone(), vec![0.0; CAPTIONS], DIM));
        let mut found = Vec::new();
        for (kind, rounds) in [(Correction::Softmax, 1), (Correction::Sinkhorn, SINKHORN_ROUNDS)] {
            let settings = CorrectionSettings { kind, strength: Some(strength) };
            let measure = HubnessCorrection::measure_in_memory(settings, (&layer, scale), &device, &queries, images);
            let bias = measure.await.unwrap().unwrap();
            let expected = sinkhorn(&similarities, strength, rounds);
            // The bias is added to logits, which are similarities times the scale of the head.
            let differences = bias.iter().zip(&expected).map(|(bias, less)| f64::from(*bias / scale) + less);
            assert!(
                differences.into_iter().all(|difference| difference.abs() < 1e-5),
                "{kind}: {bias:?}, {expected:?}"
            );
            let few = LEAST_IMAGES as usize - 1;
            let few =
                HubnessCorrection::measure_in_memory(settings, (&layer, scale), &device, &queries[..few * DIM], few);
            assert_eq!(few.await.unwrap(), None);
            found.push(bias);
        }
        assert!(found[0].iter().zip(&found[1]).any(|(one, other)| (one - other).abs() > 0.1), "{found:?}");
    }
}
