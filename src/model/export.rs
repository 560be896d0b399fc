//! Exports backbone and trained classifier as a directory that transformers opens.

use std::path::Path;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::model::checkpoint::Checkpoint;
use crate::model::classifier;
use crate::model::classifier::Classifier;
use crate::model::error::ModelError;
use crate::model::json::parse_json_object;
use crate::model::layout;
use crate::model::weights;
use crate::model::weights::Format;
use crate::model::weights::StoredTensor;
use crate::model::weights::TensorSpec;

/// Writes `model.safetensors`, `preprocessor_config.json` and `config.json` to `out_dir`; creates the directory if
/// absent.
///
/// `AutoModelForImageClassification` opens the result. The backbone keeps its number formats and gets the family's
/// prefix, the head is f32, and `labels[i]` is the name of class `i`. Tensors are streamed. `config.json` is written
/// last.
///
/// The classifiers of transformers use the last block's output under `Pool::Default`, so only a head trained on such
/// features gives the same predictions there. For images of another size than the checkpoint's, most families need
/// `interpolate_pos_encoding=True`; `dinov2` interpolates without it.
///
/// # Errors
/// When the dimensions of the head do not match the labels or the backbone's default feature, or a file cannot be read
/// or written.
pub fn export_hf(
    checkpoint: &Checkpoint,
    head: &Classifier,
    labels: &[String],
    out_dir: &Path,
) -> Result<(), ModelError> {
    let family = checkpoint.family();
    let class = family.classifier_class().ok_or(ModelError::NoClassifierClass { family: family.name() })?;
    let dim = checkpoint.default_dim();
    let fits = head.dim == dim
        && head.classes == labels.len()
        && head.bias.len() == head.classes
        && Some(head.weight.len()) == head.classes.checked_mul(head.dim);
    if !fits {
        let reason = format!(
            "it has `{}` classes and features of `{}` values; expected `{}` classes (one a label) and `{dim}` values (the backbone's default feature)",
            head.classes,
            head.dim,
            labels.len(),
        );
        return Err(ModelError::Classifier { reason });
    }
    let config_path = checkpoint.config_path();
    let text = std::fs::read(&config_path).map_err(ModelError::read(&config_path))?;
    let config = parse_json_object(&text, &config_path)?;

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
    write_json(&out_dir.join("config.json"), &classifier_config(config, class, checkpoint, labels))
}

/// Returns the backbone's configuration with the keys of a classifier, whose class and `model_type` are given.
fn classifier_config(
    config: Map<String, Value>,
    (class, model_type): (&str, &str),
    checkpoint: &Checkpoint,
    labels: &[String],
) -> Value {
    let mut config = if checkpoint.config().tower_only {
        // The classifier's configuration is that of the pair of towers.
        Map::from_iter([("vision_config".to_owned(), Value::Object(config))])
    } else {
        config
    };
    config.insert("model_type".to_owned(), json!(model_type));
    let names: Map<String, Value> =
        labels.iter().enumerate().map(|(class, label)| (class.to_string(), json!(label))).collect();
    let classes: Map<String, Value> =
        labels.iter().enumerate().map(|(class, label)| (label.clone(), json!(class))).collect();
    config.insert("architectures".to_owned(), json!([class]));
    config.insert("num_labels".to_owned(), json!(labels.len()));
    config.insert("id2label".to_owned(), Value::Object(names));
    config.insert("label2id".to_owned(), Value::Object(classes));
    Value::Object(config)
}

fn write_weights(checkpoint: &Checkpoint, head: &Classifier, path: &Path) -> Result<(), ModelError> {
    let prefix = checkpoint.family().tensor_prefix();
    // transformers' classifiers on CLIP have no projection.
    let entries: Vec<(String, &StoredTensor)> = checkpoint
        .backbone_tensors()
        .filter(|(key, _)| *key != layout::PROJECTION)
        .map(|(key, entry)| (format!("{prefix}.{key}"), entry))
        .collect();
    let mut specs: Vec<TensorSpec> = entries
        .iter()
        .map(|(name, entry)| TensorSpec { name: name.clone(), format: entry.format, shape: entry.shape.clone() })
        .collect();
    specs.extend(classifier::tensor_specs(head.classes, head.dim));
    let mask = format!("{prefix}.{}", layout::MASK);
    let mask_shape = checkpoint.config().mask_token.clone().unwrap_or_default();
    if !mask_shape.is_empty() {
        // transformers warns about a missing mask token; it initialises one with zeros.
        let (format, shape) = checkpoint
            .mask_token()
            .map_or((Format::F32, mask_shape.clone()), |entry| (entry.format, entry.shape.clone()));
        specs.push(TensorSpec { name: mask.clone(), format, shape });
    }
    let reader = checkpoint.weights();
    weights::write_file(path, specs, |name, sink| match name {
        classifier::WEIGHT => weights::write_f32(&head.weight, sink),
        classifier::BIAS => weights::write_f32(&head.bias, sink),
        name if name == mask => match checkpoint.mask_token() {
            Some(entry) => reader.stream(entry, sink),
            None => weights::write_f32(&vec![0.0; mask_shape.iter().product()], sink),
        },
        name => match entries.binary_search_by(|(key, _)| key.as_str().cmp(name)) {
            Ok(index) => reader.stream(entries[index].1, sink),
            // Unreachable: the specifications come from these tensors. `write_file` rejects a short file anyway.
            Err(_) => Ok(()),
        },
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let mut text = format!("{value:#}");
    text.push('\n');
    std::fs::write(path, text).map_err(ModelError::write(path))
}
