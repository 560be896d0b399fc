//! Memory that classifier heads take in training, added up before anything is allocated.

use super::EngineKind;
use super::trainer::Options;
use super::trainer::card::ROWS;
use crate::card::Tile;
use crate::predict::tiles::Compute;

/// Bytes of an f32.
const F32_BYTES: u64 = 4;

/// Size of the classifier heads of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSize {
    /// Outputs of a head.
    pub classes: u64,
    /// Values of a feature.
    pub dim: u64,
    /// Heads that train side by side.
    pub heads: u64,
    /// Rows of a micro-batch.
    pub batch_rows: u64,
    /// True if the heads are validated.
    pub validates: bool,
}

/// Memory of classifier heads, in bytes. These are lower bounds: the buffers that exist at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadBytes {
    /// Weights and momentum of all heads.
    pub weights: u64,
    /// The gradient, which the heads share.
    pub gradient: u64,
    /// Copies of weights in the format of the products, or for validation.
    pub copies: u64,
    /// Logits of a tile of rows; with own kernels, their statistics and softmax.
    pub logits: u64,
}

impl HeadSize {
    /// Returns the number of weights of one head, bias included.
    pub fn weights(self) -> u64 {
        self.classes.saturating_mul(self.dim.saturating_add(1))
    }

    /// Returns the memory of the host for a classifier in closed form: sums in f64, the new head, the best head and a copy
    /// that scores, and the covariance, its shrunk copy and its factor.
    pub fn closed_form_bytes(self) -> u64 {
        let squares = self.dim.saturating_mul(self.dim).saturating_mul(3 * 8);
        self.weights().saturating_mul(8 + 3 * F32_BYTES).saturating_add(squares)
    }

    /// Returns the memory on the device that trains the heads.
    pub fn bytes(self, options: Options) -> HeadBytes {
        let of_weights = |bytes: u64| self.weights().saturating_mul(bytes);
        if let Some((_, capability)) = options.own_gpu(usize::try_from(self.dim).unwrap_or(0)) {
            return self.bytes_of_own_kernels(options, capability);
        }
        let rows = self.batch_rows.min(options.tiling.rows as u64);
        let logits = self.classes.saturating_mul(rows).saturating_mul(F32_BYTES);
        let weights = of_weights(2 * F32_BYTES).saturating_mul(self.heads);
        let gradient = of_weights(F32_BYTES);
        match options.engine {
            // Validation copies the weights of one head into tiles.
            EngineKind::Cpu => {
                HeadBytes { weights, gradient, copies: if self.validates { of_weights(F32_BYTES) } else { 0 }, logits }
            }
            // Logits and probabilities exist together.
            EngineKind::Gpu | EngineKind::Own { .. } => HeadBytes {
                weights,
                gradient,
                copies: if options.compute == Compute::Bf16 { of_weights(2).saturating_mul(self.heads) } else { 0 },
                logits: logits.saturating_mul(2),
            },
        }
    }

    /// Returns the memory of a GPU whose own kernels train the heads. Of the logits, it holds statistics of strips of classes, 16 bytes
    /// each, and the softmax of a part of the classes in bf16. Validation copies one head in bf16.
    fn bytes_of_own_kernels(self, options: Options, capability: u32) -> HeadBytes {
        let of_weights = |bytes: u64| self.weights().saturating_mul(bytes);
        let rows = self.batch_rows.min(ROWS as u64);
        let statistics = self.classes.div_ceil(Tile::large(capability).strip() as u64).saturating_mul(16);
        let softmax = self.classes.min(options.tiling.classes as u64).saturating_mul(2);
        let scored = if self.validates { of_weights(2) } else { 0 };
        HeadBytes {
            weights: of_weights(2 * F32_BYTES).saturating_mul(self.heads),
            gradient: of_weights(F32_BYTES),
            copies: of_weights(2).saturating_mul(self.heads).saturating_add(scored),
            logits: statistics.saturating_add(softmax).saturating_mul(rows),
        }
    }

    /// Returns the memory of the host if a GPU trains the heads: they are initialised or loaded there.
    pub fn host_bytes_beside_gpu(self) -> u64 {
        self.weights().saturating_mul(2 * F32_BYTES).saturating_mul(self.heads)
    }
}

/// Bytes that training a projection head takes for each pair of an image and a caption of a micro-batch: four matrices of
/// f32, which are the logits, their transpose and both softmaxes. Measured on the CPU: 15.8.
const CONTRAST_BYTES: u64 = 16;

/// Size of a projection head and of its micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectionSize {
    /// Values of a feature.
    pub input: u64,
    /// Values of a vector of a caption.
    pub output: u64,
    /// Width of the hidden layer; 0 without one.
    pub hidden: u64,
    /// Rows of a micro-batch.
    pub batch_rows: u64,
}

