//! The trainer against torch, against finite differences, and against itself.

use std::path::Path;

use burn::backend::Flex;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::train::{Schedule, ScheduleKind};

type Cpu = Flex;

const CLASSES: usize = 50;
const DIM: usize = 16;
const ROWS: usize = 8;

struct Reference {
    bytes: Vec<u8>,
    numbers: serde_json::Value,
}

impl Reference {
    fn read() -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference"));
        let numbers = std::fs::read(folder.join("head.json")).unwrap();
        Self {
            bytes: std::fs::read(folder.join("head.safetensors")).unwrap(),
            numbers: serde_json::from_slice(&numbers).unwrap(),
        }
    }

    fn words<T>(&self, name: &str, read: fn([u8; 4]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|word| read(word.try_into().unwrap())).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }

    fn labels(&self) -> Vec<u32> {
        self.words("labels", u32::from_le_bytes)
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers[name].as_f64().unwrap()
    }

    fn start(&self) -> HeadState {
        HeadState {
            classes: CLASSES,
            dim: DIM,
            weight: self.floats("start.weight"),
            bias: self.floats("start.bias"),
            weight_momentum: vec![0.0; CLASSES * DIM],
            bias_momentum: vec![0.0; CLASSES],
        }
    }

    fn sgd(&self) -> Sgd {
        Sgd {
            momentum: self.number("momentum"),
            weight_decay: self.number("weight_decay"),
            clip_norm: self.number("clip_norm"),
            label_smoothing: 0.0,
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule { kind: ScheduleKind::Linear, peak: self.number("peak"), warmup_steps: 4, total_steps: 20 }
    }
}

/// Largest difference over the largest expected magnitude; infinite where a number is not one.
fn distance(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let worst = actual.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
    });
    worst / scale
}

fn options(rows: usize, classes: usize) -> Options {
    Options { blocks: Blocks { rows, classes }, compute: Compute::F32, place: Place::Device }
}

/// Both places, where the blocks of classes are the engine's own on the host.
fn places(rows: usize, classes: usize) -> [Options; 2] {
    let device = options(rows, classes);
    [device, Options { place: Place::Host, ..device }]
}

fn trainer(state: HeadState, sgd: Sgd, options: Options) -> Trainer<Cpu> {
    Trainer::new(state, sgd, options, &<Cpu as burn::tensor::backend::BackendTypes>::Device::default()).unwrap()
}

const PLAIN: Sgd = Sgd { momentum: 0.0, weight_decay: 0.0, clip_norm: 0.0, label_smoothing: 0.0 };

/// One step of two micro-batches of the reference data.
fn reference_step(trainer: &mut Trainer<Cpu>, features: &[f32], labels: &[u32], step: usize) {
    for micro in 0..2 {
        let rows = (step * 2 + micro) * ROWS;
        let features = &features[rows * DIM..(rows + ROWS) * DIM];
        let targets = Targets::single(&labels[rows..rows + ROWS]);
        trainer.accumulate(&Features::Host(features), &targets, 2 * ROWS).unwrap();
    }
}

#[test]
fn twenty_steps_agree_with_torch_for_any_blocks() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    for options in [(1, 50), (7, 7), (8, 50), (1000, 1000), (3, 1)].into_iter().flat_map(|(r, c)| places(r, c)) {
        let mut trainer = trainer(reference.start(), reference.sgd(), options);
        for step in 0..20 {
            reference_step(&mut trainer, &features, &labels, step);
            let (sum, count) = trainer.take_loss().unwrap();
            let expected = reference.numbers["losses"][step].as_f64().unwrap();
            assert_eq!(count, 16);
            assert!((sum / 16.0 - expected).abs() < 1e-5 * expected, "loss of step {step}");
            let rate = reference.schedule().rate(step as u64);
            let expected = reference.numbers["rates"][step].as_f64().unwrap();
            assert!((rate - expected).abs() < 1e-12, "rate of step {step}");
            let report = trainer.step(rate).unwrap();
            assert_eq!((report.step, report.samples), (step as u64 + 1, 16));
            let norm = trainer.grad_norm().unwrap().unwrap();
            let expected = reference.numbers["norms"][step].as_f64().unwrap();
            assert!((norm - expected).abs() < 1e-5 * expected, "norm of step {step}");
        }
        let state = trainer.state().unwrap();
        for (name, values) in [
            ("weight", &state.weight),
            ("bias", &state.bias),
            ("weight.momentum", &state.weight_momentum),
            ("bias.momentum", &state.bias_momentum),
        ] {
            let distance = distance(values, &reference.floats(name));
            assert!(distance < 1e-5, "{name} is {distance} away, {options:?}");
        }
    }
}

