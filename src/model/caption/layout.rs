//! Names and shapes of a decoder's tensors in published checkpoints, without the prefix `decoder.`.

use std::collections::BTreeMap;

use super::config::{DecoderConfig, DecoderFamily};

/// Prefix of the encoder's tensors.
pub(super) const ENCODER: &str = "encoder.";
/// Prefix of the decoder's tensors.
pub(super) const DECODER: &str = "decoder.";
/// Projection of the encoder's states to the width of the decoder, where they differ.
pub(super) const BRIDGE: &str = "enc_to_dec_proj";

/// Names of modules; those of a block follow `blocks` and the block's index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub(super) words: &'static str,
    pub(super) positions: &'static str,
    /// Embeddings of token types; empty if there are none.
    pub(super) types: &'static str,
    /// Norm of the embeddings, or of the last block's output in GPT-2.
    pub(super) outer_norm: &'static str,
    pub(super) blocks: &'static str,
    /// Query, key and value of self-attention; one joined module in GPT-2.
    pub(super) attention: &'static [&'static str],
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) cross_query: &'static str,
    /// Key and value of cross attention; one joined module in GPT-2.
    pub(super) cross_key_value: &'static [&'static str],
    pub(super) cross_output: &'static str,
    pub(super) cross_norm: &'static str,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
    pub(super) mlp_norm: &'static str,
    /// Dense layer and norm before the output layer; empty if there are none.
    pub(super) head_dense: &'static str,
    pub(super) head_norm: &'static str,
    /// Weight of the output layer.
    pub(super) output: &'static str,
    /// Bias of the output layer under either of its names; the first counts if the output layer is tied.
    pub(super) output_bias: [&'static str; 2],
}

const GPT2: Names = Names {
    words: "transformer.wte.weight",
    positions: "transformer.wpe.weight",
    types: "",
    outer_norm: "transformer.ln_f",
    blocks: "transformer.h",
    attention: &["attn.c_attn"],
    attention_output: "attn.c_proj",
    attention_norm: "ln_1",
    cross_query: "crossattention.q_attn",
    cross_key_value: &["crossattention.c_attn"],
    cross_output: "crossattention.c_proj",
    cross_norm: "ln_cross_attn",
    inner: "mlp.c_fc",
    outer: "mlp.c_proj",
    mlp_norm: "ln_2",
    head_dense: "",
    head_norm: "",
    output: "lm_head.weight",
    output_bias: ["", ""],
};

const BERT: Names = Names {
    words: "bert.embeddings.word_embeddings.weight",
    positions: "bert.embeddings.position_embeddings.weight",
    types: "bert.embeddings.token_type_embeddings.weight",
    outer_norm: "bert.embeddings.LayerNorm",
    blocks: "bert.encoder.layer",
    attention: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    cross_query: "crossattention.self.query",
    cross_key_value: &["crossattention.self.key", "crossattention.self.value"],
    cross_output: "crossattention.output.dense",
    cross_norm: "crossattention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    mlp_norm: "output.LayerNorm",
    head_dense: "cls.predictions.transform.dense",
    head_norm: "cls.predictions.transform.LayerNorm",
    output: "cls.predictions.decoder.weight",
    output_bias: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
};

const ROBERTA: Names = Names {
    words: "roberta.embeddings.word_embeddings.weight",
    positions: "roberta.embeddings.position_embeddings.weight",
    types: "roberta.embeddings.token_type_embeddings.weight",
    outer_norm: "roberta.embeddings.LayerNorm",
    blocks: "roberta.encoder.layer",
    head_dense: "lm_head.dense",
    head_norm: "lm_head.layer_norm",
    output: "lm_head.decoder.weight",
    output_bias: ["lm_head.bias", "lm_head.decoder.bias"],
    ..BERT
};

/// Returns the names of a family.
pub(super) fn names(family: DecoderFamily) -> &'static Names {
    match family {
        DecoderFamily::Gpt2 => &GPT2,
        DecoderFamily::Bert => &BERT,
        DecoderFamily::Roberta => &ROBERTA,
    }
}

impl Names {
    /// Returns the name of a module of block `index`.
    pub(super) fn block(&self, index: usize, part: &str) -> String {
        format!("{}.{index}.{part}", self.blocks)
    }
}

/// Returns whether the decoder does not use the tensor `name`: poolers, and the masks that older versions stored.
pub(super) fn is_unused(name: &str) -> bool {
    let masks = [".attn.bias", ".attn.masked_bias", ".crossattention.bias", ".crossattention.masked_bias"];
    name.contains("pooler.dense.") || masks.iter().any(|mask| name.ends_with(mask))
}

/// Returns name and shape of every tensor that the configuration implies. `bias` is the name of the output layer's bias.
pub(super) fn expected_shapes(config: &DecoderConfig, bias: Option<&str>) -> BTreeMap<String, Vec<usize>> {
    let (names, hidden, inner) = (names(config.family), config.hidden, config.inner);
    let gpt2 = config.family == DecoderFamily::Gpt2;
    let mut shapes = BTreeMap::new();
    let mut add = |name: String, shape: Vec<usize>| shapes.insert(name, shape);
    add(names.words.to_owned(), vec![config.vocabulary, hidden]);
    add(names.positions.to_owned(), vec![config.positions, hidden]);
    if !names.types.is_empty() {
        add(names.types.to_owned(), vec![config.types, hidden]);
    }
    let mut modules: Vec<(String, usize, Option<usize>)> = vec![(names.outer_norm.to_owned(), hidden, None)];
    for index in 0..config.layers {
        let mut module = |part: &str, out: usize, input: Option<usize>| {
            modules.push((names.block(index, part), out, input));
        };
        for norm in [names.attention_norm, names.cross_norm, names.mlp_norm] {
            module(norm, hidden, None);
        }
        for part in names.attention {
            module(part, 3 * hidden / names.attention.len(), Some(hidden));
        }
        for part in names.cross_key_value {
            module(part, 2 * hidden / names.cross_key_value.len(), Some(hidden));
        }
        for part in [names.attention_output, names.cross_query, names.cross_output] {
            module(part, hidden, Some(hidden));
        }
        module(names.inner, inner, Some(hidden));
        module(names.outer, hidden, Some(inner));
    }
    if !names.head_dense.is_empty() {
        modules.push((names.head_dense.to_owned(), hidden, Some(hidden)));
        modules.push((names.head_norm.to_owned(), hidden, None));
    }
    for (name, out, input) in modules {
        let weight = match input {
            None => vec![out],
            Some(input) if gpt2 => vec![input, out],
            Some(input) => vec![out, input],
        };
        add(format!("{name}.weight"), weight);
        add(format!("{name}.bias"), vec![out]);
    }
    if !config.tied {
        add(names.output.to_owned(), vec![config.vocabulary, hidden]);
    }
    if let Some(bias) = bias {
        add(bias.to_owned(), vec![config.vocabulary]);
    }
    shapes
}
