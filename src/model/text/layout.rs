//! Names and shapes of a text encoder's tensors in published files.

use std::collections::BTreeMap;

use super::checkpoint::TextConfig;

pub(super) const WORDS: &str = "embeddings.word_embeddings.weight";
pub(super) const POSITIONS: &str = "embeddings.position_embeddings.weight";
pub(super) const TYPES: &str = "embeddings.token_type_embeddings.weight";
pub(super) const FIRST_NORM: &str = "embeddings.LayerNorm";
pub(super) const QUERY_KEY_VALUE: [&str; 3] = ["attention.self.query", "attention.self.key", "attention.self.value"];
pub(super) const ATTENTION_OUTPUT: &str = "attention.output.dense";
pub(super) const ATTENTION_NORM: &str = "attention.output.LayerNorm";
pub(super) const INNER: &str = "intermediate.dense";
pub(super) const OUTER: &str = "output.dense";
pub(super) const OUTPUT_NORM: &str = "output.LayerNorm";

/// What only pre-training and classification use.
const IGNORED: [&str; 5] = ["pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids"];

/// The name of a part of block `index`.
pub(super) fn block_key(index: usize, part: &str) -> String {
    format!("encoder.layer.{index}.{part}")
}

/// The published name that a name in a file stands for, without the family's prefix; `None` where the encoder does not use it.
pub(super) fn published(name: &str) -> Option<String> {
    let bare = ["bert.", "roberta."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if IGNORED.iter().any(|prefix| bare.starts_with(prefix)) {
        return None;
    }
    // As TensorFlow called them.
    Some(bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"))
}

/// Every tensor that the configuration asks for, with its shape.
pub(super) fn expected(config: &TextConfig) -> BTreeMap<String, Vec<usize>> {
    let (hidden, inner) = (config.hidden, config.inner);
    let mut shapes: BTreeMap<String, Vec<usize>> = [
        (WORDS.to_owned(), vec![config.vocabulary, hidden]),
        (POSITIONS.to_owned(), vec![config.positions, hidden]),
        (TYPES.to_owned(), vec![config.types, hidden]),
    ]
    .into();
    let mut both = |name: &str, weight: Vec<usize>, bias: usize| {
        shapes.insert(format!("{name}.weight"), weight);
        shapes.insert(format!("{name}.bias"), vec![bias]);
    };
    both(FIRST_NORM, vec![hidden], hidden);
    for index in 0..config.layers {
        let key = |part: &str| block_key(index, part);
        for part in QUERY_KEY_VALUE.into_iter().chain([ATTENTION_OUTPUT]) {
            both(&key(part), vec![hidden, hidden], hidden);
        }
        both(&key(INNER), vec![inner, hidden], inner);
        both(&key(OUTER), vec![hidden, inner], hidden);
        for norm in [ATTENTION_NORM, OUTPUT_NORM] {
            both(&key(norm), vec![hidden], hidden);
        }
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_either_prefix_are_the_same_and_those_of_training_are_none() {
        for name in
            ["bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight", "roberta.embeddings.LayerNorm.weight"]
        {
            assert_eq!(published(name).as_deref(), Some("embeddings.LayerNorm.weight"));
        }
        for name in ["pooler.dense.weight", "bert.pooler.dense.bias", "cls.predictions.bias", "lm_head.dense.weight"] {
            assert_eq!(published(name), None);
        }
    }
}
