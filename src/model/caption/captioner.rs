//! Encoder and decoder on a device: maps pixels to token ids.

use std::borrow::BorrowMut;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::beam::BeamSearch;
use super::checkpoint::CaptionCheckpoint;
use super::generation::Generation;
use super::greedy::GreedySearch;
use super::layout::BRIDGE;
use super::network::Decoder;
use super::search::generate;
use crate::model::block::{Linear, cast_to};
use crate::model::checkpoint::Pool;
use crate::model::error::ModelError;
use crate::model::extractor::{ExtractOptions, Extractor, Numerics};
use crate::model::kernels::Kernels;
use crate::model::load::Loader;

/// Captioning model on the device `B::Device`.
#[derive(Debug)]
pub struct Captioner<B: Backend> {
    encoder: Extractor<B>,
    bridge: Option<Linear<B>>,
    decoder: Decoder<B>,
    generation: Generation,
    size_px: u32,
}

impl<B: Backend> Captioner<B> {
    /// Reads the tensors one at a time and uploads them to `device`. Images have `size_px` pixels a side.
    ///
    /// # Errors
    /// When the encoder cannot work at `size_px`, or a file cannot be read.
    pub fn load(
        checkpoint: &CaptionCheckpoint,
        size_px: u32,
        numerics: Numerics,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        let config = &checkpoint.decoder;
        let options = ExtractOptions { size_px, layers: vec![-1], pool: Pool::Default };
        let read = |keys: &[String]| checkpoint.read(keys);
        let loader =
            Loader { read: &read, device, format: numerics.format, norm_epsilon: config.norm_epsilon, direct: None };
        let bridge = if checkpoint.bridged {
            Some(loader.linear(BRIDGE, checkpoint.encoder.hidden_size(), config.hidden, true)?)
        } else {
            None
        };
        // Own kernels return no states of tokens.
        let encoder_numerics = Numerics { kernels: Kernels::Burn, ..numerics };
        Ok(Self {
            encoder: Extractor::load(&checkpoint.encoder, &options, encoder_numerics, device)?,
            bridge,
            decoder: Decoder::load(config, checkpoint.output_bias, &loader)?,
            generation: checkpoint.generation().clone(),
            size_px,
        })
    }

    /// Returns the largest number of tokens of a caption.
    pub fn max_new_tokens(&self) -> usize {
        self.generation.max_new_tokens()
    }

    /// Generates a caption for each image of `pixels`, `[rows, size_px, size_px, 3]`, RGB, row-major: its tokens after the first
    /// one, up to the token that ends it.
    ///
    /// # Errors
    /// When the length of `pixels` does not match `rows`, the device fails, or the weights give logits that are not finite.
    pub fn captions<P>(&self, pixels: P, rows: usize) -> Result<Vec<Vec<u32>>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        self.captions_with(&self.generation, pixels, rows)
    }

    /// Generates captions of black images, so that all kernels are compiled and tuned: the longest ones, for `rows` images and
    /// for every power of two below.
    ///
    /// Images whose captions are complete leave their batch, and tuning rounds sizes up to powers of two.
    ///
    /// # Errors
    /// As [`Self::captions`].
    pub fn warm_up(&self, rows: usize) -> Result<(), ModelError> {
        let mut longest = self.generation.clone();
        longest.min_length = usize::MAX;
        let image_bytes = 3 * (self.size_px as usize).pow(2);
        for rows in warm_up_sizes(rows) {
            self.captions_with(&longest, vec![0; rows * image_bytes], rows)?;
        }
        Ok(())
    }

    fn captions_with<P>(&self, generation: &Generation, pixels: P, rows: usize) -> Result<Vec<Vec<u32>>, ModelError>
    where
        P: BorrowMut<Vec<u8>> + AsRef<[u8]> + Send + 'static,
    {
        let Some(states) = self.encoder.states(pixels, rows)? else { return Ok(Vec::new()) };
        let states = self.to_decoder(states);
        if generation.num_beams == 1 {
            generate::<GreedySearch, B>(&self.decoder, generation, states)
        } else {
            generate::<BeamSearch, B>(&self.decoder, generation, states)
        }
    }

    /// Projects the encoder's states to the decoder's width.
    fn to_decoder(&self, states: Tensor<B, 3>) -> Tensor<B, 3> {
        let states = cast_to(states, self.decoder.format());
        let Some(bridge) = &self.bridge else { return states };
        let [rows, tokens, hidden] = states.dims();
        let projected = bridge.forward(states.reshape([rows * tokens, hidden]));
        let [_, width] = projected.dims();
        projected.reshape([rows, tokens, width])
    }
}

/// Returns `rows` and every power of two below it, in descending order: for each batch of at most `rows`, one of them is rounded
/// up to the same power of two.
fn warm_up_sizes(rows: usize) -> impl Iterator<Item = usize> {
    let below = std::iter::successors(Some(rows.next_power_of_two() / 2), |size| Some(size / 2));
    std::iter::once(rows).chain(below).take_while(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_is_tuned_as_a_size_of_the_warm_up() {
        assert_eq!(warm_up_sizes(24).collect::<Vec<_>>(), [24, 16, 8, 4, 2, 1]);
        assert_eq!(warm_up_sizes(0).count(), 0);
        // A batch of a beam search has `beams` rows for each image.
        for (rows, beams) in (1..=130).flat_map(|rows| (1..=6).map(move |beams| (rows, beams))) {
            let tuned: Vec<usize> = warm_up_sizes(rows).map(|size| (size * beams).next_power_of_two()).collect();
            for images in 1..=rows {
                assert!(tuned.contains(&(images * beams).next_power_of_two()), "{images} of {rows}, {beams} beams");
            }
        }
    }
}