#[test]
fn several_classes_a_row_and_smoothing_agree_with_torch() {
    let reference = Reference::read();
    let features = reference.floats("features");
    let labels = reference.words("soft.labels", i32::from_le_bytes);
    let sgd = Sgd { label_smoothing: reference.number("label_smoothing"), ..reference.sgd() };
    for options in [(5, 16), (8, 50)].into_iter().flat_map(|(r, c)| places(r, c)) {
        let mut trainer = trainer(reference.start(), sgd, options);
        for step in 0..20 {
            for micro in 0..2 {
                let rows = (step * 2 + micro) * ROWS..(step * 2 + micro + 1) * ROWS;
                let mut targets = Targets::default();
                for row in labels[3 * rows.start..3 * rows.end].chunks(3) {
                    let classes: Vec<u32> = row.iter().filter_map(|class| u32::try_from(*class).ok()).collect();
                    targets.push(&classes);
                }
                trainer
                    .accumulate(&Features::Host(&features[rows.start * DIM..rows.end * DIM]), &targets, 2 * ROWS)
                    .unwrap();
            }
            let expected = reference.numbers["soft_losses"][step].as_f64().unwrap();
            let found = trainer.take_loss().unwrap().0 / 16.0;
            assert!((found - expected).abs() < 1e-5 * expected, "loss of step {step}: {found}, {expected}");
            trainer.step(reference.schedule().rate(step as u64)).unwrap();
            let expected = reference.numbers["soft_norms"][step].as_f64().unwrap();
            let norm = trainer.grad_norm().unwrap().unwrap();
            assert!((norm - expected).abs() < 1e-5 * expected, "norm of step {step}");
        }
        let state = trainer.state().unwrap();
        for (name, values) in [
            ("soft.weight", &state.weight),
            ("soft.bias", &state.bias),
            ("soft.weight.momentum", &state.weight_momentum),
            ("soft.bias.momentum", &state.bias_momentum),
        ] {
            let distance = distance(values, &reference.floats(name));
            assert!(distance < 1e-5, "{name} is {distance} away, {options:?}");
        }
    }
}

#[test]
fn more_classes_than_a_tile_give_the_same_in_both_places() {
    // Two whole tiles of the host and a part of one; padding on the device.
    let (classes, dim, rows) = (2 * 512 + 37, 24, 19);
    let state = HeadState::init(classes, dim, 5);
    let features: Vec<f32> = HeadState::init(rows, dim, 6).weight.iter().map(|value| value * 60.0).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|row| (row * 131 + 1060) % classes as u32).collect();
    let sgd = Sgd { momentum: 0.9, weight_decay: 0.01, clip_norm: 0.05, label_smoothing: 0.05 };
    let [device, host] = places(7, 400).map(|options| {
        let mut trainer = trainer(state.clone(), sgd, options);
        for _ in 0..3 {
            trainer.accumulate(&Features::Host(&features[..]), &Targets::single(&labels), rows).unwrap();
            trainer.step(0.5).unwrap();
        }
        let scored = trainer.scorer().unwrap().score(&features, &labels, 3).unwrap();
        let ranked: Vec<Vec<u32>> = scored.into_iter().map(|row| row.top.classes).collect();
        (trainer.take_loss().unwrap().0, trainer.state().unwrap(), ranked)
    });
    assert!((device.0 - host.0).abs() < 1e-5 * host.0, "{}, {}", device.0, host.0);
    assert!(distance(&device.1.weight, &host.1.weight) < 1e-5);
    assert!(distance(&device.1.bias, &host.1.bias) < 1e-5);
    assert_eq!(device.2, host.2);
}

