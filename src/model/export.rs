//! Backbone and trained head as a directory that transformers opens.

use std::path::Path;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::model::checkpoint::Checkpoint;
use crate::model::checkpoint::Pool;
use crate::model::classifier;
use crate::model::classifier::Classifier;
use crate::model::config::parse_json;
use crate::model::error::ModelError;
use crate::model::layout;
use crate::model::weights;
use crate::model::weights::Entry;
use crate::model::weights::Format;
use crate::model::weights::Planned;

/// Writes `model.safetensors`, `preprocessor_config.json` and `config.json` to `out_dir`, which is created if absent.
///
/// `AutoModelForImageClassification` opens the result: the backbone in its own number formats, under the family's prefix, the
/// head in f32, `labels[i]` as the name of class `i`. Tensors are copied as a stream. `config.json` is written last.
///
/// The family's classifier sees the last block's output under [`Pool::Default`], so only a head
/// trained on such features is the same model there. At another size than the checkpoint's, transformers has to be called
/// with `interpolate_pos_encoding=True` for `vit`; `dinov2` interpolates by itself.
///
/// # Errors
/// When the head's dimensions are not those of the labels and of the backbone's default feature, or a file cannot be
/// read or written.
pub fn export_hf(
    checkpoint: &Checkpoint,
    head: &Classifier,
    labels: &[String],
    out_dir: &Path,
) -> Result<(), ModelError> {
    let dim = checkpoint.feature_dim(Pool::Default);
    let fits = head.dim == dim
        && head.classes == labels.len()
        && head.bias.len() == head.classes
        && Some(head.weight.len()) == head.classes.checked_mul(head.dim);
    if !fits {
        let reason = format!(
            "it has `{}` classes and features of `{}` values; `{}` labels and the backbone's default feature of `{dim}` values ask for others",
            head.classes,
            head.dim,
            labels.len(),
        );
        return Err(ModelError::Classifier { reason });
    }
    let config_path = checkpoint.config_path();
    let text = std::fs::read(&config_path).map_err(ModelError::read(&config_path))?;
    let config: Map<String, Value> = parse_json(&text, &config_path)?;

    std::fs::create_dir_all(out_dir).map_err(ModelError::write(out_dir))?;
    write_weights(checkpoint, head, &out_dir.join("model.safetensors"))?;
    let preprocessor = out_dir.join("preprocessor_config.json");
    match checkpoint.preprocessor_path() {
        Some(path) => {
            let text = std::fs::read(&path).map_err(ModelError::read(&path))?;
            std::fs::write(&preprocessor, text).map_err(ModelError::write(&preprocessor))?;
        }
        None => write_json(&preprocessor, &checkpoint.preprocessor().to_json(checkpoint.family()))?,
    }
    write_json(&out_dir.join("config.json"), &classifier_config(config, checkpoint, labels))
}

/// The backbone's configuration with the classifier's keys.
fn classifier_config(mut config: Map<String, Value>, checkpoint: &Checkpoint, labels: &[String]) -> Value {
    let names: Map<String, Value> =
        labels.iter().enumerate().map(|(class, label)| (class.to_string(), json!(label))).collect();
    let classes: Map<String, Value> =
        labels.iter().enumerate().map(|(class, label)| (label.clone(), json!(class))).collect();
    config.insert("architectures".to_owned(), json!([checkpoint.family().classifier_class()]));
    config.insert("num_labels".to_owned(), json!(labels.len()));
    config.insert("id2label".to_owned(), Value::Object(names));
    config.insert("label2id".to_owned(), Value::Object(classes));
    Value::Object(config)
}

fn write_weights(checkpoint: &Checkpoint, head: &Classifier, path: &Path) -> Result<(), ModelError> {
    let prefix = checkpoint.family().name();
    let entries: Vec<(String, &Entry)> =
        checkpoint.backbone().map(|(key, entry)| (format!("{prefix}.{key}"), entry)).collect();
    let mut plan: Vec<Planned> = entries
        .iter()
        .map(|(name, entry)| Planned { name: name.clone(), format: entry.format, shape: entry.shape.clone() })
        .collect();
    plan.extend(classifier::planned(head.classes, head.dim));
    let hidden = checkpoint.hidden_size();
    let mask = format!("{prefix}.{}", layout::MASK);
    if checkpoint.config().mask_token {
        // transformers reports a mask token that is missing; zeros are what it starts with.
        let (format, shape) =
            checkpoint.mask().map_or((Format::F32, vec![1, hidden]), |entry| (entry.format, entry.shape.clone()));
        plan.push(Planned { name: mask.clone(), format, shape });
    }
    let store = checkpoint.store();
    weights::write(path, plan, |name, put| match name {
        classifier::WEIGHT => weights::put_f32(&head.weight, put),
        classifier::BIAS => weights::put_f32(&head.bias, put),
        name if name == mask => match checkpoint.mask() {
            Some(entry) => store.stream(entry, put),
            None => weights::put_f32(&vec![0.0; hidden], put),
        },
        name => match entries.binary_search_by(|(key, _)| key.as_str().cmp(name)) {
            Ok(index) => store.stream(entries[index].1, put),
            // Unreachable, as the plan was made from these entries; a short file is refused all the same.
            Err(_) => Ok(()),
        },
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let mut text = format!("{value:#}");
    text.push('\n');
    std::fs::write(path, text).map_err(ModelError::write(path))
}