impl ProjectionSize {
    /// Returns the memory of the weights with their two moments and gradient, and of a micro-batch.
    pub fn bytes(self) -> (u64, u64) {
        let Self { input, output, hidden, batch_rows } = self;
        let weights = match hidden {
            0 => input.saturating_mul(output),
            _ => hidden.saturating_mul(input.saturating_add(output)),
        };
        let contrast = batch_rows.saturating_mul(batch_rows).saturating_mul(CONTRAST_BYTES);
        // The hidden layer before and after its activation.
        let layer = batch_rows.saturating_mul(hidden).saturating_mul(2 * F32_BYTES);
        (weights.saturating_mul(4 * F32_BYTES), contrast.saturating_add(layer))
    }
}

impl HeadBytes {
    /// Returns the sum.
    pub fn total(self) -> u64 {
        [self.weights, self.gradient, self.copies, self.logits].into_iter().fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::tiles::Tiling;

    const FULL: HeadSize = HeadSize { classes: 16_548_370, dim: 768, heads: 1, batch_rows: 128, validates: true };

    #[test]
    fn terms_add_up() {
        let weights = 16_548_370 * 769;
        let bytes = FULL.bytes(Options::default());
        let expected = HeadBytes {
            weights: 8 * weights,
            gradient: 4 * weights,
            copies: 4 * weights,
            logits: 4 * 128 * 16_548_370,
        };
        assert_eq!((bytes, bytes.total()), (expected, 16 * weights + 512 * 16_548_370));
        let sweep = HeadSize { heads: 3, validates: false, batch_rows: 32, ..FULL };
        assert_eq!(sweep.bytes(Options::default()).total(), 28 * weights + 128 * 16_548_370);
    }

    #[test]
    fn gpu_has_casts_and_two_matrices_of_logits() {
        let tiling = Tiling { rows: 64, classes: 16_384 };
        let bytes = FULL.bytes(Options { tiling, compute: Compute::Bf16, engine: EngineKind::Gpu });
        assert_eq!(bytes.total(), 14 * FULL.weights() + 8 * 64 * 16_548_370);
        assert_eq!(FULL.host_bytes_beside_gpu(), 8 * FULL.weights());
    }

    #[test]
    fn own_kernels_hold_statistics_and_a_part_of_the_softmax() {
        let tiling = Tiling { rows: 1024, classes: 16_384 };
        let engine = EngineKind::Own { gpu: 0, capability: 90 };
        let options = Options { tiling, compute: Compute::Bf16, engine };
        let size = HeadSize { classes: 92_366, batch_rows: 8192, validates: false, ..FULL };
        let (own, burn) = (size.bytes(options), size.bytes(Options { engine: EngineKind::Gpu, ..options }));
        assert_eq!(own.logits, 4096 * (722 * 16 + 16_384 * 2));
        assert_eq!(HeadBytes { logits: 0, ..own }, HeadBytes { logits: 0, ..burn });
        // The strips of `mma.sync` are narrower.
        let older = Options { engine: EngineKind::Own { gpu: 0, capability: 80 }, ..options };
        assert_eq!(size.bytes(older), HeadBytes { logits: 4096 * (2887 * 16 + 16_384 * 2), ..own });
        // Validation copies one head of a sweep.
        let copies = |heads, validates| HeadSize { heads, validates, ..size }.bytes(options).copies;
        assert_eq!(copies(3, false), 6 * size.weights());
        assert_eq!(copies(3, true), 8 * size.weights());
        // Their widths must be a multiple of 8.
        let odd = HeadSize { dim: 767, ..size };
        assert_eq!(odd.bytes(options), odd.bytes(Options { engine: EngineKind::Gpu, ..options }));
    }

    #[test]
    fn contrast_grows_with_the_square_of_the_batch() {
        let size = ProjectionSize { input: 768, output: 384, hidden: 0, batch_rows: 16_384 };
        assert_eq!(size.bytes(), (16 * 768 * 384, 4 << 30));
        let layer = 8 * 1000 * 16_384;
        assert_eq!(ProjectionSize { hidden: 1000, ..size }.bytes(), (16 * 1000 * 1152, (4 << 30) + layer));
        let absurd = ProjectionSize { input: u64::MAX, output: u64::MAX, hidden: u64::MAX, batch_rows: u64::MAX };
        assert_eq!(absurd.bytes(), (u64::MAX, u64::MAX));
    }

    #[test]
    fn absurd_sizes_saturate() {
        let absurd = HeadSize { classes: u64::MAX, dim: u64::MAX, heads: 64, batch_rows: 1, validates: true };
        assert_eq!(absurd.bytes(Options::default()).total(), u64::MAX);
    }
}
