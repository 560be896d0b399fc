//! Fusion of signals: pixels, file names and the logits of a classifier rank captions together.
//!
//! Every signal is an inner product, so one linear layer ranks by the weighted sum of all signals. The row of a caption
//! holds its scaled vector, followed by the caption's classifier weights. The row of an image (its query) holds the
//! weighted sum of its projected feature and name vector, followed by its feature. A hubness correction is added to the
//! bias.

use crate::pipeline::device::linear_layer;
use crate::predict::slices::FusionSignal;
use crate::train::HeadState;

/// Weights of the signals, relative to the projected feature.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct FusionWeights {
    /// Weight of the name's vector.
    pub(super) names: f32,
    /// Weight of the classifier's logits.
    pub(super) classifier: f32,
}

/// Rows of a classifier for some captions; zero for captions that are not among its classes.
pub(super) struct ClassifierRows {
    /// `[captions, width]`.
    pub(super) weight: Vec<f32>,
    /// `[captions]`.
    pub(super) bias: Vec<f32>,
}

impl ClassifierRows {
    /// Returns the dimension of a row.
    pub(super) fn width(&self) -> usize {
        self.weight.len() / self.bias.len().max(1)
    }
}

/// Captions to rank, with their vectors and classifier rows.
pub(super) struct CandidateVectors {
    /// Centred vectors of length 1, `[captions, dim]`.
    pub(super) vectors: Vec<f32>,
    pub(super) dim: usize,
    /// Factor that turns cosine similarities into logits.
    pub(super) scale: f32,
    /// Summand of every logit.
    pub(super) bias: f32,
    /// Rows of another run's classifier, if one contributes.
    pub(super) classifier: Option<ClassifierRows>,
}

impl CandidateVectors {
    /// Returns the number of captions.
    pub(super) fn len(&self) -> usize {
        self.vectors.len() / self.dim.max(1)
    }

    /// Copies the captions at the positions `places`.
    pub(super) fn subset(&self, places: &[u32]) -> Self {
        let rows = |values: &[f32], width: usize| -> Vec<f32> {
            places
                .iter()
                .flat_map(|place| &values[*place as usize * width..(*place as usize + 1) * width])
                .copied()
                .collect()
        };
        let classifier = self
            .classifier
            .as_ref()
            .map(|own| ClassifierRows { weight: rows(&own.weight, own.width()), bias: rows(&own.bias, 1) });
        Self { vectors: rows(&self.vectors, self.dim), dim: self.dim, scale: self.scale, bias: self.bias, classifier }
    }

    /// Builds the linear layer that ranks the captions, without a hubness correction.
    pub(super) fn linear_layer(&self, signal: FusionSignal, weights: FusionWeights) -> HeadState {
        let classifier = self.classifier.as_ref().filter(|_| uses_features(signal, weights));
        let Some(classifier) = classifier else {
            let weight = self.vectors.iter().map(|value| value * self.scale).collect();
            return linear_layer(weight, vec![self.bias; self.len()], self.dim);
        };
        let width = classifier.width();
        let mut weight = Vec::with_capacity(self.len() * (self.dim + width));
        for (vector, row) in self.vectors.chunks_exact(self.dim).zip(classifier.weight.chunks_exact(width.max(1))) {
            weight.extend(vector.iter().map(|value| value * self.scale));
            weight.extend(row.iter().map(|value| value * weights.classifier));
        }
        let bias = classifier.bias.iter().map(|value| self.bias + value * weights.classifier).collect();
        linear_layer(weight, bias, self.dim + width)
    }
}

/// Signals of images.
#[derive(Clone, Copy)]
pub(super) struct ImageSignals<'a> {
    /// Projected features, `[images, dim]`.
    pub(super) pixels: &'a [f32],
    /// Vectors of the file names, `[images, dim]`.
    pub(super) names: Option<&'a [f32]>,
    /// Features, `[images, width]`, for a classifier.
    pub(super) features: Option<&'a [f32]>,
    pub(super) dim: usize,
}

