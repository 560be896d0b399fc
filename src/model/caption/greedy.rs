//! Greedy search: the most likely token each time.

use super::generation::Generation;
use super::processors::process;
use super::search::Search;

/// Caption of one image in progress.
pub(super) struct GreedySearch {
    /// Tokens so far, with the first one.
    tokens: Vec<u32>,
    done: bool,
}

impl Search for GreedySearch {
    fn new(generation: &Generation) -> Self {
        Self { tokens: vec![generation.start], done: false }
    }

    fn advance(&mut self, generation: &Generation, logits: &mut [f32]) -> Vec<usize> {
        process(generation, &self.tokens, logits);
        let first = (0_u32, f32::NEG_INFINITY);
        let (token, _) = logits
            .iter()
            .zip(0..)
            .fold(first, |best, (score, token)| if *score > best.1 { (token, *score) } else { best });
        self.tokens.push(token);
        self.done = generation.ends.contains(&token) || self.tokens.len() >= generation.max_length;
        vec![0]
    }

    fn is_done(&self) -> bool {
        self.done
    }

    fn last_tokens(&self, to: &mut Vec<u32>) {
        to.extend(self.tokens.last());
    }

    fn into_tokens(mut self) -> Vec<u32> {
        self.tokens.split_off(1)
    }
}
