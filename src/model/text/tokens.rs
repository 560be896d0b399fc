//! Maps captions to token ids and batches captions of similar length.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
use tokenizers::{Tokenizer, TruncationParams};

use super::TextCheckpoint;
use crate::model::error::ModelError;

/// Tokenizer of a text encoder, from `tokenizer.json`, with the prefix of every caption.
pub struct CaptionTokenizer {
    tokenizer: Tokenizer,
    prefix: String,
    vocabulary: usize,
}

impl CaptionTokenizer {
    /// Reads `tokenizer.json`. Captions are padded if the encoder was trained so; those that exceed the encoder's maximum
    /// length are truncated at the end.
    ///
    /// # Errors
    /// When the file is damaged or its tokenizer is not supported.
    pub fn load(checkpoint: &TextCheckpoint, prefix: &str) -> Result<Self, ModelError> {
        let path = checkpoint.tokenizer_path();
        let damaged = |reason: String| ModelError::Json { path: path.clone(), reason };
        let load = || -> tokenizers::Result<Tokenizer> {
            let mut tokenizer = Tokenizer::from_file(&path)?;
            let bert_lower_case = if checkpoint.paired.is_some() { None } else { checkpoint.bert_lower_case() };
            set_case(&mut tokenizer, bert_lower_case, checkpoint.modules.lower_case);
            let max_length = checkpoint.max_tokens();
            let padding = checkpoint.paired.as_ref().and_then(|paired| paired.padding(max_length, &tokenizer));
            tokenizer.with_padding(padding);
            tokenizer.with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))?;
            Ok(tokenizer)
        };
        if !prefix.is_empty() && !checkpoint.modules.include_prompt {
            let reason =
                format!("its pooling leaves the prefix `{prefix}` out (`include_prompt`), which is not supported");
            return Err(ModelError::Tokenizer { reason });
        }
        // The `tokenizers` crate may panic on an inconsistent file.
        let loaded =
            catch_unwind(AssertUnwindSafe(load)).map_err(|_| damaged("the tokenizers library panicked".to_owned()))?;
        Ok(Self {
            tokenizer: loaded.map_err(|cause| damaged(cause.to_string()))?,
            prefix: prefix.to_owned(),
            vocabulary: checkpoint.config.vocabulary,
        })
    }

    /// Returns the token ids of each caption, including special tokens. Runs on all cores.
    ///
    /// # Errors
    /// When the tokenizer fails or returns an id outside the encoder's vocabulary.
    pub fn encode(&self, captions: &[&str]) -> Result<Vec<Vec<u32>>, ModelError> {
        let failed = |reason: String| ModelError::Tokenizer { reason };
        let inputs: Vec<String> = captions.iter().map(|caption| format!("{}{caption}", self.prefix)).collect();
        let encode = || self.tokenizer.encode_batch_fast(inputs, true);
        let encoded = catch_unwind(AssertUnwindSafe(encode)).map_err(|_| failed("it panicked".to_owned()))?;
        let encoded = encoded.map_err(|cause| failed(cause.to_string()))?;
        let ids: Vec<Vec<u32>> = encoded.iter().map(|encoding| encoding.get_ids().to_vec()).collect();
        match ids.iter().flatten().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => {
                let reason = format!("token `{id}` is outside the encoder's vocabulary of {}", self.vocabulary);
                Err(failed(reason))
            }
            None => Ok(ids),
        }
    }
}

/// Applies `do_lower_case` of `tokenizer_config.json`, as the tokenizer class of BERT does, and of
/// `sentence_bert_config.json`, as sentence-transformers does. Special tokens, such as `[SEP]`, keep their case.
fn set_case(tokenizer: &mut Tokenizer, bert_lower_case: Option<bool>, lower_case: bool) {
    let mut normalizer = tokenizer.get_normalizer().cloned();
    if let (Some(NormalizerWrapper::BertNormalizer(bert)), Some(lower_case)) = (&mut normalizer, bert_lower_case) {
        bert.lowercase = lower_case;
    }
    if lower_case {
        let is_lower_case = |one: &NormalizerWrapper| matches!(one, NormalizerWrapper::Lowercase(_));
        let mut parts: Vec<NormalizerWrapper> = match normalizer {
            Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().to_vec(),
            other => other.into_iter().collect(),
        };
        if !parts.iter().any(is_lower_case) {
            parts.insert(0, NormalizerWrapper::Lowercase(Lowercase));
        }
        normalizer = Some(NormalizerWrapper::Sequence(Sequence::new(parts)));
    }
    tokenizer.with_normalizer(normalizer);
}

/// Batch of captions for the text encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// Indices of the captions.
    pub members: Vec<usize>,
    /// Tokens to which each caption is padded.
    pub tokens: usize,
}

/// Sorts captions by length and splits them into batches of at most about `budget` tokens, including padding.
///
/// With `fixed`, lengths are rounded up, so that a device compiles kernels for few shapes.
pub fn batch_by_length(lengths: &[usize], budget: usize, fixed: bool) -> Vec<TextBatch> {
    let padded = |length: usize| match length.max(1) {
        length if !fixed => length,
        length if length <= 64 => length.next_multiple_of(16),
        length => length.next_multiple_of(64),
    };
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // The sort is stable, so the batches are deterministic.
    order.sort_by_key(|caption| lengths[*caption]);
    let mut batches: Vec<TextBatch> = Vec::new();
    for caption in order {
        let tokens = padded(lengths[caption]);
        match batches.last_mut() {
            Some(open) if (open.members.len() + 1) * tokens <= budget && (!fixed || open.tokens == tokens) => {
                open.members.push(caption);
                open.tokens = tokens;
            }
            _ => batches.push(TextBatch { members: vec![caption], tokens }),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_caption_fits_its_only_batch(
            lengths in prop::collection::vec(0usize..300, 0..200), budget in 1usize..2000, fixed: bool,
        ) {
            let batches = batch_by_length(&lengths, budget, fixed);
            let mut members: Vec<usize> = batches.iter().flat_map(|batch| batch.members.clone()).collect();
            members.sort_unstable();
            prop_assert_eq!(members, (0..lengths.len()).collect::<Vec<_>>());
            for TextBatch { members, tokens } in &batches {
                prop_assert!(members.len() == 1 || members.len() * tokens <= budget);
                prop_assert!(*tokens > 0 && members.iter().all(|member| lengths[*member] <= *tokens));
            }
        }
    }
}
