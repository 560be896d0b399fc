//! Weights of the source pixels under each output pixel, in fixed point, and a cache of them.

use std::f64::consts::PI;

use crate::decode::geometry::Window;
use crate::decode::row_group::WEIGHT_BITS;
use crate::decode::scratch;

/// Upper bound on the weights of one table: 1 MiB, which an output row over 1,000 pixels wide does not reach.
const MAX_TABLE_WEIGHTS: usize = 1 << 18;

/// Small tables that are cached: images come in few sizes.
const CACHED_TABLES: usize = 8;

/// Upper bound on the weights of a cached table.
const MAX_CACHED_WEIGHTS: usize = 1 << 13;

/// A function of the distance from the centre, 0 from its radius on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum Kernel {
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

impl Kernel {
    /// Radius in source pixels at scale 1.
    const fn radius(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Value at a distance from the centre.
    pub(super) fn evaluate(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            // Open on one side, so that a sample on the border of two outputs counts once.
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            // Otherwise the two constants below would add up to slightly more than 1.
            Self::Hamming if distance == 0.0 => 1.0,
            Self::Hamming if distance < 1.0 => {
                // Pillow stores both constants in single precision, which shows in 22 bits.
                let [rest, wave] = [0.54_f32, 0.46_f32].map(f64::from);
                sinc(distance) * (rest + wave * (PI * distance).cos())
            }
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0),
            Self::Lanczos if distance < 3.0 => sinc(distance) * sinc(distance / 3.0),
            Self::Hamming | Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// Identity of a table: kernel, window and first output.
type TableKey = (Kernel, Window, u32);

/// The weights of consecutive outputs of a window.
#[derive(Default)]
pub(super) struct WeightTable {
    key: Option<TableKey>,
    /// One past the last output.
    pub(super) end: u32,
    /// First source position under each output.
    pub(super) starts: Vec<usize>,
    /// Weights of each output, padded with zeros to the number of the widest.
    pub(super) weights: Vec<i32>,
}

impl WeightTable {
    /// Computes the weights of as many outputs as fit, from `from` on. `exact` is scratch space for real numbers.
    fn fill(&mut self, exact: &mut Vec<f64>, kernel: Kernel, window: Window, from: u32) {
        let (taps, end) = table_extent(kernel, window, from);
        self.starts.clear();
        self.weights.clear();
        for output in from..end {
            let (first, _) = support(kernel, window, output);
            let start = (first as usize).min(window.source as usize - taps);
            let filled = self.weights.len();
            self.weights.resize(filled + first as usize - start, 0);
            append_weights(&mut self.weights, exact, kernel, window, output);
            self.weights.resize(filled + taps, 0);
            self.starts.push(start);
        }
        (self.key, self.end) = (Some((kernel, window, from)), end);
    }

    /// Number of weights of an output.
    pub(super) fn taps(&self) -> usize {
        (self.weights.len() / self.starts.len().max(1)).max(1)
    }

    fn retained_bytes(&self) -> usize {
        scratch::retained_bytes(&self.starts) + scratch::retained_bytes(&self.weights)
    }
}

/// The tables that were computed last.
#[derive(Default)]
pub(super) struct WeightCache {
    /// A table that is too large for the others, or that covers a part of a window.
    large: WeightTable,
    small: [WeightTable; CACHED_TABLES],
    /// The small table that was computed last.
    newest: usize,
    exact: Vec<f64>,
}

impl WeightCache {
    /// Returns the weights of the outputs from `from` on, as many as fit into a table.
    pub(super) fn table(&mut self, kernel: Kernel, window: Window, from: u32) -> &WeightTable {
        let key = Some((kernel, window, from));
        if let Some(at) = self.small.iter().position(|table| table.key == key) {
            return &self.small[at];
        }
        let (taps, end) = table_extent(kernel, window, from);
        let is_complete = from == 0 && end == window.len;
        let table = if is_complete && taps * end as usize <= MAX_CACHED_WEIGHTS {
            self.newest = (self.newest + 1) % CACHED_TABLES;
            &mut self.small[self.newest]
        } else {
            &mut self.large
        };
        if table.key != key {
            table.fill(&mut self.exact, kernel, window, from);
        }
        table
    }

    pub(super) fn retained_bytes(&self) -> usize {
        let tables = self.small.iter().chain([&self.large]).map(WeightTable::retained_bytes);
        tables.sum::<usize>() + scratch::retained_bytes(&self.exact)
    }
}

/// Largest number of weights of an output from `from` on, and the first output that does not fit into the table.
fn table_extent(kernel: Kernel, window: Window, from: u32) -> (usize, u32) {
    let supports = (from..window.len).map(|output| support(kernel, window, output));
    let taps = supports.map(|(first, end)| end - first).max().unwrap_or(0).max(1) as usize;
    let outputs = (MAX_TABLE_WEIGHTS / taps).max(1);
    (taps, (from as usize + outputs).min(window.len as usize) as u32)
}

/// Appends the weights of one output. `exact` is scratch space for them before they are rounded.
fn append_weights(weights: &mut Vec<i32>, exact: &mut Vec<f64>, kernel: Kernel, window: Window, output: u32) {
    let narrowing = 1.0 / window.scale().max(1.0);
    let centre = centre(window, output);
    let (first, end) = support(kernel, window, output);
    exact.clear();
    exact.extend((first..end).map(|source| kernel.evaluate((f64::from(source) - centre + 0.5) * narrowing)));
    let sum: f64 = exact.iter().sum();
    weights.extend(exact.iter().map(|weight| {
        let share = if sum == 0.0 { *weight } else { weight / sum };
        (share * f64::from(1 << WEIGHT_BITS) + 0.5_f64.copysign(share)) as i32
    }));
}

/// Centre of an output pixel, in source pixels.
fn centre(window: Window, output: u32) -> f64 {
    ((window.first + u64::from(output)) as f64 + 0.5) * window.scale()
}

/// Source positions under the kernel at one output: first, and one past the last.
#[expect(clippy::cast_sign_loss, reason = "negative numbers become 0, as they should")]
pub(super) fn support(kernel: Kernel, window: Window, output: u32) -> (u32, u32) {
    let radius = kernel.radius() * window.scale().max(1.0);
    let centre = centre(window, output);
    let end = ((centre + radius + 0.5) as u32).min(window.source);
    let first = (centre - radius + 0.5) as u32;
    (first.min(end.saturating_sub(1)), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_exactly_one_at_their_centre() {
        // Two single-precision constants add up to 1.00000003, which showed in a row of 339 pixels resized to 83.
        for kernel in [Kernel::Box, Kernel::Bilinear, Kernel::Hamming, Kernel::Bicubic, Kernel::Lanczos] {
            assert_eq!(kernel.evaluate(0.0).to_bits(), 1.0_f64.to_bits(), "{kernel:?}");
        }
    }
}
