//! Positions that attention itself takes into account: rotation of queries and keys, and relative position bias.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::model::attention::Rotation;
use crate::model::config::{PlainConfig, RelativeBias};
use crate::model::cpu;
use crate::model::error::ModelError;
use crate::model::layout::Names;
use crate::model::load::Loader;

/// Computes the rotation of `DINOv3`: coordinates of patch centres in [-1, 1], rows before columns. Leading tokens are
/// not rotated.
pub(in crate::model) fn compute_rotation(theta: f64, plain: &PlainConfig, grid: usize) -> cpu::Rotation {
    let (width, leading) = (plain.hidden / plain.heads, plain.leading_tokens());
    // In f32 like transformers, so that large angles agree.
    let frequencies: Vec<f32> =
        (0..width / 4).map(|at| 1.0 / (theta as f32).powf(4.0 * at as f32 / width as f32)).collect();
    let coordinate = |cell: usize| 2.0 * ((cell as f32 + 0.5) / grid as f32) - 1.0;
    let mut angles = vec![0.0_f32; leading * width];
    for patch in 0..grid * grid {
        let axes = [patch / grid, patch % grid].map(coordinate);
        let half: Vec<f32> = axes
            .iter()
            .flat_map(|axis| frequencies.iter().map(move |frequency| std::f32::consts::TAU * axis * frequency))
            .collect();
        angles.extend(half.iter().chain(&half));
    }
    let table = |value: fn(f32) -> f32| angles.iter().map(|angle| value(*angle)).collect();
    cpu::Rotation { cosine: table(f32::cos), sine: table(f32::sin) }
}

/// Uploads the rotation of a sequence of `tokens`.
pub(super) fn upload_rotation<B: Backend>(
    rotation: cpu::Rotation,
    tokens: usize,
    loader: &Loader<'_, B>,
) -> Rotation<B> {
    let upload = |values: Vec<f32>| {
        let width = values.len() / tokens;
        Tensor::from_data(TensorData::new(values, [1, 1, tokens, width]), (loader.device, DType::F32))
    };
    Rotation { cosine: upload(rotation.cosine), sine: upload(rotation.sine) }
}

/// Loads the relative position bias of each block up to `last`; `load` loads one by name.
pub(in crate::model) fn load_biases<T: Clone>(
    plain: &PlainConfig,
    names: &Names,
    last: u32,
    load: impl Fn(String) -> Result<T, ModelError>,
) -> Result<Vec<Option<T>>, ModelError> {
    match plain.relative {
        Some(RelativeBias::Shared) => {
            let shared = load(names.shared_bias.to_owned())?;
            Ok(vec![Some(shared); last as usize + 1])
        }
        Some(RelativeBias::PerBlock) => {
            (0..=last).map(|index| load(names.block(index, names.bias_table)).map(Some)).collect()
        }
        None => Ok(vec![None; last as usize + 1]),
    }
}
