//! A training step of a classifier on the card, one kernel after the other.

use crate::card::{Arg, Card};
use crate::nvrtc::Source;
use crate::product::Kernel;
use crate::values::{noise, round};

const FOLDER: &str = "train/trainer/card";

/// A batch, a head with classes in two parts, and targets.
pub struct Step {
    pub rows: usize,
    pub classes: usize,
    pub dim: usize,
    pub features: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    /// Row, class and share of each pair, in the order of rows.
    pub pairs: Vec<(usize, usize, f32)>,
    smoothing: f32,
}

/// Factors of an update: scale, decay, momentum, rate.
pub const RULE: [f32; 4] = [0.25, 0.1, 0.9, 0.5];

impl Step {
    pub fn new(rows: usize, classes: usize, dim: usize) -> Self {
        let smoothing = 0.1;
        let pairs = (0..rows).flat_map(|row| {
            // One to three classes, spread over the head.
            let count = row % 3 + 1;
            (0..count).map(move |at| (row, (row * 37 + at * (classes / 3).max(1)) % classes, 0.9 / count as f32))
        });
        Self {
            rows,
            classes,
            dim,
            features: noise(1, rows * dim),
            weight: noise(2, classes * dim).into_iter().map(|value| round(value * 0.5)).collect(),
            bias: noise(3, classes),
            pairs: pairs.collect(),
            smoothing,
        }
    }

    pub fn padded(&self) -> usize {
        self.rows.next_multiple_of(8)
    }

    fn uniform(&self) -> f32 {
        self.smoothing / self.classes as f32
    }

    pub fn logit(&self, row: usize, class: usize) -> f64 {
        let left = &self.features[row * self.dim..(row + 1) * self.dim];
        let right = &self.weight[class * self.dim..(class + 1) * self.dim];
        let sum: f64 = left.iter().zip(right).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
        sum + f64::from(self.bias[class])
    }

    fn logits(&self, row: usize) -> Vec<f64> {
        (0..self.classes).map(|class| self.logit(row, class)).collect()
    }

    /// log Σ exp and loss of each row, and the difference of softmax and targets, `[classes][rows]`.
    pub fn exact(&self) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let (mut lse, mut losses) = (Vec::new(), Vec::new());
        let mut difference = vec![vec![0.0; self.rows]; self.classes];
        for row in 0..self.rows {
            let logits = self.logits(row);
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let own = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
            let total: f64 = logits.iter().sum();
            let mut expected = f64::from(self.uniform()) * total;
            for (line, logit) in difference.iter_mut().zip(&logits) {
                line[row] = (logit - own).exp() - f64::from(self.uniform());
            }
            for (_, class, share) in self.pairs.iter().filter(|pair| pair.0 == row) {
                expected += f64::from(*share) * logits[*class];
                difference[*class][row] -= f64::from(*share);
            }
            lse.push(own);
            losses.push(own - expected);
        }
        (lse, losses, difference)
    }

    /// Targets as in `targets.cu`.
    pub fn packed(&self) -> Vec<u32> {
        let column = |read: fn(&(usize, usize, f32)) -> u32| self.pairs.iter().map(read).collect::<Vec<_>>();
        let ends: Vec<u32> =
            (0..self.rows).map(|row| self.pairs.iter().filter(|pair| pair.0 <= row).count() as u32).collect();
        let shares = column(|pair| pair.2.to_bits());
        [column(|pair| pair.0 as u32), column(|pair| pair.1 as u32), shares, ends].concat()
    }
}

pub fn small(name: &str, fused: Option<u32>) -> Source {
    let definitions: Vec<_> = fused.map(|fused| ("FUSED", fused)).into_iter().collect();
    let path = |name: &str| format!("{FOLDER}/{name}.cu");
    let (rule, targets, file) = (path("rule"), path("targets"), path(name));
    let mut files = vec!["card/common.cu"];
    match name {
        "bias" | "update" => files.push(&rule),
        "target_logits" | "row_loss" | "set_targets" => files.push(&targets),
        _ => {}
    }
    files.push(&file);
    Source::new(&files, &definitions)
}

/// A product with an end of training.
pub fn product(kernel: Kernel, end: &str, definition: Option<(&str, u32)>) -> Source {
    let (rule, file) = (format!("{FOLDER}/rule.cu"), format!("{FOLDER}/{end}.cu"));
    let files: &[&str] = if end == "gradient" { &[&rule, &file] } else { &[&file] };
    kernel.source_with(files, &definition.into_iter().collect::<Vec<_>>())
}

pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Results of a step on the card.
pub struct Done {
    pub problems: Vec<String>,
    pub lse: Vec<f32>,
    pub losses: Vec<f32>,
    pub difference: Vec<f32>,
    /// Weights and biases, momentum, copy of the weights; or the gradient alone.
    pub values: Vec<f32>,
    pub velocity: Vec<f32>,
    pub copy: Vec<f32>,
    pub gradient: Vec<f32>,
}

/// Sources of the three products.
#[derive(Clone)]
pub struct Products {
    pub kernel: Kernel,
    pub statistics: Source,
    pub difference: Source,
    pub gradient: Source,
}

impl Products {
    pub fn new(kernel: Kernel, fused: bool) -> Self {
        Self {
            kernel,
            statistics: product(kernel, "statistics", Some(("COLUMNS_OUTER", 1))),
            difference: product(kernel, "difference", None),
            gradient: product(kernel, "gradient", Some(("FUSED", u32::from(fused)))),
        }
    }
}

impl Step {
    /// Runs all kernels of a step over a head of one part. Without `fused`, the gradient is stored and then added to itself.
    pub fn run(&self, products: &Products, fused: bool) -> Done {
        let mut card = Card::new();
        let at = Buffers::new(&mut card, self, products.kernel);
        let mut running = Running { step: self, products, card, at, problems: Vec::new() };
        running.losses();
        running.difference();
        running.gradient(fused);
        running.finish()
    }

    /// Weights and biases.
    fn count(&self) -> usize {
        self.classes * (self.dim + 1)
    }

    /// Strips of the statistics: another one lies before this part's.
    fn strips(&self, kernel: Kernel) -> usize {
        self.classes.div_ceil(if kernel == Kernel::Wgmma { 128 } else { 32 }) + 1
    }
}

/// Addresses on the card.
struct Buffers {
    x: u64,
    transposed: u64,
    values: u64,
    velocity: u64,
    copy: u64,
    packed: u64,
    statistics: u64,
    logits: u64,
    lse: u64,
    losses: u64,
    difference: u64,
    gradient: u64,
}

impl Buffers {
    fn new(card: &mut Card, step: &Step, kernel: Kernel) -> Self {
        let (rows, padded, strips, pairs) = (step.rows, step.padded(), step.strips(kernel), step.pairs.len());
        let mut features = step.features.clone();
        features.resize(padded * step.dim, 0.0);
        let mut statistics = vec![f32::NAN; 4 * rows * strips];
        for row in statistics.chunks_exact_mut(4 * strips) {
            row[..4].copy_from_slice(&[-1e30, 1.0, 0.0, 0.0]);
        }
        Self {
            x: card.bf16(&features),
            transposed: card.results(padded * step.dim),
            values: card.f32(&[&step.weight[..], &step.bias].concat()),
            velocity: card.f32(&noise(4, step.count())),
            copy: card.bf16(&step.weight),
            packed: card.bytes(&words(&step.packed())),
            statistics: card.f32(&statistics),
            logits: card.results(2 * pairs),
            lse: card.results(2 * padded),
            losses: card.results(2 * rows),
            difference: card.results(step.classes * padded),
            gradient: card.results(2 * step.count()),
        }
    }
}

fn pointers(list: &[u64]) -> Vec<Arg> {
    list.iter().map(|at| Arg::Pointer(*at)).collect()
}

fn numbers<const N: usize>(values: [usize; N]) -> [u32; N] {
    values.map(|value| value as u32)
}

/// A step under way.
struct Running<'a> {
    step: &'a Step,
    products: &'a Products,
    card: Card,
    at: Buffers,
    problems: Vec<String>,
}

