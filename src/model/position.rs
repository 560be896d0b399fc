//! Interpolates position embeddings for image sizes that differ from the checkpoint's.
//!
//! Equals transformers' `interpolate_pos_encoding` for both families: bicubic interpolation of the grid of patch
//! positions (`align_corners = false`, no antialiasing, a = −0.75); the CLS position is unchanged. It runs once, when
//! the model is loaded, on the host.

/// Parameter a of the cubic convolution kernel (Keys 1981), as in torch and `OpenCV`; Pillow uses −0.5.
const A: f64 = -0.75;

/// Resizes position embeddings from `[1 + from², width]` to `[1 + to², width]`; the first row, CLS, is unchanged.
///
/// Equal grids return the input.
pub(super) fn interpolate(embeddings: Vec<f32>, from: usize, to: usize, width: usize) -> Vec<f32> {
    if from == to {
        return embeddings;
    }
    let (cls, grid) = embeddings.split_at(width);
    let taps = taps(from, to);
    // The filter is separable: rows first, then columns, in f64.
    let mut tall = vec![0.0_f64; to * from * width];
    for (row, out) in taps.iter().zip(tall.chunks_exact_mut(from * width)) {
        for (source, weight) in row {
            let line = &grid[source * from * width..(source + 1) * from * width];
            out.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
    }
    let mut result = Vec::with_capacity((1 + to * to) * width);
    result.extend_from_slice(cls);
    let mut sums = vec![0.0_f64; width];
    for line in tall.chunks_exact(from * width) {
        for column in &taps {
            sums.fill(0.0);
            for (source, weight) in column {
                let cell = &line[source * width..(source + 1) * width];
                sums.iter_mut().zip(cell).for_each(|(sum, value)| *sum += weight * value);
            }
            result.extend(sums.iter().map(|sum| *sum as f32));
        }
    }
    result
}

/// Returns the four input cells of each output cell, clamped to the border, with their weights.
fn taps(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|cell| {
            let centre = scale * (cell as f64 + 0.5) - 0.5;
            let base = centre.floor();
            let t = centre - base;
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            std::array::from_fn(|tap| {
                let source = (base as i64 - 1 + tap as i64).clamp(0, from as i64 - 1);
                (usize::try_from(source).unwrap_or(0), weights[tap])
            })
        })
        .collect()
}

/// Evaluates the kernel at a distance from 0 to 1.
fn near(x: f64) -> f64 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// Evaluates the kernel at a distance from 1 to 2.
fn far(x: f64) -> f64 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn constant_grid_stays_constant(
            from in 1_usize..9, to in 1_usize..12, value in -10.0_f32..10.0, cls in -10.0_f32..10.0,
        ) {
            let mut embeddings = vec![cls; 2];
            embeddings.extend(std::iter::repeat_n(value, from * from * 2));
            let result = interpolate(embeddings, from, to, 2);
            prop_assert_eq!(result.len(), (1 + to * to) * 2);
            prop_assert_eq!(&result[..2], &[cls; 2]);
            prop_assert!(result[2..].iter().all(|got| (got - value).abs() <= 1e-5));
        }

        #[test]
        fn interpolation_commutes_with_transposition(from in 1_usize..7, to in 1_usize..9, seed in any::<u64>()) {
            let cell = |row: usize, column: usize| {
                (seed.wrapping_mul((row * 31 + column * 7 + 1) as u64) >> 40) as f32 / 1e6
            };
            let grid = |turned: bool| {
                let mut values = vec![0.0];
                for row in 0..from {
                    for column in 0..from {
                        values.push(if turned { cell(column, row) } else { cell(row, column) });
                    }
                }
                interpolate(values, from, to, 1)
            };
            let (straight, turned) = (grid(false), grid(true));
            for row in 0..to {
                for column in 0..to {
                    let difference = straight[1 + row * to + column] - turned[1 + column * to + row];
                    prop_assert!(difference.abs() <= 1e-4);
                }
            }
        }
    }
}
