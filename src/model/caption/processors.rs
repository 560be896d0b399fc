//! Changes of the scores before the next token is chosen, in the order of transformers.

use super::generation::Generation;

/// Changes the scores of all tokens after `tokens`, the caption so far with its first token.
pub(super) fn process(generation: &Generation, tokens: &[u32], scores: &mut [f32]) {
    if let Some(penalty) = generation.repetition_penalty {
        penalise_repetition(penalty, tokens, scores);
    }
    ban_repeated_sequences(generation.no_repeat, tokens, scores);
    if tokens.len() < generation.min_length {
        ban(&generation.ends, scores);
    }
    if let (Some(first), 1) = (generation.forced_first, tokens.len()) {
        force(&[first], scores);
    }
    if !generation.forced_last.is_empty() && tokens.len() + 1 == generation.max_length {
        force(&generation.forced_last, scores);
    }
    ban(&generation.suppressed, scores);
    let begin = 1 + usize::from(generation.forced_first.is_some());
    if tokens.len() == begin {
        ban(&generation.suppressed_first, scores);
    }
}

/// Makes tokens impossible. A token outside the vocabulary cannot be generated anyway.
fn ban(tokens: &[u32], scores: &mut [f32]) {
    for token in tokens {
        if let Some(score) = scores.get_mut(*token as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Makes all other tokens impossible.
fn force(tokens: &[u32], scores: &mut [f32]) {
    scores.fill(f32::NEG_INFINITY);
    for token in tokens {
        if let Some(score) = scores.get_mut(*token as usize) {
            *score = 0.0;
        }
    }
}

/// Makes the tokens so far less likely, or more likely with a penalty below 1 (Keskar et al. 2019).
fn penalise_repetition(penalty: f32, tokens: &[u32], scores: &mut [f32]) {
    let mut seen = tokens.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Bans every token that would complete a second occurrence of a sequence of `length` tokens.
fn ban_repeated_sequences(length: usize, tokens: &[u32], scores: &mut [f32]) {
    if length == 0 || tokens.len() < length {
        return;
    }
    let suffix = &tokens[tokens.len() + 1 - length..];
    let completions =
        tokens.windows(length).filter(|window| window.starts_with(suffix)).filter_map(|window| window.last());
    let completions: Vec<u32> = completions.copied().collect();
    ban(&completions, scores);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn allowed_tokens_never_repeat_a_sequence(
            picks in prop::collection::vec(0usize..6, 0..40), length in 1usize..5,
        ) {
            let mut tokens = vec![0_u32];
            for pick in picks {
                let mut scores = vec![0.0; 6];
                ban_repeated_sequences(length, &tokens, &mut scores);
                let allowed: Vec<usize> = (0..6).filter(|token| scores[*token] == 0.0).collect();
                let Some(token) = allowed.get(pick % allowed.len().max(1)) else { break };
                tokens.push(*token as u32);
                let mut seen: Vec<&[u32]> = tokens.windows(length).collect();
                let count = seen.len();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), count, "{:?}", tokens);
            }
        }
    }
}
