//! Kernels of a classifier's training step against plain sums.

use crate::card::{Arg, Card};
use crate::product::Kernel;
use crate::step::{Products, RULE, Step, small, words};
use crate::values::{noise, round};

fn near(what: &str, found: &[f32], exact: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), exact.len(), "{what}");
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let difference = (f64::from(*found) - exact).abs();
        assert!(difference <= exact.abs() * relative + absolute, "{what}: value {at} is {found}, not {exact}");
    }
}

impl Step {
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
    for kernel in Kernel::of_training() {
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
    // More sums than the threads that add them.
    const BLOCKS: usize = 150;
    let (count, copied) = (5003, 4800);
    let (values, velocity, gradient) = (noise(1, count), noise(2, count), noise(3, count));
    let norm = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    for (clip, momentum) in [(0.0, 0.9_f32), (0.5 * norm, 0.9), (2.0 * norm, 0.9), (0.5 * norm, 0.0)] {
        let mut card = Card::new();
        let (w, v, g) = (card.f32(&values), card.f32(&velocity), card.f32(&gradient));
        let (copy, sums, total) = (card.results(copied), card.results(2 * BLOCKS * 8), card.results(2));
        let args =
            [g, sums].map(Arg::Pointer).into_iter().chain([Arg::Info(vec![count as u32, 0])]).collect::<Vec<_>>();
        card.run(&small("squares", None), BLOCKS, 256, 0, &args);
        let args =
            [sums, total].map(Arg::Pointer).into_iter().chain([Arg::Info(vec![8 * BLOCKS as u32])]).collect::<Vec<_>>();
        card.run(&small("gradient_norm", None), 1, 1024, 0, &args);
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
