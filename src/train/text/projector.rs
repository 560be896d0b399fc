//! Projection head on a device: forward and backward passes.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::MIN_LENGTH;
use super::head::{Columns, Parameter, TextHead, parameter_shapes};
use crate::predict::scorer::check_length;
use crate::predict::tiles::{download, upload};
use crate::train::TrainError;

/// Projection head on a device.
#[derive(Debug, Clone)]
pub struct Projector<B: Backend> {
    input: usize,
    columns: Option<Columns>,
    /// Width of the features.
    pub(super) width: usize,
    pub(super) output: usize,
    mean: Tensor<B, 2>,
    inverse_std: Tensor<B, 2>,
    pub(super) parameters: Vec<Tensor<B, 2>>,
    pub(super) device: B::Device,
}

/// Intermediate values of a forward pass for the backward pass.
pub(super) struct Forward<B: Backend> {
    /// Standardised features, `[rows, input]`.
    inputs: Tensor<B, 2>,
    /// Hidden layer before and after its activation, `[rows, hidden]` each.
    hidden: Option<(Tensor<B, 2>, Tensor<B, 2>)>,
    /// Factors of the projection's inputs, if some are dropped.
    mask: Option<Tensor<B, 2>>,
    /// Lengths of the outputs before normalisation, `[rows, 1]`.
    lengths: Tensor<B, 2>,
    /// Outputs of unit length, `[rows, output]`.
    pub(super) outputs: Tensor<B, 2>,
}

impl<B: Backend> Projector<B> {
    /// Uploads a head.
    ///
    /// # Errors
    /// When a length does not match.
    pub fn new(head: &TextHead, device: &B::Device) -> Result<Self, TrainError> {
        let TextHead { input, columns, hidden, output, feature_mean, feature_std, text_mean, text_map, parameters } =
            head;
        if let Some(Columns { first, of }) = columns {
            check_length("columns", (first + input).max(*of), *of)?;
        }
        check_length("feature_mean", feature_mean.len(), *input)?;
        check_length("feature_std", feature_std.len(), *input)?;
        match text_map {
            None => check_length("text_mean", text_mean.len(), *output)?,
            Some(map) => {
                check_length("text_map bias", map.bias.len(), *output)?;
                check_length("text_map weight", map.weight.len(), output * text_mean.len())?;
            }
        }
        let expected = parameter_shapes(*input, *hidden, *output);
        check_length("parameters", parameters.len(), expected.len())?;
        for (parameter, (name, shape)) in parameters.iter().zip(expected) {
            check_length(name, parameter.values.len(), shape[0] * shape[1])?;
        }
        let inverse: Vec<f32> = feature_std.iter().map(|std| 1.0 / std).collect();
        let upload_parameter =
            |parameter: &Parameter| upload(&parameter.values, parameter.shape[0], parameter.shape[1], device);
        Ok(Self {
            input: *input,
            columns: *columns,
            width: head.width(),
            output: *output,
            mean: upload(feature_mean, 1, *input, device),
            inverse_std: upload(&inverse, 1, *input, device),
            parameters: parameters.iter().map(upload_parameter).collect(),
            device: device.clone(),
        })
    }

    /// Maps features, `[rows, width]`, to embeddings of unit length, `[rows, output]`; both row-major.
    ///
    /// # Errors
    /// When the length does not match, or the device fails.
    pub fn project(&self, features: &[f32], rows: usize) -> Result<Vec<f32>, TrainError> {
        check_length("features", features.len(), rows.saturating_mul(self.width))?;
        if rows == 0 {
            return Ok(Vec::new());
        }
        let features = upload(features, rows, self.width, &self.device);
        Ok(download(self.forward(features).outputs)?)
    }

    /// Runs a forward pass on features, `[rows, width]`.
    pub(super) fn forward(&self, features: Tensor<B, 2>) -> Forward<B> {
        self.forward_with(features, None)
    }

    /// Runs a forward pass in which the inputs of the last layer are multiplied by `mask`.
    pub(super) fn forward_with(&self, features: Tensor<B, 2>, mask: Option<Tensor<B, 2>>) -> Forward<B> {
        let features = match self.columns {
            Some(columns) => features.narrow(1, columns.first, self.input),
            None => features,
        };
        let mut inputs = (features - self.mean.clone()) * self.inverse_std.clone();
        let is_hidden = self.parameters.len() > 3;
        if let Some(mask) = mask.clone().filter(|_| !is_hidden) {
            inputs = inputs * mask;
        }
        let linear = |input: Tensor<B, 2>, at: usize| {
            input.matmul(self.parameters[at].clone().transpose()) + self.parameters[at + 1].clone()
        };
        let hidden = is_hidden.then(|| {
            let before = linear(inputs.clone(), 0);
            let after = activation::gelu(before.clone());
            (before, mask.clone().map_or_else(|| after.clone(), |mask| after.clone() * mask))
        });
        let last = hidden.as_ref().map_or_else(|| inputs.clone(), |(_, after)| after.clone());
        let outputs = linear(last, self.parameters.len() - 3);
        let lengths = outputs.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(MIN_LENGTH);
        Forward { inputs, hidden, mask, outputs: outputs / lengths.clone(), lengths }
    }

    /// Maps the gradient of the outputs, `[rows, output]`, to gradients of all parameters except the scale.
    pub(super) fn backward(&self, forward: Forward<B>, outputs: Tensor<B, 2>) -> Vec<Tensor<B, 2>> {
        let Forward { inputs, hidden, mask, lengths, outputs: units } = forward;
        let radial = (units.clone() * outputs.clone()).sum_dim(1);
        let linear = (outputs - units * radial) / lengths;
        let layer_gradients = |gradient: &Tensor<B, 2>, input: Tensor<B, 2>| {
            [gradient.clone().transpose().matmul(input), gradient.clone().sum_dim(0)]
        };
        let Some((before, after)) = hidden else { return layer_gradients(&linear, inputs).into() };
        let last = layer_gradients(&linear, after);
        let projection = self.parameters[self.parameters.len() - 3].clone();
        let mut inner = linear.matmul(projection) * gelu_derivative(before);
        if let Some(mask) = mask {
            inner = inner * mask;
        }
        layer_gradients(&inner, inputs).into_iter().chain(last).collect()
    }
}

/// Computes the derivative of GELU, Φ(x) + x·φ(x).
fn gelu_derivative<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let density = (x.clone().powi_scalar(2) * -0.5).exp() * (1.0 / std::f64::consts::TAU.sqrt());
    let cumulative = ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    cumulative + x * density
}
