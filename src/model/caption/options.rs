//! Options of generation by name: those that are read, those that cannot change a caption, and all others, which are refused
//! unless they are off.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::error::ModelError;

/// Options that are read.
pub(super) const SUPPORTED: [&str; 16] = [
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
];

/// Options without an effect on the tokens of greedy and beam search: settings of sampling, caches, outputs and assistants, and
/// the padding that follows a caption in a batch.
const NEUTRAL: [&str; 35] = [
    "_commit_hash",
    "_from_model_config",
    "_original_object_hash",
    "assistant_confidence_threshold",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "epsilon_cutoff",
    "eta_cutoff",
    "max_cache_len",
    "max_matching_ngram_size",
    "min_p",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "return_legacy_cache",
    "target_lookbehind",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "transformers_version",
    "typical_p",
    "use_cache",
    "use_mtp",
];

/// Options that are refused, with the number that turns each off. Every other option is off if it is absent, null, false or
/// empty.
const OFF: [(&str, f64); 6] = [
    ("num_return_sequences", 1.0),
    ("num_beam_groups", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("guidance_scale", 1.0),
    ("diversity_penalty", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
];

/// Options whose names are those of generation alone, so that they count in `config.json` too.
const REFUSED: [&str; 13] = [
    "do_sample",
    "penalty_alpha",
    "bad_words_ids",
    "sequence_bias",
    "force_words_ids",
    "constraints",
    "renormalize_logits",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "forced_decoder_ids",
    "stop_strings",
    "watermarking_config",
    "max_time",
];

/// Refuses an option of `generation_config.json` that would change the tokens and is not supported.
pub(super) fn check(options: &Map<String, Value>, path: &Path) -> Result<(), ModelError> {
    let known = |name: &str| SUPPORTED.contains(&name) || NEUTRAL.contains(&name);
    match options.iter().find(|(name, value)| !known(name) && !is_off(name, value)) {
        Some((name, value)) => {
            let reason = format!(
                "`{name}` is `{value}`, and this option of generation is not supported: remove it, if captions without it \
                 will do"
            );
            Err(ModelError::Json { path: path.to_owned(), reason })
        }
        None => Ok(()),
    }
}

/// Keeps the options of generation among the keys of a model's configuration.
pub(super) fn keep(config: &Map<String, Value>) -> Map<String, Value> {
    let counts = |name: &str| {
        SUPPORTED.contains(&name) || REFUSED.contains(&name) || OFF.iter().any(|(option, _)| *option == name)
    };
    let kept = config.iter().filter(|(name, value)| counts(name) && !value.is_null());
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns whether an option has the value that turns it off.
fn is_off(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Number(number) => OFF.iter().any(|(option, off)| *option == name && number.as_f64() == Some(*off)),
        _ => false,
    }
}