#[test]
fn features_that_stay_on_the_device_train_as_those_that_come_with_each_step() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let device = <Cpu as burn::tensor::backend::BackendTypes>::Device::default();
    let mut kept = Kept::<Cpu>::new(labels.len() + 3, DIM, DType::F32, &device);
    // In two parts, behind three rows of nothing.
    let half = labels.len() / 2;
    kept.put(3, &features[..half * DIM]).unwrap();
    kept.put(3 + half, &features[half * DIM..]).unwrap();
    assert!(kept.put(labels.len(), &features[..4 * DIM]).is_err() && kept.put(0, &features[..=DIM]).is_err());
    for options in places(5, 16) {
        let fresh = || trainer(reference.start(), reference.sgd(), options);
        let (mut with, mut without) = (fresh(), fresh());
        for step in 0..20 {
            let rows = step * 2 * ROWS..(step + 1) * 2 * ROWS;
            // Backwards, so that the indices matter.
            let indices: Vec<u32> = rows.clone().rev().map(|row| row as u32 + 3).collect();
            let of_rows = |row: usize| &features[row * DIM..(row + 1) * DIM];
            let values: Vec<f32> = rows.clone().rev().flat_map(of_rows).copied().collect();
            let targets = Targets::single(&rows.rev().map(|row| labels[row]).collect::<Vec<_>>());
            with.accumulate(&Features::Kept(&kept, &indices), &targets, 2 * ROWS).unwrap();
            without.accumulate(&Features::Host(&values[..]), &targets, 2 * ROWS).unwrap();
            for this in [&mut with, &mut without] {
                this.step(reference.schedule().rate(step as u64)).unwrap();
            }
        }
        assert_eq!(with.state().unwrap(), without.state().unwrap(), "{options:?}");
        let outside = [labels.len() as u32 + 3];
        assert!(with.accumulate(&Features::Kept(&kept, &outside), &Targets::single(&[0]), 1).is_err());
    }
}

#[test]
fn threads_do_not_change_a_bit_on_the_host() {
    let (classes, dim, rows) = (2000, 16, 33);
    let features: Vec<f32> = HeadState::init(rows, dim, 6).weight.iter().map(|value| value * 60.0).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|row| row * 60).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let sgd = Sgd { momentum: 0.9, clip_norm: 0.1, ..PLAIN };
            let mut trainer = trainer(HeadState::init(classes, dim, 5), sgd, places(16, 1)[1]);
            for _ in 0..3 {
                trainer.accumulate(&Features::Host(&features[..]), &Targets::single(&labels), rows).unwrap();
                trainer.step(0.5).unwrap();
            }
            trainer.state().unwrap().weight.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_run_through_the_host_ends_in_the_same_bits() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    for options in places(5, 16) {
        through_the_host(&reference, &features, &labels, options);
    }
}