/// Builds the queries of images for the layer of [`CandidateVectors::linear_layer`].
pub(super) fn fuse_queries(signal: FusionSignal, weights: FusionWeights, images: ImageSignals<'_>) -> Vec<f32> {
    let ImageSignals { pixels, names, features, dim } = images;
    let images = pixels.len() / dim.max(1);
    let features = features.filter(|_| uses_features(signal, weights));
    let width = features.map_or(0, |features| features.len() / images.max(1));
    let (pixel_weight, name_weight) = match signal {
        FusionSignal::Pixels => (1.0, 0.0),
        FusionSignal::Names => (0.0, 1.0),
        FusionSignal::Both => (1.0, weights.names),
    };
    let mut rows = Vec::with_capacity(images * (dim + width));
    for image in 0..images {
        let span = image * dim..(image + 1) * dim;
        let name = names.map(|names| &names[span.clone()]);
        let fuse = |(at, pixel): (usize, &f32)| pixel_weight * pixel + name_weight * name.map_or(0.0, |name| name[at]);
        rows.extend(pixels[span].iter().enumerate().map(fuse));
        if let Some(features) = features {
            rows.extend_from_slice(&features[image * width..(image + 1) * width]);
        }
    }
    rows
}

/// Whether the classifier contributes, so that queries contain features.
fn uses_features(signal: FusionSignal, weights: FusionWeights) -> bool {
    signal != FusionSignal::Names && weights.classifier != 0.0
}

/// Adds a hubness correction, if there is one, to the bias of a linear layer.
pub(super) fn add_bias(layer: &mut HeadState, correction: Option<&[f32]>) {
    let correction = correction.into_iter().flatten();
    layer.bias.iter_mut().zip(correction).for_each(|(bias, correction)| *bias += correction);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_sums_all_signals() {
        let weight = vec![1.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        let classifier = Some(ClassifierRows { weight, bias: vec![0.5, 0.0, -1.0] });
        let vectors = vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8];
        let candidates = CandidateVectors { vectors, dim: 2, scale: 10.0, bias: 0.0, classifier };
        let images =
            ImageSignals { pixels: &[0.8, 0.6], names: Some(&[0.0, 1.0]), features: Some(&[3.0, 4.0]), dim: 2 };
        let weights = FusionWeights { names: 0.5, classifier: 2.0 };
        let logits = |signal: FusionSignal, weights: FusionWeights| -> Vec<f32> {
            let layer = candidates.linear_layer(signal, weights);
            let row = fuse_queries(signal, weights, images);
            assert_eq!(row.len(), layer.dim);
            let dot = |weight: &[f32]| weight.iter().zip(&row).map(|(weight, value)| weight * value).sum::<f32>();
            layer.weight.chunks(layer.dim).zip(&layer.bias).map(|(weight, bias)| dot(weight) + bias).collect()
        };
        let close = |found: Vec<f32>, expected: [f32; 3]| {
            assert!(found.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-4), "{found:?}");
        };
        close(logits(FusionSignal::Pixels, FusionWeights::default()), [8.0, 6.0, 9.6]);
        close(logits(FusionSignal::Names, weights), [0.0, 10.0, 8.0]);
        close(logits(FusionSignal::Both, FusionWeights { classifier: 0.0, ..weights }), [8.0, 11.0, 13.6]);
        close(logits(FusionSignal::Pixels, weights), [8.0 + 2.0 * 3.5, 6.0 + 2.0 * 8.0, 9.6 - 2.0]);
        close(logits(FusionSignal::Both, weights), [15.0, 27.0, 11.6]);
        let subset = candidates.subset(&[2, 0]);
        assert_eq!((subset.len(), subset.vectors[..2].to_vec()), (2, vec![0.6, 0.8]));
        assert_eq!(subset.classifier.unwrap().bias, [-1.0, 0.5]);
    }
}
