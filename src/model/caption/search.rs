//! Generates the captions of a batch of images: decoder and search in turn, until every caption ends.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::generation::Generation;
use super::network::Decoder;
use crate::model::error::ModelError;

/// Search for the caption of one image.
pub(super) trait Search {
    /// Starts a caption.
    fn new(generation: &Generation) -> Self;

    /// Chooses the next token of each running caption. Returns the running captions, of those before, which they continue.
    ///
    /// `logits`, `[running captions, vocabulary]`, are changed.
    fn advance(&mut self, generation: &Generation, logits: &mut [f32]) -> Vec<usize>;

    /// Returns whether the caption is complete.
    fn is_done(&self) -> bool;

    /// Appends the last token of each running caption.
    fn last_tokens(&self, to: &mut Vec<u32>);

    /// Returns the best caption without its first token.
    fn into_tokens(self) -> Vec<u32>;
}

/// Generates a caption for each image from the states of the encoder, `[images, tokens, hidden]`.
///
/// # Errors
/// When the device fails, or the decoder's logits are not finite.
pub(super) fn generate<S: Search, B: Backend>(
    decoder: &Decoder<B>,
    generation: &Generation,
    states: Tensor<B, 3>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let [images, _, _] = states.dims();
    let mut state = decoder.start(states);
    let beams = generation.num_beams;
    let mut captions: Vec<Option<Vec<u32>>> = vec![None; images];
    let mut searches: Vec<(usize, S)> = (0..images).map(|image| (image, S::new(generation))).collect();
    while !searches.is_empty() {
        let mut tokens = Vec::with_capacity(searches.len() * beams);
        for (_, search) in &searches {
            search.last_tokens(&mut tokens);
        }
        let mut logits = read(decoder.step(&mut state, &tokens))?;
        let share = logits.len() / searches.len();
        let (mut open, mut rows, mut kept) = (Vec::with_capacity(searches.len()), Vec::new(), Vec::new());
        let before = searches.len();
        for (place, ((image, mut search), logits)) in
            searches.into_iter().zip(logits.chunks_exact_mut(share)).enumerate()
        {
            let parents = search.advance(generation, logits);
            if search.is_done() {
                captions[image] = Some(search.into_tokens());
            } else {
                rows.extend(parents.into_iter().map(|parent| place * beams + parent));
                kept.push(place);
                open.push((image, search));
            }
        }
        searches = open;
        if !searches.is_empty() {
            let is_same = beams == 1 && kept.len() == before;
            if !is_same {
                state.select(&rows, (kept.len() < before).then_some(&kept));
            }
        }
    }
    Ok(captions.into_iter().map(Option::unwrap_or_default).collect())
}

/// Copies logits to the host, and refuses those that are not finite.
fn read<B: Backend>(logits: Tensor<B, 2>) -> Result<Vec<f32>, ModelError> {
    let failed = |reason: String| ModelError::Device { reason };
    let data = logits.try_into_data().map_err(|cause| failed(cause.to_string()))?;
    let values = data.convert::<f32>().into_vec::<f32>().map_err(|cause| failed(format!("{cause:?}")))?;
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(failed("the decoder's logits are not finite numbers: the checkpoint's weights are unusable".to_owned()))
}
