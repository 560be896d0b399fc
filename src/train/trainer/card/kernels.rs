//! The kernels of a training step, and their launches.

use cubecl::server::Handle;

use super::batch::Batch;
use super::part::Part;
use crate::card::{Arguments, Card, Matrix, Program, Tile};
use crate::train::Sgd;

const RULE: &str = include_str!("rule.cu");
const TARGETS: &str = include_str!("targets.cu");
const STATISTICS: &str = include_str!("statistics.cu");
const DIFFERENCE: &str = include_str!("difference.cu");
const GRADIENT: &str = concat!(include_str!("rule.cu"), include_str!("gradient.cu"));

/// Threads of a block of all kernels but the products.
const THREADS: u32 = 256;

/// Warps of such a block.
const WARPS: usize = THREADS as usize / 32;

/// Blocks of a kernel whose threads take many values each.
const MANY_BLOCKS: usize = 1024;

/// Index of a row of zeros in `gather.cu`.
const MISSING: u32 = u32::MAX;

/// Factors of an update, in the order of `rule.cu`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) decay: f32,
    pub(super) momentum: f32,
    pub(super) rate: f32,
}

impl Rule {
    pub(super) fn new(sgd: &Sgd, rate: f64) -> Self {
        Self { decay: sgd.weight_decay as f32, momentum: sgd.momentum as f32, rate: rate as f32 }
    }

    fn numbers(self) -> [u32; 3] {
        [self.decay, self.momentum, self.rate].map(f32::to_bits)
    }
}

/// Use of a gradient at the end of its product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// It is stored.
    Store,
    /// It is added to the stored one.
    Add,
    /// It updates the head.
    Update(Rule),
}

/// Kernels of a training step on one GPU.
#[derive(Debug)]
pub(super) struct Kernels {
    card: Card,
    tile: Tile,
    transpose: Program,
    statistics: Program,
    target_logits: Program,
    row_loss: Program,
    difference: Program,
    set_targets: Program,
    /// Without and with the update.
    gradient: [Program; 2],
    bias: [Program; 2],
    squares: Program,
    gradient_norm: Program,
    update: Program,
}

impl Kernels {
    pub(super) fn new(card: Card) -> Self {
        let tile = Tile::large(card.capability);
        let plain = |name, files: &[&'static str]| Program::new(name, files, &[], THREADS, 0);
        let bias = |fused| {
            let files = [RULE, include_str!("bias.cu")];
            Program::new("bias_gradient", &files, &[("FUSED", fused)], THREADS, 0)
        };
        Self {
            tile,
            transpose: plain("transpose", &[include_str!("transpose.cu")]),
            statistics: tile.program(STATISTICS, &[("COLUMNS_OUTER", 1)]),
            target_logits: plain("target_logits", &[TARGETS, include_str!("target_logits.cu")]),
            row_loss: plain("row_loss", &[TARGETS, include_str!("row_loss.cu")]),
            difference: tile.program(DIFFERENCE, &[]),
            set_targets: plain("set_targets", &[TARGETS, include_str!("set_targets.cu")]),
            gradient: [0, 1].map(|fused| tile.program(GRADIENT, &[("FUSED", fused)])),
            bias: [0, 1].map(bias),
            squares: plain("squares", &[include_str!("squares.cu")]),
            gradient_norm: Program::new("gradient_norm", &[include_str!("gradient_norm.cu")], &[], 1024, 0),
            update: plain("update", &[RULE, include_str!("update.cu")]),
            card,
        }
    }

    pub(super) fn card(&self) -> &Card {
        &self.card
    }

    /// Returns the instruction of the products.
    pub(super) fn instruction(&self) -> &'static str {
        self.tile.instruction()
    }

    /// Returns the strips of a part with this number of classes, each with statistics of its own.
    pub(super) fn strips(&self, classes: usize) -> usize {
        classes.div_ceil(self.tile.strip())
    }

    fn launch(&self, program: &Program, blocks: usize, buffers: &[&Handle], numbers: &[u32]) {
        let buffers = buffers.iter().copied().cloned().collect();
        self.card.launch(program, blocks, Arguments { buffers, numbers: numbers.to_vec(), ..Arguments::default() });
    }

    fn product(&self, program: &Program, operands: [Matrix; 2], buffers: &[&Handle], numbers: &[u32]) {
        let buffers = buffers.iter().copied().cloned().collect();
        let arguments = Arguments { buffers, numbers: numbers.to_vec(), ..Arguments::default() };
        self.tile.launch(&self.card, program, operands, arguments);
    }

    /// Transposes features, `[padded, dim]`.
    pub(super) fn transpose(&self, features: &Matrix) -> Matrix {
        let Matrix { values, rows, depth } = features;
        let to = self.card.allocate(rows * depth);
        let blocks = (rows / 8 * depth).div_ceil(THREADS as usize);
        self.launch(&self.transpose, blocks, &[values, &to], &[*rows as u32, *depth as u32]);
        Matrix { values: to, rows: *depth, depth: *rows }
    }

