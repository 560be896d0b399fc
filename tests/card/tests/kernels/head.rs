//! Kernels of a classifier's training step: each against plain sums, and one after the other.

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
    features: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Row, class and share of each pair, in the order of rows.
    pairs: Vec<(usize, usize, f32)>,
    smoothing: f32,
}

/// Factors of an update: scale, decay, momentum, rate.
const RULE: [f32; 4] = [0.25, 0.1, 0.9, 0.5];

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

    fn logit(&self, row: usize, class: usize) -> f64 {
        let left = &self.features[row * self.dim..(row + 1) * self.dim];
        let right = &self.weight[class * self.dim..(class + 1) * self.dim];
        let sum: f64 = left.iter().zip(right).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum();
        sum + f64::from(self.bias[class])
    }

    fn logits(&self, row: usize) -> Vec<f64> {
        (0..self.classes).map(|class| self.logit(row, class)).collect()
    }

    /// log Σ exp and loss of each row, and the difference of softmax and targets, `[classes][rows]`.
    fn exact(&self) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let (mut lse, mut losses) = (Vec::new(), Vec::new());
        let mut difference = vec![vec![0.0; self.rows]; self.classes];
        for row in 0..self.rows {
            let logits = self.logits(row);
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let own = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
            let total: f64 = logits.iter().sum();
            let mut expected = f64::from(self.uniform()) * total;
            for (class, logit) in logits.iter().enumerate() {
                difference[class][row] = (logit - own).exp() - f64::from(self.uniform());
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
    fn packed(&self) -> Vec<u32> {
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

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn near(what: &str, found: &[f32], exact: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let difference = (f64::from(*found) - exact).abs();
        assert!(difference <= exact.abs() * relative + absolute, "{what}: value {at} is {found}, not {exact}");
    }
}

/// What a step leaves on the card.
pub struct Done {
    pub problems: Vec<String>,
    lse: Vec<f32>,
    pub losses: Vec<f32>,
    difference: Vec<f32>,
    /// Weights and biases, momentum, copy of the weights; or the gradient alone.
    values: Vec<f32>,
    velocity: Vec<f32>,
    copy: Vec<f32>,
    gradient: Vec<f32>,
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
        let kernel = products.kernel;
        let mut card = Card::new();
        let (rows, padded, classes, dim, pairs) = (self.rows, self.padded(), self.classes, self.dim, self.pairs.len());
        let mut features = self.features.clone();
        features.resize(padded * dim, 0.0);
        let strip = if kernel == Kernel::Wgmma { 128 } else { 32 };
        // Another strip before this part's.
        let strips = classes.div_ceil(strip) + 1;
        let count = classes * (dim + 1);
        let velocity: Vec<f32> = noise(4, count);
        let x = card.bf16(&features);
        let transposed = card.results(padded * dim);
        let values = card.f32(&[&self.weight[..], &self.bias].concat());
        let moved = card.f32(&velocity);
        let bias_at = |buffer: u64| buffer + 4 * (classes * dim) as u64;
        let copy = card.bf16(&self.weight);
        let packed = card.bytes(&words(&self.packed()));
        let mut first_strip = vec![f32::NAN; 4 * rows * strips];
        for row in 0..rows {
            first_strip[4 * row * strips..4 * row * strips + 4].copy_from_slice(&[-1e30, 1.0, 0.0, 0.0]);
        }
        let statistics = card.f32(&first_strip);
        let (logits, lse, losses) = (card.results(2 * pairs), card.results(2 * padded), card.results(2 * rows));
        let difference = card.results(classes * padded);
        let gradient = card.results(2 * count);
        let mut problems = Vec::new();
        let number = |value: usize| value as u32;
        let uniform = self.uniform().to_bits();

        let pointers = |list: &[u64]| list.iter().map(|at| Arg::Pointer(*at)).collect::<Vec<_>>();
        let mut launch =
            |card: &mut Card, source: &Source, threads: usize, per_block: usize, buffers: &[u64], info: &[u32]| {
                let mut args = pointers(buffers);
                args.push(Arg::Info(info.to_vec()));
                problems.extend(card.try_run(source, threads.div_ceil(per_block), 256, 0, &args));
            };
        launch(
            &mut card,
            &small("transpose", None),
            padded / 8 * dim,
            256,
            &[x, transposed],
            &[number(padded), number(dim)],
        );
        let mut found = Vec::new();
        let mut multiply = |card: &mut Card,
                            source: &Source,
                            [left, right]: [(u64, usize); 2],
                            depth: usize,
                            buffers: &[u64],
                            info: &[u32]| {
            let mut args = Vec::new();
            if kernel == Kernel::Wgmma {
                args = vec![Card::map(left.0, left.1, depth), Card::map(right.0, right.1, depth)];
            }
            args.extend(pointers(&[&[left.0, right.0], buffers].concat()));
            args.push(Arg::Info([&[number(left.1), number(right.1), number(depth)], info].concat()));
            let (side, threads, shared) = kernel.launch();
            let blocks = left.1.div_ceil(side) * right.1.div_ceil(side);
            found.extend(card.try_run(source, blocks, threads, shared, &args));
        };
        let bias = bias_at(values);
        multiply(
            &mut card,
            &products.statistics,
            [(x, rows), (copy, classes)],
            dim,
            &[bias, statistics],
            &[number(strips), 1],
        );
        let info = [pairs, 0, classes, dim].map(number);
        launch(&mut card, &small("target_logits", None), pairs, 8, &[packed, x, copy, bias, logits], &info);
        let info = [number(rows), number(padded), number(strips), number(pairs), uniform];
        launch(&mut card, &small("row_loss", None), padded, 8, &[statistics, packed, logits, lse, losses], &info);
        let info = [number(rows), uniform];
        multiply(&mut card, &products.difference, [(copy, classes), (x, padded)], dim, &[bias, lse, difference], &info);
        let info = [number(pairs), 0, number(classes), number(padded), uniform];
        launch(&mut card, &small("set_targets", None), pairs, 256, &[packed, logits, lse, difference], &info);
        let [scale, decay, momentum, rate] = RULE.map(f32::to_bits);
        let operands = [(difference, classes), (transposed, dim)];
        let ends: &[&[u32]] = if fused { &[&[decay, momentum, rate]] } else { &[&[1], &[0]] };
        for end in ends {
            let weights = if fused { vec![values, moved, copy] } else { vec![gradient] };
            let biases: Vec<u64> = weights.iter().take(2).map(|buffer| bias_at(*buffer)).collect();
            multiply(&mut card, &products.gradient, operands, padded, &weights, &[&[scale], *end].concat());
            let info = [&[number(classes), number(padded), scale], *end].concat();
            let buffers = [&[difference], &biases[..]].concat();
            launch(&mut card, &small("bias", Some(u32::from(fused))), classes, 8, &buffers, &info);
        }
        problems.extend(found);
        Done {
            problems,
            lse: card.read_f32(lse, padded),
            losses: card.read_f32(losses, rows),
            difference: card.read(difference, classes * padded),
            values: card.read_f32(values, count),
            velocity: card.read_f32(moved, count),
            copy: card.read(copy, classes * dim),
            gradient: card.read_f32(gradient, count),
        }
    }

    /// The gradient of weights and biases, from a difference in bf16.
    fn gradient(&self, difference: &[f32]) -> Vec<f64> {
        let padded = self.padded();
        let line = |class: usize| &difference[class * padded..class * padded + self.rows];
        let mut all = Vec::new();
        for class in 0..self.classes {
            for at in 0..self.dim {
                let products = line(class).iter().enumerate();
                all.push(
                    products
                        .map(|(row, value)| f64::from(*value) * f64::from(self.features[row * self.dim + at]))
                        .sum(),
                );
            }
        }
        all.extend((0..self.classes).map(|class| line(class).iter().map(|value| f64::from(*value)).sum::<f64>()));
        all.iter().map(|value| value * f64::from(RULE[0])).collect()
    }

    fn check(&self, kernel: Kernel, fused: bool) {
        let what = format!("{kernel:?}, {} × {} × {}, fused {fused}", self.rows, self.classes, self.dim);
        let done = self.run(&Products::new(kernel, fused), fused);
        assert!(done.problems.is_empty(), "{what}: {:#?}", done.problems);
        let (lse, losses, difference) = self.exact();
        near(&what, &done.lse[..self.rows], &lse, 1e-6, 1e-5);
        assert!(done.lse[self.rows..].iter().all(|lse| *lse == f32::INFINITY), "{what}");
        near(&what, &done.losses, &losses, 1e-6, 3e-5);
        let padded = self.padded();
        for (class, exact) in difference.iter().enumerate() {
            let line = &done.difference[class * padded..(class + 1) * padded];
            // One rounding to bf16.
            near(&what, &line[..self.rows], exact, 1.0 / 256.0, 1e-6);
            assert!(line[self.rows..].iter().all(|value| *value == 0.0), "{what}: padding of class {class}");
        }
        let gradient = self.gradient(&done.difference);
        if !fused {
            let twice: Vec<f64> = gradient.iter().map(|value| 2.0 * value).collect();
            near(&what, &done.gradient, &twice, 1e-5, 1e-5);
            return;
        }
        let before = [&self.weight[..], &self.bias].concat();
        let (mut values, mut velocity) = (Vec::new(), Vec::new());
        for ((value, old), gradient) in before.iter().zip(noise(4, before.len())).zip(&gradient) {
            let [_, decay, momentum, rate] = RULE.map(f64::from);
            let moved = momentum * f64::from(old) + gradient + decay * f64::from(*value);
            velocity.push(moved);
            values.push(f64::from(*value) - rate * moved);
        }
        near(&what, &done.velocity, &velocity, 1e-5, 1e-5);
        near(&what, &done.values, &values, 1e-5, 1e-5);
        let copied: Vec<f64> =
            done.values[..self.classes * self.dim].iter().map(|value| f64::from(round(*value))).collect();
        near(&what, &done.copy, &copied, 0.0, 0.0);
    }
}

#[test]
fn steps_are_right_for_odd_shapes() {
    for kernel in Kernel::all().into_iter().filter(|kernel| *kernel != Kernel::Small) {
        for [rows, classes, dim] in
            [[1, 3, 8], [1, 301, 64], [129, 131, 40], [17, 128, 72], [8, 33, 136], [200, 259, 24]]
        {
            Step::new(rows, classes, dim).check(kernel, true);
        }
        for [rows, classes, dim] in [[1, 130, 8], [129, 257, 16]] {
            Step::new(rows, classes, dim).check(kernel, false);
        }
    }
}

#[test]
fn pairs_of_other_parts_are_left_alone() {
    let step = Step::new(3, 40, 16);
    let mut card = Card::new();
    let pairs = step.pairs.len();
    // The launch covers classes 10 to 29 of a head.
    let (first, own) = (10, 20);
    let (packed, x) = (card.bytes(&words(&step.packed())), card.bf16(&step.features));
    let (weight, bias) =
        (card.bf16(&step.weight[first * 16..(first + own) * 16]), card.f32(&step.bias[first..first + own]));
    let logits = card.f32(&vec![7.5; pairs]);
    let info = [pairs, first, own, 16].map(|size| size as u32).to_vec();
    let args =
        [packed, x, weight, bias, logits].map(Arg::Pointer).into_iter().chain([Arg::Info(info)]).collect::<Vec<_>>();
    card.run(&small("target_logits", None), pairs.div_ceil(8), 256, 0, &args);
    let found = card.read_f32(logits, pairs);
    let mut inside = 0;
    for ((row, class, _), found) in step.pairs.iter().zip(found) {
        let is_own = (first..first + own).contains(class);
        inside += usize::from(is_own);
        let exact = if is_own { step.logit(*row, *class) } else { 7.5 };
        assert!((f64::from(found) - exact).abs() < 1e-5, "row {row}, class {class}: {found}, not {exact}");
    }
    assert!(inside > 0 && inside < pairs);
}

#[test]
fn rows_are_gathered_by_index() {
    let (rows, dim) = (9, 24);
    let values = noise(1, rows * dim);
    let mut card = Card::new();
    let (from, to) = (card.bf16(&values), card.results(4 * dim));
    let indices = card.bytes(&words(&[8, 0, u32::MAX, 3]));
    let args =
        [from, indices, to].map(Arg::Pointer).into_iter().chain([Arg::Info(vec![4, dim as u32])]).collect::<Vec<_>>();
    card.run(&small("gather", None), 1, 256, 0, &args);
    let found = card.read(to, 4 * dim);
    let row = |at: usize| values[at * dim..(at + 1) * dim].to_vec();
    assert_eq!(found, [row(8), row(0), vec![0.0; dim], row(3)].concat());
}

#[test]
fn clipped_updates_are_right() {
    let (count, copied) = (5003, 4800);
    let (values, velocity, gradient) = (noise(1, count), noise(2, count), noise(3, count));
    let norm = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    for (clip, momentum) in [(0.0, 0.9_f32), (0.5 * norm, 0.9), (2.0 * norm, 0.9), (0.5 * norm, 0.0)] {
        let mut card = Card::new();
        let (w, v, g) = (card.f32(&values), card.f32(&velocity), card.f32(&gradient));
        let (copy, sums, total) = (card.results(copied), card.results(2 * 3 * 8), card.results(2));
        let args =
            [g, sums].map(Arg::Pointer).into_iter().chain([Arg::Info(vec![count as u32, 0])]).collect::<Vec<_>>();
        card.run(&small("squares", None), 3, 256, 0, &args);
        let args = [sums, total].map(Arg::Pointer).into_iter().chain([Arg::Info(vec![3 * 8])]).collect::<Vec<_>>();
        card.run(&small("gradient_norm", None), 1, 32, 0, &args);
        near("norm", &card.read_f32(total, 1), &[norm], 1e-6, 0.0);
        let [_, decay, _, rate] = RULE;
        let mut info = [decay, momentum, rate, clip as f32].map(f32::to_bits).to_vec();
        info.extend([copied as u32, 0, count as u32, 0]);
        let args = [w, v, copy, g, total].map(Arg::Pointer).into_iter().chain([Arg::Info(info)]).collect::<Vec<_>>();
        card.run(&small("update", None), 4, 256, 0, &args);
        let factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let (mut exact, mut moved) = (Vec::new(), Vec::new());
        for ((value, old), gradient) in values.iter().zip(&velocity).zip(&gradient) {
            let gradient = f64::from(*gradient) * factor + f64::from(decay) * f64::from(*value);
            let next = if momentum > 0.0 { f64::from(momentum) * f64::from(*old) + gradient } else { gradient };
            moved.push(if momentum > 0.0 { next } else { f64::from(*old) });
            exact.push(f64::from(*value) - f64::from(rate) * next);
        }
        let found = card.read_f32(w, count);
        near("values", &found, &exact, 1e-6, 1e-6);
        near("momentum", &card.read_f32(v, count), &moved, 1e-6, 1e-6);
        let rounded: Vec<f32> = found[..copied].iter().map(|value| round(*value)).collect();
        assert_eq!(card.read(copy, copied), rounded);
    }
}
