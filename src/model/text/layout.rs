//! Names and shapes of a text encoder's tensors in published checkpoints.

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

/// Prefixes of tensors for pre-training or classification, which the encoder does not use.
const IGNORED: [&str; 5] = ["pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids"];

/// Returns the name of a module of block `index`.
pub(super) fn block_key(index: usize, part: &str) -> String {
    format!("encoder.layer.{index}.{part}")
}

/// Returns the published name of a tensor without the family's prefix; `None` if the encoder does not use it.
pub(super) fn published_name(name: &str) -> Option<String> {
    let bare = ["bert.", "roberta."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if IGNORED.iter().any(|prefix| bare.starts_with(prefix)) {
        return None;
    }
    // Names of checkpoints that were converted from TensorFlow.
    Some(bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"))
}

/// Returns name and shape of every tensor that the configuration implies.
pub(super) fn expected_shapes(config: &TextConfig) -> BTreeMap<String, Vec<usize>> {
    let (hidden, inner) = (config.hidden, config.inner);
    let mut shapes: BTreeMap<String, Vec<usize>> = [
        (WORDS.to_owned(), vec![config.vocabulary, hidden]),
        (POSITIONS.to_owned(), vec![config.positions, hidden]),
        (TYPES.to_owned(), vec![config.types, hidden]),
    ]
    .into();
    let mut add_layer = |name: &str, weight: Vec<usize>, bias: usize| {
        shapes.insert(format!("{name}.weight"), weight);
        shapes.insert(format!("{name}.bias"), vec![bias]);
    };
    add_layer(FIRST_NORM, vec![hidden], hidden);
    for index in 0..config.layers {
        let key = |part: &str| block_key(index, part);
        for part in QUERY_KEY_VALUE.into_iter().chain([ATTENTION_OUTPUT]) {
            add_layer(&key(part), vec![hidden, hidden], hidden);
        }
        add_layer(&key(INNER), vec![inner, hidden], inner);
        add_layer(&key(OUTER), vec![hidden, inner], hidden);
        for norm in [ATTENTION_NORM, OUTPUT_NORM] {
            add_layer(&key(norm), vec![hidden], hidden);
        }
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_removed_and_unused_tensors_skipped() {
        for name in
            ["bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight", "roberta.embeddings.LayerNorm.weight"]
        {
            assert_eq!(published_name(name).as_deref(), Some("embeddings.LayerNorm.weight"));
        }
        for name in ["pooler.dense.weight", "bert.pooler.dense.bias", "cls.predictions.bias", "lm_head.dense.weight"] {
            assert_eq!(published_name(name), None);
        }
    }
}