    /// Writes statistics of a part's logits, and the logits of its target classes.
    pub(super) fn statistics(&self, batch: &Batch, part: &Part, statistics: &Handle, strips: usize) {
        // Rows of padding have no statistics.
        let features = Matrix { rows: batch.samples, ..batch.features.clone() };
        let bias = part.bias();
        let numbers = [strips as u32, part.first_strip as u32];
        self.product(&self.statistics, [features, part.weight()], &[&bias, statistics], &numbers);
        let buffers = [&batch.targets, &batch.features.values, &part.copy, &bias, &batch.target_logits];
        let numbers = [batch.pairs, part.first, part.classes, part.dim].map(|size| size as u32);
        self.launch(&self.target_logits, batch.pairs.div_ceil(WARPS), &buffers, &numbers);
    }

    /// Joins the statistics of all parts to the loss of each row.
    pub(super) fn row_loss(&self, batch: &Batch, statistics: &Handle, strips: usize) {
        let buffers = [statistics, &batch.targets, &batch.target_logits, &batch.lse, &batch.losses];
        let [samples, padded, strips, pairs] =
            [batch.samples, batch.padded(), strips, batch.pairs].map(|size| size as u32);
        let numbers = [samples, padded, strips, pairs, batch.uniform.to_bits()];
        self.launch(&self.row_loss, batch.padded().div_ceil(WARPS), &buffers, &numbers);
    }

    /// Computes the gradient of a part. `difference` has room for its classes and the batch.
    pub(super) fn gradient(&self, batch: &Batch, part: &Part, difference: &Handle, how: Use) {
        let [padded, classes] = [batch.padded(), part.classes].map(|size| size as u32);
        let (uniform, scale) = (batch.uniform.to_bits(), batch.scale.to_bits());
        let (bias, numbers) = (part.bias(), [batch.samples as u32, uniform]);
        let operands = [part.weight(), batch.features.clone()];
        self.product(&self.difference, operands, &[&bias, &batch.lse, difference], &numbers);
        let numbers = [batch.pairs as u32, part.first as u32, classes, padded, uniform];
        let buffers = [&batch.targets, &batch.target_logits, &batch.lse, difference];
        self.launch(&self.set_targets, batch.pairs.div_ceil(THREADS as usize), &buffers, &numbers);

        let left = Matrix { values: difference.clone(), rows: part.classes, depth: batch.padded() };
        let operands = [left, batch.transposed.clone()];
        let blocks = part.classes.div_ceil(WARPS);
        let bias_numbers = |how: &[u32]| [&[classes, padded, scale], how].concat();
        if let Use::Update(rule) = how {
            let rule = rule.numbers();
            let buffers = [&part.values, &part.velocity, &part.copy];
            self.product(&self.gradient[1], operands, &buffers, &[&[scale], &rule[..]].concat());
            let buffers = [difference, &bias, &part.bias_of(&part.velocity)];
            self.launch(&self.bias[1], blocks, &buffers, &bias_numbers(&rule));
        } else if let Some(gradient) = &part.gradient {
            let first = [u32::from(matches!(how, Use::Store))];
            self.product(&self.gradient[0], operands, &[gradient], &[&[scale], &first[..]].concat());
            self.launch(&self.bias[0], blocks, &[difference, &part.bias_of(gradient)], &bias_numbers(&first));
        }
    }

    /// Returns the norm of the stored gradients of all parts, one value.
    pub(super) fn norm(&self, parts: &[Part]) -> Handle {
        let sums = self.card.allocate_f32(parts.len() * MANY_BLOCKS * WARPS);
        let per_part = MANY_BLOCKS * WARPS;
        for (at, part) in parts.iter().enumerate() {
            let Some(gradient) = &part.gradient else { continue };
            let own = sums.clone().offset_start((size_of::<f32>() * at * per_part) as u64);
            self.launch(&self.squares, MANY_BLOCKS, &[gradient, &own], &words(part.count()));
        }
        let norm = self.card.allocate_f32(1);
        self.launch(&self.gradient_norm, 1, &[&sums, &norm], &[(parts.len() * per_part) as u32]);
        norm
    }

    /// Updates a part with its stored gradient. `clip` is a bound and the norm.
    pub(super) fn update(&self, part: &Part, rule: Rule, clip: Option<(f64, &Handle)>) {
        let Some(gradient) = &part.gradient else { return };
        // The norm is not read without clipping.
        let (bound, norm) = clip.unwrap_or((0.0, gradient));
        let buffers = [&part.values, &part.velocity, &part.copy, gradient, norm];
        let sizes = [words(part.classes * part.dim), words(part.count())].concat();
        let numbers = [&rule.numbers()[..], &[(bound as f32).to_bits()], &sizes].concat();
        self.launch(&self.update, MANY_BLOCKS, &buffers, &numbers);
    }
}

/// Copies rows of a bf16 matrix by their indices into `to`, and zeros behind them, `rows` in all.
pub(super) fn gather(card: &Card, from: &Handle, indices: &[u32], [rows, dim]: [usize; 2], to: &Handle) {
    let program = Program::new("gather", &[include_str!("gather.cu")], &[], THREADS, 0);
    let mut indices = indices.to_vec();
    indices.resize(rows, MISSING);
    let buffers = vec![from.clone(), card.upload_u32(indices), to.clone()];
    let arguments = Arguments { buffers, numbers: vec![rows as u32, dim as u32], ..Arguments::default() };
    card.launch(&program, (rows * dim / 8).div_ceil(THREADS as usize), arguments);
}

/// Splits a number into two words, the lower one first.
fn words(number: usize) -> [u32; 2] {
    let number = number as u64;
    [number as u32, (number >> 32) as u32]
}
