//! Uploads layers by the names of their tensors.

use burn::tensor::DType;
use burn::tensor::Tensor;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

use crate::model::block::{Linear, Mlp, Norm};
use crate::model::config::Activation;
use crate::model::error::ModelError;

/// Reads tensors by their published names, as f32, and concatenates them.
type ReadTensors<'a> = dyn Fn(&[String]) -> Result<Vec<f32>, ModelError> + 'a;

/// Reader of a checkpoint's tensors that uploads them as layers.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) read: &'a ReadTensors<'a>,
    pub(super) device: &'a B::Device,
    /// Format of weights and activations.
    pub(super) format: DType,
    /// Summand under the root of a norm.
    pub(super) norm_epsilon: f64,
    /// Vectors of the CPU, if blocks run on the direct path.
    pub(super) direct: Option<pulp::Arch>,
}

impl<B: Backend> Loader<'_, B> {
    /// Reads one tensor.
    pub(super) fn values(&self, key: impl Into<String>) -> Result<Vec<f32>, ModelError> {
        (self.read)(&[key.into()])
    }

    /// Uploads values in the format of weights.
    pub(super) fn upload<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(values, shape), (self.device, self.format))
    }

    /// Loads a norm.
    pub(super) fn norm(&self, name: &str) -> Result<Norm<B>, ModelError> {
        self.norm_with(name, self.norm_epsilon)
    }

    /// Loads a norm with its own epsilon.
    pub(super) fn norm_with(&self, name: &str, epsilon: f64) -> Result<Norm<B>, ModelError> {
        let read = |kind: &str| self.values(format!("{name}.{kind}"));
        Ok(Norm::new(read("weight")?, read("bias")?, epsilon, self.device))
    }

    /// Loads a linear layer.
    pub(super) fn linear(&self, name: &str, input: usize, out: usize, bias: bool) -> Result<Linear<B>, ModelError> {
        self.joined(&[(name.to_owned(), bias)], input, out)
    }

    /// Loads an MLP that is not gated, by the names of its two layers. `hidden` is the width of its input and output.
    pub(super) fn mlp(
        &self,
        [inner_name, outer_name]: [String; 2],
        [hidden, inner]: [usize; 2],
        activation: Activation,
        bias: bool,
    ) -> Result<Mlp<B>, ModelError> {
        Ok(Mlp::Plain {
            inner: self.linear(&inner_name, hidden, inner, bias)?,
            activation,
            outer: self.linear(&outer_name, inner, hidden, bias)?,
        })
    }

    /// Loads linear layers of the same input as one product of `out` outputs in all. The flag of a part says whether it
    /// has a bias; another part's bias makes it zero.
    pub(super) fn joined(&self, parts: &[(String, bool)], input: usize, out: usize) -> Result<Linear<B>, ModelError> {
        let (weight, bias) = self.joined_values(parts, out)?;
        Ok(Linear::new(&weight, bias, input, out, (self.device, self.format)))
    }

    /// Reads weight, `[out, in]`, and bias of the layers that [`Self::joined`] loads.
    pub(super) fn joined_values(
        &self,
        parts: &[(String, bool)],
        out: usize,
    ) -> Result<(Vec<f32>, Option<Vec<f32>>), ModelError> {
        let weights: Vec<String> = parts.iter().map(|(part, _)| format!("{part}.weight")).collect();
        let weight = (self.read)(&weights)?;
        let bias = if parts.iter().any(|(_, bias)| *bias) {
            let mut values = Vec::with_capacity(out);
            for (part, bias) in parts {
                if *bias {
                    values.extend(self.values(format!("{part}.bias"))?);
                } else {
                    values.resize(values.len() + out / parts.len(), 0.0);
                }
            }
            Some(values)
        } else {
            None
        };
        Ok((weight, bias))
    }
}
