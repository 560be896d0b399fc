//! Interpolates tables of positions for image sizes that differ from the checkpoint's.
//!
//! Equals transformers' `interpolate_pos_encoding`: bicubic interpolation of the grid of patch positions
//! (`align_corners = false`); the positions of tokens before the patches are unchanged. It runs once, when the model is
//! loaded, on the host, in f64.

/// Parameter a of the cubic convolution kernel (Keys 1981), as in torch and `OpenCV`.
const SHARP: f64 = -0.75;
/// Parameter a of the kernel with antialiasing, as in torch and Pillow.
const SMOOTH: f64 = -0.5;

/// Input cells of an output cell along one axis, with their weights.
type Taps = Vec<(usize, f64)>;

/// Resizes a table from `[leading + from², width]` to `[leading + to², width]`; the first `leading` rows are unchanged.
///
/// Equal grids return the input.
pub(super) fn interpolate(
    table: Vec<f32>,
    leading: usize,
    from: usize,
    to: usize,
    width: usize,
    antialias: bool,
) -> Vec<f32> {
    if from == to {
        return table;
    }
    let (first, grid) = table.split_at(leading * width);
    let taps = if antialias { smooth_taps(from, to) } else { cubic_taps(from, to) };
    let mut result = first.to_vec();
    result.extend(resize_grid(grid, from, &taps, width));
    result
}

/// Resizes a grid, `[from², width]` to `[to², width]`, by bilinear interpolation without antialiasing.
pub(super) fn interpolate_bilinear(grid: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    resize_grid(grid, from, &linear_taps(from, to), width)
}

/// Applies a separable filter: rows first, then columns.
fn resize_grid(grid: &[f32], from: usize, taps: &[Taps], width: usize) -> Vec<f32> {
    let to = taps.len();
    let mut tall = vec![0.0_f64; to * from * width];
    for (row, out) in taps.iter().zip(tall.chunks_exact_mut(from * width)) {
        for (source, weight) in row {
            let line = &grid[source * from * width..(source + 1) * from * width];
            out.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
    }
    let mut result = Vec::with_capacity(to * to * width);
    let mut sums = vec![0.0_f64; width];
    for line in tall.chunks_exact(from * width) {
        for column in taps {
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

/// Returns the four input cells of each output cell, clamped to the border.
fn cubic_taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let taps = |cell: usize| {
        let centre = scale * (cell as f64 + 0.5) - 0.5;
        let base = centre.floor();
        let tap = |tap: i64| {
            let source = (base as i64 + tap).clamp(0, from as i64 - 1);
            (usize::try_from(source).unwrap_or(0), cubic((centre - base - tap as f64).abs(), SHARP))
        };
        (-1..=2).map(tap).collect()
    };
    (0..to).map(taps).collect()
}

/// Returns the input cells under the kernel of each output cell; the kernel widens when the grid shrinks.
fn smooth_taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let taps = |cell: usize| {
        let (centre, support) = (scale * (cell as f64 + 0.5), 2.0 * stretch);
        // The casts truncate, and map negative values to 0.
        let begin = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |source: usize| cubic(((source as f64 - centre + 0.5) / stretch).abs(), SMOOTH);
        let sum: f64 = (begin..end).map(weight).sum();
        (begin..end).map(|source| (source, weight(source) / sum)).collect()
    };
    (0..to).map(taps).collect()
}

/// Returns the two input cells around each output cell.
fn linear_taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let taps = |cell: usize| {
        let centre = (scale * (cell as f64 + 0.5) - 0.5).max(0.0);
        let base = centre as usize;
        let share = centre - base as f64;
        vec![(base, 1.0 - share), ((base + 1).min(from - 1), share)]
    };
    (0..to).map(taps).collect()
}

/// Evaluates the cubic convolution kernel at a distance.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn constant_grid_stays_constant(
            from in 1_usize..9, to in 1_usize..12, value in -10.0_f32..10.0, cls in -10.0_f32..10.0, antialias: bool,
        ) {
            let mut embeddings = vec![cls; 2];
            embeddings.extend(std::iter::repeat_n(value, from * from * 2));
            let result = interpolate(embeddings, 1, from, to, 2, antialias);
            prop_assert_eq!(result.len(), (1 + to * to) * 2);
            prop_assert_eq!(&result[..2], &[cls; 2]);
            prop_assert!(result[2..].iter().all(|got| (got - value).abs() <= 1e-5));
            let linear = interpolate_bilinear(&vec![value; from * from], from, to, 1);
            prop_assert!(linear.len() == to * to && linear.iter().all(|got| (got - value).abs() <= 1e-5));
        }

        #[test]
        fn interpolation_commutes_with_transposition(
            from in 1_usize..7, to in 1_usize..9, seed in any::<u64>(), antialias: bool,
        ) {
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
                interpolate(values, 1, from, to, 1, antialias)
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
