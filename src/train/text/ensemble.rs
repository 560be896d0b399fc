//! Several projection heads that rank together: the score of an image and a caption is the weighted mean of their cosines.
//!
//! The mean is one inner product. Heads that compare images with the captions' own vectors share a block of values: the image has
//! the weighted sum of its vectors there, and the caption its vector. A head with a map of captions has a block of its own.
//! Both sides carry the square root of a block's weight, so captions have unit length, and images at most that.

use super::head::{TextHead, centre_and_normalise};

/// Error of combining heads.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnsembleError {
    /// No head has a weight over 0.
    #[error("no head has a weight over 0")]
    Empty,
    /// The heads were trained on other features or captions.
    #[error("the heads of the ensemble were trained on different features or captions")]
    Mismatch,
}

/// Heads with their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Ensemble {
    members: Vec<Member>,
    blocks: Vec<Block>,
    output: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    head: TextHead,
    weight: f64,
    /// Number of its block.
    block: usize,
}

/// Values of a vector that some heads fill.
#[derive(Debug, Clone, PartialEq)]
struct Block {
    /// First value.
    first: usize,
    /// Sum of the weights.
    weight: f64,
    /// Head whose map of captions fills it; `None` for the captions' own vectors.
    mapped_by: Option<usize>,
}

impl From<TextHead> for Ensemble {
    fn from(head: TextHead) -> Self {
        let (output, mapped_by) = (head.output, head.text_map.as_ref().map(|_| 0));
        let block = Block { first: 0, weight: 1.0, mapped_by };
        Self { members: vec![Member { head, weight: 1.0, block: 0 }], blocks: vec![block], output }
    }
}

impl Ensemble {
    /// Combines heads. Their weights are scaled to the sum 1; a head of weight 0 is left out.
    ///
    /// # Errors
    /// When no weight is over 0, or the heads do not belong together.
    pub fn new(heads: Vec<(TextHead, f64)>) -> Result<Self, EnsembleError> {
        let sum: f64 = heads.iter().map(|(_, weight)| weight.max(0.0)).sum();
        let (mut members, mut blocks): (Vec<Member>, Vec<Block>) = (Vec::new(), Vec::new());
        let mut output = 0;
        for (head, weight) in heads.into_iter().filter(|(_, weight)| *weight > 0.0) {
            if let Some(Member { head: first, .. }) = members.first()
                && (first.width(), &first.text_mean) != (head.width(), &head.text_mean)
            {
                return Err(EnsembleError::Mismatch);
            }
            let weight = weight / sum;
            let mapped_by = head.text_map.as_ref().map(|_| members.len());
            let shared = blocks.iter().position(|block| mapped_by.is_none() && block.mapped_by.is_none());
            let block = shared.unwrap_or_else(|| {
                blocks.push(Block { first: output, weight: 0.0, mapped_by });
                output += head.output;
                blocks.len() - 1
            });
            blocks[block].weight += weight;
            members.push(Member { head, weight, block });
        }
        if members.is_empty() {
            return Err(EnsembleError::Empty);
        }
        Ok(Self { members, blocks, output })
    }

