//! Saves and loads a linear classifier under the tensor names of transformers.

use std::path::Path;

use crate::model::error::ModelError;
use crate::model::weights;
use crate::model::weights::Format;
use crate::model::weights::TensorSpec;
use crate::model::weights::WeightReader;

pub(super) const WEIGHT: &str = "classifier.weight";
pub(super) const BIAS: &str = "classifier.bias";

/// Linear classifier in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// Number of classes.
    pub classes: usize,
    /// Width of a feature.
    pub dim: usize,
    /// Weight, `[classes, dim]`, row-major.
    pub weight: Vec<f32>,
    /// Bias, `[classes]`.
    pub bias: Vec<f32>,
}

impl Classifier {
    /// Creates a classifier; the length of the bias is the number of classes.
    ///
    /// # Errors
    /// When the length of the weight is zero or not a multiple of the number of classes.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, ModelError> {
        let (classes, dim) = check_dims(&weight, &bias)?;
        Ok(Self { classes, dim, weight, bias })
    }
}

/// Returns `(classes, dim)` of a weight `[classes, dim]` and a bias `[classes]`.
fn check_dims(weight: &[f32], bias: &[f32]) -> Result<(usize, usize), ModelError> {
    let classes = bias.len();
    let dim = weight.len().checked_div(classes).unwrap_or(0);
    if dim == 0 || dim * classes != weight.len() {
        let reason = format!("a weight of `{}` values does not fit a bias of `{classes}`", weight.len());
        return Err(ModelError::Classifier { reason });
    }
    Ok((classes, dim))
}

/// Returns the specifications of a classifier's two tensors in f32.
pub(super) fn tensor_specs(classes: usize, dim: usize) -> [TensorSpec; 2] {
    [
        TensorSpec { name: WEIGHT.to_owned(), format: Format::F32, shape: vec![classes, dim] },
        TensorSpec { name: BIAS.to_owned(), format: Format::F32, shape: vec![classes] },
    ]
}

/// Writes `classifier.weight`, `[classes, dim]`, and `classifier.bias`, `[classes]`, as f32 safetensors.
///
/// The same values give the same bytes. The file appears at `path` only when it is complete.
///
/// # Errors
/// When the lengths do not match, or the file cannot be written.
pub fn save_classifier(path: &Path, weight: &[f32], bias: &[f32]) -> Result<(), ModelError> {
    let (classes, dim) = check_dims(weight, bias)?;
    weights::write_file(path, tensor_specs(classes, dim).into(), |name, sink| {
        weights::write_f32(if name == WEIGHT { weight } else { bias }, sink)
    })
}

/// Reads a classifier from a file of [`save_classifier`] or from any checkpoint file with its tensor names.
///
/// # Errors
/// When the file cannot be read or is damaged, or a tensor is missing or has another shape.
pub fn load_classifier(path: &Path) -> Result<Classifier, ModelError> {
    let reader = WeightReader::open(path)?;
    let tensor = |name: &str| {
        reader.tensors().get(name).ok_or_else(|| ModelError::weights(path, format!("it holds no `{name}`")))
    };
    let (weight, bias) = (tensor(WEIGHT)?, tensor(BIAS)?);
    match (weight.shape.as_slice(), bias.shape.as_slice()) {
        (&[classes, dim], &[biases]) if classes == biases && classes > 0 && dim > 0 => {
            Ok(Classifier { classes, dim, weight: reader.read(weight)?, bias: reader.read(bias)? })
        }
        (weight, bias) => {
            let reason = format!(
                "`{WEIGHT}` is `{weight:?}` and `{BIAS}` is `{bias:?}`; expected `[classes, dim]` and `[classes]`"
            );
            Err(ModelError::weights(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_classifier_reads_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        let weight: Vec<f32> = (0..600_000).map(|i| (i as f32).sin()).collect();
        let bias = vec![1.0, -0.0, f32::MIN_POSITIVE];
        save_classifier(&first, &weight, &bias).unwrap();
        save_classifier(&second, &weight, &bias).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        let read = load_classifier(&first).unwrap();
        assert_eq!(read, Classifier::new(weight, bias).unwrap());
        assert_eq!((read.classes, read.dim), (3, 200_000));
        assert!(read.bias[1].is_sign_negative());
    }

    #[test]
    fn mismatched_lengths_are_rejected() {
        for (weight, bias) in [(5, 2), (0, 2), (4, 0), (1, 2)] {
            let error = Classifier::new(vec![0.0; weight], vec![0.0; bias]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{weight}` values does not fit a bias of `{bias}`")), "{error}");
        }
    }

    #[test]
    fn file_without_classifier_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut specs: Vec<TensorSpec> = tensor_specs(2, 3).into();
        specs.pop();
        weights::write_file(&path, specs, |_, sink| weights::write_f32(&[0.0; 6], sink)).unwrap();
        assert!(load_classifier(&path).unwrap_err().to_string().ends_with("it holds no `classifier.bias`"));
        let mut specs: Vec<TensorSpec> = tensor_specs(2, 3).into();
        specs[1].shape = vec![1];
        let lengths = |name: &str| if name == WEIGHT { 6 } else { 1 };
        weights::write_file(&path, specs, |name, sink| weights::write_f32(&vec![0.0; lengths(name)], sink)).unwrap();
        assert!(load_classifier(&path).unwrap_err().to_string().contains("`classifier.bias` is `[1]`"));
    }
}
