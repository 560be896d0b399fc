//! The trained head as a file, in the names that transformers uses.

use std::path::Path;

use crate::model::error::ModelError;
use crate::model::weights;
use crate::model::weights::Format;
use crate::model::weights::Planned;
use crate::model::weights::Store;

pub(super) const WEIGHT: &str = "classifier.weight";
pub(super) const BIAS: &str = "classifier.bias";

/// A linear classifier on host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// The number of classes.
    pub classes: usize,
    /// Values in a feature.
    pub dim: usize,
    /// `[classes, dim]`, row-major.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl Classifier {
    /// Builds one from its two tensors; the number of classes is the bias's length.
    ///
    /// # Errors
    /// When the weight is not a whole, positive number of values for each class.
    pub fn new(weight: Vec<f32>, bias: Vec<f32>) -> Result<Self, ModelError> {
        let (classes, dim) = dims(&weight, &bias)?;
        Ok(Self { classes, dim, weight, bias })
    }
}

/// Classes and values a feature of a weight `[classes, dim]` and a bias `[classes]`.
fn dims(weight: &[f32], bias: &[f32]) -> Result<(usize, usize), ModelError> {
    let classes = bias.len();
    let dim = weight.len().checked_div(classes).unwrap_or(0);
    if dim == 0 || dim * classes != weight.len() {
        let reason = format!("a weight of `{}` values does not fit a bias of `{classes}`", weight.len());
        return Err(ModelError::Classifier { reason });
    }
    Ok((classes, dim))
}

/// The two tensors of a classifier, to be written in f32.
pub(super) fn planned(classes: usize, dim: usize) -> [Planned; 2] {
    [
        Planned { name: WEIGHT.to_owned(), format: Format::F32, shape: vec![classes, dim] },
        Planned { name: BIAS.to_owned(), format: Format::F32, shape: vec![classes] },
    ]
}

/// Writes `classifier.weight`, `[classes, dim]`, and `classifier.bias`, `[classes]`, as f32 safetensors.
///
/// The same values give the same bytes. The file appears under its name only when it is complete.
///
/// # Errors
/// When the lengths do not fit, or the file cannot be written.
pub fn save_classifier(path: &Path, weight: &[f32], bias: &[f32]) -> Result<(), ModelError> {
    let (classes, dim) = dims(weight, bias)?;
    weights::write(path, planned(classes, dim).into(), |name, put| {
        weights::put_f32(if name == WEIGHT { weight } else { bias }, put)
    })
}

/// Reads what [`save_classifier`] wrote, or the classifier of any checkpoint file in these names.
///
/// # Errors
/// When the file cannot be read or is damaged, or a tensor is missing or has another shape.
pub fn load_classifier(path: &Path) -> Result<Classifier, ModelError> {
    let store = Store::open(path)?;
    let entry = |name: &str| {
        store.entries().get(name).ok_or_else(|| ModelError::weights(path, format!("it holds no `{name}`")))
    };
    let (weight, bias) = (entry(WEIGHT)?, entry(BIAS)?);
    match (weight.shape.as_slice(), bias.shape.as_slice()) {
        (&[classes, dim], &[biases]) if classes == biases && classes > 0 && dim > 0 => {
            Ok(Classifier { classes, dim, weight: store.read(weight)?, bias: store.read(bias)? })
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
    fn a_saved_classifier_reads_back_bit_for_bit_and_has_the_same_bytes_each_time() {
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
    fn lengths_that_do_not_fit_are_refused() {
        for (weight, bias) in [(5, 2), (0, 2), (4, 0), (1, 2)] {
            let error = Classifier::new(vec![0.0; weight], vec![0.0; bias]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{weight}` values does not fit a bias of `{bias}`")), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_classifier_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut plan: Vec<Planned> = planned(2, 3).into();
        plan.pop();
        weights::write(&path, plan, |_, put| weights::put_f32(&[0.0; 6], put)).unwrap();
        assert!(load_classifier(&path).unwrap_err().to_string().ends_with("it holds no `classifier.bias`"));
        let mut plan: Vec<Planned> = planned(2, 3).into();
        plan[1].shape = vec![1];
        let lengths = |name: &str| if name == WEIGHT { 6 } else { 1 };
        weights::write(&path, plan, |name, put| weights::put_f32(&vec![0.0; lengths(name)], put)).unwrap();
        assert!(load_classifier(&path).unwrap_err().to_string().contains("`classifier.bias` is `[1]`"));
    }
}