fn through_the_host(reference: &Reference, features: &[f32], labels: &[u32], options: Options) {
    let fresh = || trainer(reference.start(), reference.sgd(), options);
    let (mut whole, mut parts) = (fresh(), fresh());
    for step in 0..20 {
        for this in [&mut whole, &mut parts] {
            reference_step(this, features, labels, step);
            this.step(reference.schedule().rate(step as u64)).unwrap();
        }
        if step % 3 == 1 {
            let (sum, count) = parts.loss().unwrap();
            parts = trainer(parts.state().unwrap(), reference.sgd(), options).resumed(step as u64 + 1, sum, count);
        }
    }
    let bits = |state: HeadState| {
        let all = [state.weight, state.bias, state.weight_momentum, state.bias_momentum];
        all.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(whole.state().unwrap()), bits(parts.state().unwrap()));
    let (whole, parts) = (whole.take_loss().unwrap(), parts.take_loss().unwrap());
    assert_eq!((whole.0.to_bits(), whole.1), (parts.0.to_bits(), parts.1));
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let (features, labels) = (&features[..ROWS * DIM], &labels[..ROWS]);
    let start = reference.start();
    // One plain step at rate 1 moves the weights by the negative gradient.
    let [moved, on_host] = places(3, 20).map(|options| {
        let mut once = trainer(start.clone(), PLAIN, options);
        once.accumulate(&Features::Host(features), &Targets::single(labels), ROWS).unwrap();
        once.step(1.0).unwrap();
        once.state().unwrap()
    });
    assert!(distance(&moved.weight, &on_host.weight) < 1e-6);
    let loss = |weight: &[f32], bias: &[f32]| {
        let mut sum = 0.0;
        for (row, &label) in features.chunks(DIM).zip(labels) {
            let logits: Vec<f64> = weight
                .chunks(DIM)
                .zip(bias)
                .map(|(w, &b)| {
                    let dot = w.iter().zip(row).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    dot.sum::<f64>() + f64::from(b)
                })
                .collect();
            sum += logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[label as usize];
        }
        sum / ROWS as f64
    };
    let slope = |change: &dyn Fn(&mut HeadState, f32)| {
        let at = |by: f32| {
            let mut state = start.clone();
            change(&mut state, by);
            loss(&state.weight, &state.bias)
        };
        (at(1.0 / 256.0) - at(-1.0 / 256.0)) * 128.0
    };
    for index in (0..CLASSES * DIM).step_by(7) {
        let expected = slope(&|state, by| state.weight[index] += by);
        let gradient = f64::from(start.weight[index] - moved.weight[index]);
        assert!((gradient - expected).abs() < 2e-5, "weight {index}: {gradient}, {expected}");
    }
    for index in 0..CLASSES {
        let expected = slope(&|state, by| state.bias[index] += by);
        let gradient = f64::from(start.bias[index] - moved.bias[index]);
        assert!((gradient - expected).abs() < 2e-5, "bias {index}: {gradient}, {expected}");
    }
}

#[test]
fn bf16_products_stay_near_f32() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let mut options = options(8, 20);
    options.compute = Compute::Bf16;
    let mut trainer = trainer(reference.start(), reference.sgd(), options);
    for step in 0..20 {
        reference_step(&mut trainer, &features, &labels, step);
        trainer.step(reference.schedule().rate(step as u64)).unwrap();
    }
    let distance = distance(&trainer.state().unwrap().weight, &reference.floats("weight"));
    assert!(distance < 0.02, "{distance}");
    assert!(distance > 1e-6, "the products were not in bf16");
}

#[test]
fn validation_loss_is_the_training_loss() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let (features, labels) = (&features[..21 * DIM], &labels[..21]);
    for options in places(4, 13) {
        let mut trainer = trainer(reference.start(), PLAIN, options);
        trainer.accumulate(&Features::Host(features), &Targets::single(labels), 21).unwrap();
        let (sum, _) = trainer.take_loss().unwrap();
        let scored = trainer.scorer().unwrap().score(features, labels, 5).unwrap();
        let validation: f64 = scored.iter().map(|row| row.loss).sum();
        assert!((sum - validation).abs() < 1e-4, "{sum}, {validation}");
    }
}

