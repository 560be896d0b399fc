//! Bias of attention scores within windows: positions, and the mask of shifted windows. Computed once, on the host.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::model::config::WindowedConfig;
use crate::model::error::ModelError;
use crate::model::layout::windowed as names;
use crate::model::load::Loader;
use crate::model::relative::window_bias;

/// Score of a token of another region of a shifted window.
const MASKED_SCORE: f32 = -100.0;
/// Upper bound on the factor of the cosines of Swin v2.
const MAX_COSINE_SCALE: f32 = 100.0;

/// Loads the position bias of a block and adds the mask of its shifted windows: `[1, 1 or windows, heads, window²,
/// window²]`.
pub(super) fn load_bias<B: Backend>(
    config: &WindowedConfig,
    (stage, block): (usize, usize),
    (grid, window, shift): (usize, usize, usize),
    loader: &Loader<'_, B>,
) -> Result<Tensor<B, 5>, ModelError> {
    let (heads, area) = (config.heads[stage], window * window);
    let key = |part: &str| names::block_key(stage, block, part);
    let table = if config.v2 {
        let inner = (loader.values(format!("{}.weight", key(names::BIAS_INNER)))?, {
            loader.values(format!("{}.bias", key(names::BIAS_INNER)))?
        });
        let outer = loader.values(key(names::BIAS_OUTER))?;
        continuous_table(window, config.pretrained_windows[stage], (&inner.0, &inner.1), &outer, heads)
    } else {
        loader.values(key(names::BIAS_TABLE))?
    };
    let positions = window_bias(&table, heads, window);
    let upload = |values: Vec<f32>, windows: usize| {
        let data = TensorData::new(values, [1, windows, heads, area, area]);
        Tensor::from_data(data, (loader.device, DType::F32))
    };
    if shift == 0 {
        return Ok(upload(positions, 1));
    }
    // transformers adds the mask twice in Swin v2.
    let masked = if config.v2 { 2.0 * MASKED_SCORE } else { MASKED_SCORE };
    let mask = shift_mask(grid.next_multiple_of(window), window, shift, masked);
    let windows = mask.len() / (area * area);
    let mut values = Vec::with_capacity(windows * positions.len());
    for mask in mask.chunks_exact(area * area) {
        for positions in positions.chunks_exact(area * area) {
            values.extend(positions.iter().zip(mask).map(|(position, mask)| position + mask));
        }
    }
    Ok(upload(values, windows))
}

/// Loads the factor of the cosines of Swin v2, `[1, heads, 1, 1]`.
pub(super) fn load_cosine_scale<B: Backend>(
    config: &WindowedConfig,
    (stage, block): (usize, usize),
    loader: &Loader<'_, B>,
) -> Result<Tensor<B, 4>, ModelError> {
    let logarithms = loader.values(names::block_key(stage, block, names::LOGIT_SCALE))?;
    let scales: Vec<f32> = logarithms.iter().map(|log| log.min(MAX_COSINE_SCALE.ln()).exp()).collect();
    let data = TensorData::new(scales, [1, config.heads[stage], 1, 1]);
    Ok(Tensor::from_data(data, (loader.device, DType::F32)))
}

/// Returns the mask of shifted windows, `[windows, window², window²]`: 0 for tokens of one region, `masked` otherwise.
///
/// The cyclic shift brings tokens from opposite borders into one window; regions tell them apart.
fn shift_mask(side: usize, window: usize, shift: usize, masked: f32) -> Vec<f32> {
    let region = |at: usize| usize::from(at + window >= side) + usize::from(at + shift >= side);
    let across = side / window;
    let mut mask = Vec::with_capacity(side * side * window * window);
    for place in 0..across * across {
        let (top, left) = (place / across * window, place % across * window);
        let regions: Vec<usize> =
            (0..window * window).map(|cell| 3 * region(top + cell / window) + region(left + cell % window)).collect();
        for one in &regions {
            mask.extend(regions.iter().map(|other| if one == other { 0.0 } else { masked }));
        }
    }
    mask
}

/// Computes the position bias of Swin v2 for each distance in a window, `[(2 · window − 1)², heads]`: an MLP of the
/// logarithmic coordinates, then 16 · σ.
fn continuous_table(
    window: usize,
    pretrained: usize,
    (inner, inner_bias): (&[f32], &[f32]),
    outer: &[f32],
    heads: usize,
) -> Vec<f32> {
    let side = 2 * window - 1;
    let reach = match (pretrained, window) {
        (0, 1) => 1.0,
        (0, window) => window as f64 - 1.0,
        (pretrained, _) => pretrained as f64 - 1.0,
    };
    let coordinate = |at: usize| {
        let distance = (at as f64 - (window as f64 - 1.0)) / reach * 8.0;
        distance.signum() * (distance.abs() + 1.0).log2() / 3.0
    };
    let mut table = Vec::with_capacity(side * side * heads);
    for cell in 0..side * side {
        let (row, column) = (coordinate(cell / side), coordinate(cell % side));
        let hidden: Vec<f64> = inner
            .chunks_exact(2)
            .zip(inner_bias)
            .map(|(weight, bias)| f64::from(weight[0]) * row + f64::from(weight[1]) * column + f64::from(*bias))
            .map(|value| value.max(0.0))
            .collect();
        for weight in outer.chunks_exact(names::BIAS_WIDTH).take(heads) {
            let sum: f64 = weight.iter().zip(&hidden).map(|(weight, value)| f64::from(*weight) * value).sum();
            table.push((16.0 / (1.0 + (-sum).exp())) as f32);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_one_region_see_each_other() {
        // Two windows of 2 × 2 along each side, shifted by one.
        let mask = shift_mask(4, 2, 1, -1.0);
        assert_eq!(mask.len(), 4 * 16);
        assert!(mask[..16].iter().all(|value| *value == 0.0), "the first window is within the image");
        assert_eq!(mask[16..20], [0.0, -1.0, 0.0, -1.0], "the second joins the left and the right border");
        assert_eq!(mask[48..52], [0.0, -1.0, -1.0, -1.0], "the last joins all four corners");
    }

    #[test]
    fn centre_of_the_table_is_the_bias_alone() {
        let inner: Vec<f32> = (0..2 * names::BIAS_WIDTH).map(|at| at as f32).collect();
        let outer = vec![1.0 / names::BIAS_WIDTH as f32; names::BIAS_WIDTH];
        let table = continuous_table(2, 0, (&inner, &vec![-1.0; names::BIAS_WIDTH]), &outer, 1);
        assert_eq!(table.len(), 9);
        assert!((table[4] - 8.0).abs() < 1e-6, "16 · σ(0), as the activation cuts −1 off");
    }
}