impl Running<'_> {
    /// Runs a kernel of which each block takes some of the items.
    fn launch(&mut self, source: &Source, [items, per_block]: [usize; 2], buffers: &[u64], info: &[u32]) {
        let mut args = pointers(buffers);
        args.push(Arg::Info(info.to_vec()));
        self.problems.extend(self.card.try_run(source, items.div_ceil(per_block), 256, 0, &args));
    }

    /// Runs a product of two matrices with their rows.
    fn multiply(
        &mut self,
        source: &Source,
        [left, right]: [(u64, usize); 2],
        depth: usize,
        buffers: &[u64],
        info: &[u32],
    ) {
        let mut args = Vec::new();
        if self.products.kernel.has_maps() {
            args = vec![Card::map(left.0, left.1, depth), Card::map(right.0, right.1, depth)];
        }
        args.extend(pointers(&[&[left.0, right.0], buffers].concat()));
        args.push(Arg::Info([&numbers([left.1, right.1, depth]), info].concat()));
        let ([high, wide], threads, shared) = self.products.kernel.launch();
        let blocks = left.1.div_ceil(high) * right.1.div_ceil(wide);
        self.problems.extend(self.card.try_run(source, blocks, threads, shared, &args));
    }

    /// The biases in a buffer of weights, momentum or gradient.
    fn bias_at(&self, buffer: u64) -> u64 {
        buffer + 4 * (self.step.classes * self.step.dim) as u64
    }

    fn losses(&mut self) {
        let Step { rows, classes, dim, .. } = *self.step;
        let (padded, pairs, strips) =
            (self.step.padded(), self.step.pairs.len(), self.step.strips(self.products.kernel));
        let Buffers { x, transposed, copy, packed, statistics, logits, lse, losses, .. } = self.at;
        let (bias, products) = (self.bias_at(self.at.values), self.products);
        let items = [padded / 8 * dim, 256];
        self.launch(&small("transpose", None), items, &[x, transposed], &numbers([padded, dim]));
        let operands = [(x, rows), (copy, classes)];
        self.multiply(&products.statistics, operands, dim, &[bias, statistics], &numbers([strips, 1]));
        let info = numbers([pairs, 0, classes, dim]);
        self.launch(&small("target_logits", None), [pairs, 8], &[packed, x, copy, bias, logits], &info);
        let info = [&numbers([rows, padded, strips, pairs])[..], &[self.step.uniform().to_bits()]].concat();
        self.launch(&small("row_loss", None), [padded, 8], &[statistics, packed, logits, lse, losses], &info);
    }

    fn difference(&mut self) {
        let Step { rows, classes, dim, .. } = *self.step;
        let (padded, pairs, uniform) = (self.step.padded(), self.step.pairs.len(), self.step.uniform().to_bits());
        let Buffers { x, copy, packed, logits, lse, difference, .. } = self.at;
        let (bias, products) = (self.bias_at(self.at.values), self.products);
        let operands = [(copy, classes), (x, padded)];
        self.multiply(&products.difference, operands, dim, &[bias, lse, difference], &[rows as u32, uniform]);
        let info = [&numbers([pairs, 0, classes, padded])[..], &[uniform]].concat();
        self.launch(&small("set_targets", None), [pairs, 256], &[packed, logits, lse, difference], &info);
    }

    fn gradient(&mut self, fused: bool) {
        let Step { classes, dim, .. } = *self.step;
        let (padded, products) = (self.step.padded(), self.products);
        let Buffers { values, velocity, copy, difference, transposed, gradient, .. } = self.at;
        let [scale, decay, momentum, rate] = RULE.map(f32::to_bits);
        let operands = [(difference, classes), (transposed, dim)];
        let passes: &[&[u32]] = if fused { &[&[decay, momentum, rate]] } else { &[&[1], &[0]] };
        for how in passes {
            let weights = if fused { vec![values, velocity, copy] } else { vec![gradient] };
            let biases: Vec<u64> = weights.iter().take(2).map(|buffer| self.bias_at(*buffer)).collect();
            self.multiply(&products.gradient, operands, padded, &weights, &[&[scale], *how].concat());
            let info = [&numbers([classes, padded])[..], &[scale], how].concat();
            let buffers = [&[difference], &biases[..]].concat();
            self.launch(&small("bias", Some(u32::from(fused))), [classes, 8], &buffers, &info);
        }
    }

    fn finish(self) -> Done {
        let Self { step, card, at, problems, .. } = self;
        let (padded, count) = (step.padded(), step.count());
        Done {
            problems,
            lse: card.read_f32(at.lse, padded),
            losses: card.read_f32(at.losses, step.rows),
            difference: card.read(at.difference, step.classes * padded),
            values: card.read_f32(at.values, count),
            velocity: card.read_f32(at.velocity, count),
            copy: card.read(at.copy, step.classes * step.dim),
            gradient: card.read_f32(at.gradient, count),
        }
    }
}
