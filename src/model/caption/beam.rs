//! Beam search over the captions of one image, step by step as transformers does.
//!
//! transformers searches a batch at once and stops all images together. Once an image cannot improve, its captions are fixed,
//! so the result of an image does not depend on the others and each is searched by itself.

use super::generation::{Generation, Stopping};
use super::processors::process;
use super::search::Search;

/// Score of what is no candidate. Finite, as in transformers, because the sums and quotients of such scores are compared.
const EXCLUDED: f32 = -1e9;

/// Finished caption, or a place for one.
#[derive(Debug, Clone)]
struct Finished {
    tokens: Vec<u32>,
    score: f32,
    /// False for a place without a caption.
    is_complete: bool,
}

/// Continuation of a running caption by one token.
struct Candidate {
    parent: usize,
    token: u32,
    score: f32,
    /// True if the caption ends with this token.
    ends: bool,
}

/// Captions of one image in progress.
pub(super) struct BeamSearch {
    /// Tokens of each beam so far, with the first one.
    running: Vec<Vec<u32>>,
    scores: Vec<f32>,
    /// Best finished captions, best first; as many as beams.
    finished: Vec<Finished>,
    /// False once no running caption can become better than the finished ones.
    improvable: bool,
    done: bool,
}

impl Search for BeamSearch {
    fn new(generation: &Generation) -> Self {
        let (beams, first) = (generation.num_beams, vec![generation.start]);
        // All beams begin equal, so only the first one counts.
        let mut scores = vec![EXCLUDED; beams];
        scores[0] = 0.0;
        Self {
            finished: vec![Finished { tokens: first.clone(), score: EXCLUDED, is_complete: false }; beams],
            running: vec![first; beams],
            scores,
            improvable: true,
            done: false,
        }
    }

    fn advance(&mut self, generation: &Generation, logits: &mut [f32]) -> Vec<usize> {
        let beams = generation.num_beams;
        let vocabulary = logits.len() / beams;
        for ((row, tokens), score) in logits.chunks_exact_mut(vocabulary).zip(&self.running).zip(&self.scores) {
            log_softmax(row);
            process(generation, tokens, row);
            for value in row {
                *value += score;
            }
        }
        let kept = (1 + generation.ends.len()).max(2) * beams;
        let length = self.running[0].len();
        let candidates: Vec<Candidate> = largest(logits, kept)
            .into_iter()
            .map(|at| {
                let token = (at % vocabulary) as u32;
                let ends = generation.ends.contains(&token) || length + 1 >= generation.max_length;
                Candidate { parent: at / vocabulary, token, score: logits[at], ends }
            })
            .collect();
        let running: Vec<f32> =
            candidates.iter().map(|one| if one.ends { one.score + EXCLUDED } else { one.score }).collect();
        let next = largest(&running, beams);
        self.update_finished(generation, &candidates, length);
        self.running = next.iter().map(|at| self.extend(&candidates[*at])).collect();
        self.scores = next.iter().map(|at| running[*at]).collect();
        self.check_end(generation, length + 1, candidates.iter().all(|one| one.ends));
        next.iter().map(|at| candidates[*at].parent).collect()
    }

    fn is_done(&self) -> bool {
        self.done
    }

    fn last_tokens(&self, to: &mut Vec<u32>) {
        to.extend(self.running.iter().filter_map(|tokens| tokens.last()));
    }

    fn into_tokens(self) -> Vec<u32> {
        self.finished.into_iter().next().map(|mut best| best.tokens.split_off(1)).unwrap_or_default()
    }
}

impl BeamSearch {
    fn extend(&self, candidate: &Candidate) -> Vec<u32> {
        let mut tokens = self.running[candidate.parent].clone();
        tokens.push(candidate.token);
        tokens
    }

    /// Merges the captions that end now into the finished ones. `length` counts the tokens before this step.
    fn update_finished(&mut self, generation: &Generation, candidates: &[Candidate], length: usize) {
        let beams = generation.num_beams;
        let is_full = self.is_full() && generation.stopping == Stopping::Early;
        let penalty = power(length, generation.length_penalty);
        let mut merged: Vec<f32> = self.finished.iter().map(|one| one.score).collect();
        for (rank, candidate) in candidates.iter().enumerate() {
            let mut score = candidate.score / penalty;
            // Only the best candidates can finish; the others make sure that enough captions go on.
            for excluded in [is_full, !self.improvable, !(candidate.ends && rank < beams)] {
                score += if excluded { EXCLUDED } else { 0.0 };
            }
            merged.push(score);
        }
        let best = largest(&merged, beams);
        let pick = |at: &usize| {
            if let Some(earlier) = self.finished.get(*at) {
                return earlier.clone();
            }
            let candidate = &candidates[at - beams];
            let is_complete = candidate.ends && at - beams < beams;
            Finished { tokens: self.extend(candidate), score: merged[*at], is_complete }
        };
        self.finished = best.iter().map(pick).collect();
    }

    /// Decides whether the search goes on. `length` counts the tokens of the running captions.
    fn check_end(&mut self, generation: &Generation, length: usize, all_end: bool) {
        let reachable = match generation.stopping {
            Stopping::Never if generation.length_penalty > 0.0 => generation.max_length,
            _ => length,
        };
        let best = self.scores[0] / power(reachable - 1, generation.length_penalty);
        let worst = self.finished.iter().map(|one| one.score).fold(f32::INFINITY, f32::min);
        let can_improve = |one: &Finished| best > if one.is_complete { worst } else { EXCLUDED };
        self.improvable &= self.finished.iter().any(can_improve);
        let is_full = self.is_full() && generation.stopping == Stopping::Early;
        self.done = !self.improvable || is_full || all_end;
    }

    fn is_full(&self) -> bool {
        self.finished.iter().all(|one| one.is_complete)
    }
}

/// Returns the divisor of the score of a caption of `length` new tokens.
fn power(length: usize, penalty: f64) -> f32 {
    (length as f64).powf(penalty) as f32
}

/// Turns logits into logarithms of probabilities.
fn log_softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|value| f64::from(value - largest).exp()).sum();
    let log_sum = sum.ln() as f32;
    for value in logits {
        *value = *value - largest - log_sum;
    }
}

/// Returns the places of the `count` largest values, largest first; of equal values the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for (at, value) in values.iter().enumerate() {
        if best.len() == count && best.last().is_some_and(|last| *value <= values[*last]) {
            continue;
        }
        let place = best.partition_point(|other| values[*other] >= *value);
        best.insert(place, at);
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn largest_values_are_those_of_a_stable_sort(
            values in prop::collection::vec((-4i8..4).prop_map(f32::from), 0..60), count in 1usize..9,
        ) {
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|one, other| values[*other].total_cmp(&values[*one]));
            order.truncate(count);
            prop_assert_eq!(largest(&values, count), order);
        }
    }

    #[test]
    fn log_softmax_is_exact_for_large_logits() {
        let mut values = [1000.0, 1000.0, f32::NEG_INFINITY, 990.0];
        log_softmax(&mut values);
        let expected = -(2.0_f64 + (-10.0_f64).exp()).ln();
        assert!((f64::from(values[0]) - expected).abs() < 1e-6);
        assert!(values[2].is_infinite() && values[2] < 0.0);
    }
}