#[test]
fn a_label_outside_the_classes_is_refused_and_changes_nothing() {
    let mut trainer = trainer(HeadState::init(3, 2, 0), PLAIN, Options::default());
    let error = trainer.accumulate(&Features::Host(&[0.0; 4][..]), &Targets::single(&[0, 3]), 2).unwrap_err();
    assert_eq!(error.to_string(), "label `3` of row `1` is outside the `3` classes of the head");
    assert_eq!(trainer.take_loss().unwrap().1, 0);
    trainer.accumulate(&Features::Host(&[0.0; 4][..]), &Targets::single(&[0, 2]), 2).unwrap();
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_rate() {
    let mut trainer = trainer(HeadState::init(3, 2, 0), PLAIN, Options::default());
    trainer.accumulate(&Features::Host(&[1.0, 1.0][..]), &Targets::single(&[0]), 1).unwrap();
    trainer.step(0.25).unwrap();
    trainer.accumulate(&Features::Host(&[f32::NAN, 1.0][..]), &Targets::single(&[0]), 1).unwrap();
    let error = trainer.take_loss().unwrap_err();
    assert!(matches!(error, TrainError::Loss { step: 2, .. }));
    assert!(error.to_string().contains("step `2` is `NaN` after a step at learning rate `0.25`"));
}

#[test]
fn a_step_with_too_few_or_too_many_samples_is_refused() {
    let mut trainer = trainer(HeadState::init(3, 2, 0), PLAIN, Options::default());
    assert!(matches!(trainer.step(0.1), Err(TrainError::Accumulation { accumulated: 0, .. })));
    trainer.accumulate(&Features::Host(&[1.0; 2][..]), &Targets::single(&[0]), 2).unwrap();
    let short = trainer.step(0.1).unwrap_err();
    assert!(matches!(short, TrainError::Accumulation { accumulated: 1, expected: 2 }));
    trainer.accumulate(&Features::Host(&[1.0; 2][..]), &Targets::single(&[0]), 3).unwrap_err();
    trainer.accumulate(&Features::Host(&[1.0; 4][..]), &Targets::single(&[0, 1]), 2).unwrap_err();
    trainer.accumulate(&Features::Host(&[1.0; 2][..]), &Targets::single(&[1]), 2).unwrap();
    trainer.step(0.1).unwrap();
}

#[test]
fn settings_and_lengths_that_cannot_work_are_refused() {
    let device = <Cpu as burn::tensor::backend::BackendTypes>::Device::default();
    let new = |state, sgd, options| Trainer::<Cpu>::new(state, sgd, options, &device).err().unwrap();
    let head = || HeadState::init(3, 2, 0);
    let sgd = Sgd { momentum: 1.0, ..PLAIN };
    assert!(new(head(), sgd, Options::default()).to_string().contains("`momentum`"));
    let sgd = Sgd { clip_norm: f64::NAN, ..PLAIN };
    assert!(new(head(), sgd, Options::default()).to_string().contains("`clip_norm`"));
    assert!(new(head(), PLAIN, options(0, 1)).to_string().contains("`blocks.rows`"));
    assert!(new(HeadState::init(0, 2, 0), PLAIN, Options::default()).to_string().contains("`classes`"));
    let mut short = head();
    short.bias_momentum.pop();
    let error = new(short, PLAIN, Options::default());
    assert_eq!(error.to_string(), "`bias_momentum` holds `2` values, expected `3`");
    let mut trainer = trainer(head(), PLAIN, Options::default());
    trainer.accumulate(&Features::Host(&[0.0; 3][..]), &Targets::single(&[0, 1]), 2).unwrap_err();
    trainer.step(f64::INFINITY).unwrap_err();
    let mut without = Targets::single(&[1]);
    without.push(&[]);
    let error = trainer.accumulate(&Features::Host(&[0.0; 4][..]), &without, 2).unwrap_err();
    assert_eq!(error.to_string(), "row `1` of a batch has no class to be trained on");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn blocks_do_not_change_the_result_beyond_rounding(
        rows in 1usize..12, tile in 1usize..30, count in 1usize..20, seed: u64,
    ) {
        let state = HeadState::init(23, 5, seed);
        let features = HeadState::init(count, 5, seed ^ 1).weight.iter().map(|v| v * 50.0).collect::<Vec<_>>();
        let labels: Vec<u32> = (0..count as u32).map(|i| (i * 7) % 23).collect();
        let run = |options| {
            let mut trainer = trainer(state.clone(), Sgd { momentum: 0.5, ..PLAIN }, options);
            for _ in 0..2 {
                trainer.accumulate(&Features::Host(&features[..]), &Targets::single(&labels), count).unwrap();
                trainer.step(0.3).unwrap();
            }
            (trainer.take_loss().unwrap().0, trainer.state().unwrap().weight)
        };
        let (whole_loss, whole_weight) = run(options(100, 100));
        for (loss, weight) in places(rows, tile).map(run) {
            prop_assert!((loss - whole_loss).abs() < 1e-5 * whole_loss.abs());
            prop_assert!(distance(&weight, &whole_weight) < 1e-5);
        }
    }
}
