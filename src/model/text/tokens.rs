//! Captions as token numbers, and batches of captions of similar length.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::{Tokenizer, TruncationParams};

use super::TextCheckpoint;
use crate::model::error::ModelError;

/// An encoder's tokenizer, as `tokenizer.json` describes it, with what is put before every caption.
pub struct Tokens {
    tokenizer: Tokenizer,
    prefix: String,
    lower_case: bool,
    vocabulary: usize,
}

impl Tokens {
    /// Reads `tokenizer.json`. Captions longer than the encoder takes are cut at their end.
    ///
    /// # Errors
    /// When it is damaged, or of a kind that the crate does not know.
    pub fn load(checkpoint: &TextCheckpoint, prefix: &str) -> Result<Self, ModelError> {
        let path = checkpoint.tokenizer_path();
        let damaged = |reason: String| ModelError::Json { path: path.clone(), reason };
        let load = || -> tokenizers::Result<Tokenizer> {
            let mut tokenizer = Tokenizer::from_file(&path)?;
            tokenizer.with_padding(None);
            let max_length = checkpoint.max_tokens();
            tokenizer.with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))?;
            Ok(tokenizer)
        };
        // A file that nobody made by the crate may break what it takes for granted.
        let loaded = catch_unwind(AssertUnwindSafe(load)).map_err(|_| damaged("it is no tokenizer".to_owned()))?;
        Ok(Self {
            tokenizer: loaded.map_err(|cause| damaged(cause.to_string()))?,
            prefix: prefix.to_owned(),
            lower_case: checkpoint.modules.lower_case,
            vocabulary: checkpoint.config.vocabulary,
        })
    }

    /// The token numbers of each caption, its special tokens included. The work is spread over the processor's cores.
    ///
    /// # Errors
    /// When the tokenizer fails, or gives a number outside the encoder's vocabulary.
    pub fn encode(&self, captions: &[&str]) -> Result<Vec<Vec<u32>>, ModelError> {
        let failed = |reason: String| ModelError::Tokenizer { reason };
        let inputs: Vec<String> = captions
            .iter()
            .map(|caption| format!("{}{caption}", self.prefix))
            .map(|text| if self.lower_case { text.to_lowercase() } else { text })
            .collect();
        let encode = || self.tokenizer.encode_batch_fast(inputs, true);
        let encoded = catch_unwind(AssertUnwindSafe(encode)).map_err(|_| failed("it panicked".to_owned()))?;
        let encoded = encoded.map_err(|cause| failed(cause.to_string()))?;
        let numbers: Vec<Vec<u32>> = encoded.iter().map(|encoding| encoding.get_ids().to_vec()).collect();
        match numbers.iter().flatten().find(|number| **number as usize >= self.vocabulary) {
            Some(number) => {
                let reason = format!("token `{number}` is outside the encoder's vocabulary of {}", self.vocabulary);
                Err(failed(reason))
            }
            None => Ok(numbers),
        }
    }
}

/// Captions that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which captions.
    pub members: Vec<usize>,
    /// Tokens that each of them is filled up to.
    pub tokens: usize,
}

/// Sorts captions by their tokens and cuts them into batches of at most about `budget` tokens, padding counted. With `fixed`
/// the lengths are rounded up, so that a device sees few shapes.
pub fn batches(lengths: &[usize], budget: usize, fixed: bool) -> Vec<Batch> {
    let padded = |length: usize| match length.max(1) {
        length if !fixed => length,
        length if length <= 64 => length.next_multiple_of(16),
        length => length.next_multiple_of(64),
    };
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // A stable sort: equals stay in their order.
    order.sort_by_key(|caption| lengths[*caption]);
    let mut batches: Vec<Batch> = Vec::new();
    for caption in order {
        let tokens = padded(lengths[caption]);
        match batches.last_mut() {
            Some(open) if (open.members.len() + 1) * tokens <= budget && (!fixed || open.tokens == tokens) => {
                open.members.push(caption);
                open.tokens = tokens;
            }
            _ => batches.push(Batch { members: vec![caption], tokens }),
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
        fn each_caption_is_in_one_batch_that_it_fits(
            lengths in prop::collection::vec(0usize..300, 0..200), budget in 1usize..2000, fixed: bool,
        ) {
            let batches = batches(&lengths, budget, fixed);
            let mut members: Vec<usize> = batches.iter().flat_map(|batch| batch.members.clone()).collect();
            members.sort_unstable();
            prop_assert_eq!(members, (0..lengths.len()).collect::<Vec<_>>());
            for Batch { members, tokens } in &batches {
                prop_assert!(members.len() == 1 || members.len() * tokens <= budget);
                prop_assert!(*tokens > 0 && members.iter().all(|member| lengths[*member] <= *tokens));
            }
        }
    }
}