    /// Returns the heads in order, with their weights, whose sum is 1.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&TextHead, f64)> {
        self.members.iter().map(|member| (&member.head, member.weight))
    }

    /// Returns the width of a feature.
    pub fn input(&self) -> usize {
        self.members.first().map_or(0, |member| member.head.width())
    }

    /// Returns the width of the vectors that are compared.
    pub fn output(&self) -> usize {
        self.output
    }

    /// Returns the mean of the captions in training.
    pub fn text_mean(&self) -> &[f32] {
        self.members.first().map_or(&[], |member| &member.head.text_mean)
    }

    /// Returns the factor of the similarities: the weighted geometric mean of those of the heads.
    pub fn scale(&self) -> f32 {
        if let [member] = self.members.as_slice() {
            return member.head.scale();
        }
        let log = |member: &Member| member.weight * f64::from(member.head.scale()).ln();
        self.members.iter().map(log).sum::<f64>().exp() as f32
    }

    /// Combines the vectors that each head maps images to, `[images, output of the head]`, to `[images, output]`.
    pub fn combine_images(&self, vectors: &[Vec<f32>]) -> Vec<f32> {
        if let [own] = vectors {
            return own.clone();
        }
        let images = vectors.first().map_or(0, |own| own.len() / self.members[0].head.output.max(1));
        let mut all = vec![0.0; images * self.output];
        for (member, own) in self.members.iter().zip(vectors) {
            let Block { first, weight, .. } = self.blocks[member.block];
            let (factor, width) = ((member.weight / weight.sqrt()) as f32, member.head.output);
            for (row, own) in all.chunks_exact_mut(self.output).zip(own.chunks_exact(width.max(1))) {
                let block = &mut row[first..first + width];
                block.iter_mut().zip(own).for_each(|(sum, value)| *sum += factor * value);
            }
        }
        all
    }

    /// Maps caption embeddings, `[rows, embedding]`, to the vectors that images are compared with, `[rows, output]`: the mean of
    /// the training captions is subtracted, and the maps of captions applied. All have unit length.
    pub fn map_captions(&self, vectors: Vec<f32>) -> Vec<f32> {
        self.map_centred(vectors, self.text_mean())
    }

    /// As [`Ensemble::map_captions`], with another mean.
    pub fn map_centred(&self, mut vectors: Vec<f32>, mean: &[f32]) -> Vec<f32> {
        if let [member] = self.members.as_slice() {
            return member.head.map_centred(vectors, mean);
        }
        centre_and_normalise(&mut vectors, mean);
        self.combine_captions(&vectors)
    }

    /// As [`Ensemble::map_captions`], for embeddings that are centred and of unit length.
    pub fn combine_captions(&self, centred: &[f32]) -> Vec<f32> {
        let embedding = self.text_mean().len().max(1);
        let mut all = vec![0.0; centred.len() / embedding * self.output];
        for Block { first, weight, mapped_by } in &self.blocks {
            let map = mapped_by.and_then(|member| self.members[member].head.text_map.as_ref());
            let mapped = map.map(|map| map.apply(centred));
            let (own, width) = match (&mapped, map) {
                (Some(mapped), Some(map)) => (mapped.as_slice(), map.bias.len()),
                _ => (centred, embedding),
            };
            let factor = weight.sqrt() as f32;
            for (row, own) in all.chunks_exact_mut(self.output).zip(own.chunks_exact(width.max(1))) {
                let block = &mut row[*first..first + width];
                block.iter_mut().zip(own).for_each(|(value, own)| *value = factor * own);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::train::text::{Columns, TextMap};

    fn head(seed: usize, input: usize, map: Option<TextMap>) -> TextHead {
        let output = map.as_ref().map_or(3, |map| map.bias.len());
        let value = |at: usize| ((at * 7 + seed * 13) as f32 * 0.7).sin();
        let weight = (0..output * input).map(value).collect();
        TextHead::from_weight([vec![0.1; input], vec![2.0; input], vec![0.2; 3]], weight, map, 5.0)
    }

    fn map(output: usize) -> TextMap {
        TextMap { weight: (0..output * 3).map(|at| (at as f32).cos()).collect(), bias: vec![0.25; output] }
    }

    fn unit(values: &[f32], dim: usize) -> Vec<f32> {
        let mut own = values.to_vec();
        centre_and_normalise(&mut own, &vec![0.0; dim]);
        own
    }

    fn dot(one: &[f32], other: &[f32]) -> f64 {
        one.iter().zip(other).map(|(one, other)| f64::from(one * other)).sum()
    }

    proptest! {
        #[test]
        fn score_is_the_weighted_mean_of_cosines(
            weights in prop::collection::vec(0.0f64..3.0, 4),
            values in prop::collection::vec(-1.0f32..1.0, 4 * 4),
            caption in prop::collection::vec(-1.0f32..1.0, 3),
        ) {
            prop_assume!(weights.iter().sum::<f64>() > 0.1 && caption.iter().any(|value| value.abs() > 0.1));
            let heads = [head(1, 4, None), head(2, 4, Some(map(2))), head(3, 4, None), head(4, 4, Some(map(4)))];
            let ensemble = Ensemble::new(heads.iter().cloned().zip(weights.iter().copied()).collect()).unwrap();
            let images: Vec<Vec<f32>> =
                heads.iter().zip(values.chunks(4)).map(|(head, own)| unit(&own[..head.output], head.output)).collect();
            let used: Vec<Vec<f32>> =
                images.iter().zip(&weights).filter(|(_, weight)| **weight > 0.0).map(|(own, _)| own.clone()).collect();
            let image = ensemble.combine_images(&used);
            let text = ensemble.map_captions(caption.clone());
            prop_assert!((dot(&text, &text) - 1.0).abs() < 1e-5 && dot(&image, &image) < 1.0 + 1e-5);
            let cosine = |(head, image): (&TextHead, &Vec<f32>)| dot(image, &head.map_captions(caption.clone()));
            let sum: f64 = weights.iter().sum();
            let expected: f64 = heads.iter().zip(&images).map(cosine).zip(&weights).map(|(own, weight)| own * weight / sum).sum();
            prop_assert!((dot(&image, &text) - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn one_head_maps_to_its_own_bits() {
        for map in [None, Some(map(2))] {
            let head = head(5, 4, map);
            let ensemble = Ensemble::from(head.clone());
            let captions = vec![0.3, -0.8, 0.1, 0.9, 0.4, -0.2];
            assert_eq!(ensemble.map_captions(captions.clone()), head.map_captions(captions));
            let images = vec![0.6; 2 * head.output];
            assert_eq!(ensemble.combine_images(std::slice::from_ref(&images)), images);
            assert_eq!((ensemble.scale(), ensemble.output()), (head.scale(), head.output));
        }
    }

    #[test]
    fn heads_of_other_features_or_of_no_weight_are_refused() {
        let columns = Some(Columns { first: 2, of: 6 });
        let both = vec![(head(1, 4, None), 1.0), (head(2, 4, None).with_columns(columns), 1.0)];
        assert_eq!(Ensemble::new(both), Err(EnsembleError::Mismatch));
        assert_eq!(Ensemble::new(vec![(head(1, 4, None), 0.0)]), Err(EnsembleError::Empty));
        let parts = (0..2).map(|at| (head(at, 3, None).with_columns(Some(Columns { first: 3 * at, of: 6 })), 1.0));
        let ensemble = Ensemble::new(parts.collect()).unwrap();
        assert_eq!((ensemble.input(), ensemble.output()), (6, 3));
    }
}
