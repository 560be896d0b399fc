//! Invariance of the result under tiling, threads, resumption and resident features.

use burn::tensor::DType;
use proptest::prelude::*;

use super::*;
use crate::train::DeviceFeatures;

#[test]
fn engines_agree_on_several_tiles() {
    // Two complete tiles and a partial one on the CPU; padding classes on the device.
    let (classes, dim, rows) = (2 * 512 + 37, 24, 19);
    let state = HeadState::init(classes, dim, 5);
    let features: Vec<f32> = HeadState::init(rows, dim, 6).weight.iter().map(|value| value * 60.0).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|row| (row * 131 + 1060) % classes as u32).collect();
    let sgd = Sgd { momentum: 0.9, weight_decay: 0.01, clip_norm: 0.05, label_smoothing: 0.05 };
    let [device, host] = engines(7, 400).map(|options| {
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
fn resident_features_match_uploaded_features() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let device = <Cpu as burn::tensor::backend::BackendTypes>::Device::default();
    let mut resident = DeviceFeatures::<Cpu>::new(labels.len() + 3, DIM, DType::F32, Options::default(), &device);
    // Two writes, after three rows of zeros.
    let half = labels.len() / 2;
    resident.write_rows(3, &features[..half * DIM]).unwrap();
    resident.write_rows(3 + half, &features[half * DIM..]).unwrap();
    assert!(
        resident.write_rows(labels.len(), &features[..4 * DIM]).is_err()
            && resident.write_rows(0, &features[..=DIM]).is_err()
    );
    for options in engines(5, 16) {
        let fresh = || trainer(reference.start(), reference.sgd(), options);
        let (mut with, mut without) = (fresh(), fresh());
        for step in 0..20 {
            let rows = step * 2 * ROWS..(step + 1) * 2 * ROWS;
            // Reversed, so that the indices matter.
            let indices: Vec<u32> = rows.clone().rev().map(|row| row as u32 + 3).collect();
            let of_rows = |row: usize| &features[row * DIM..(row + 1) * DIM];
            let values: Vec<f32> = rows.clone().rev().flat_map(of_rows).copied().collect();
            let targets = Targets::single(&rows.rev().map(|row| labels[row]).collect::<Vec<_>>());
            with.accumulate(&Features::Device(&resident, &indices), &targets, 2 * ROWS).unwrap();
            without.accumulate(&Features::Host(&values[..]), &targets, 2 * ROWS).unwrap();
            for this in [&mut with, &mut without] {
                this.step(reference.schedule().rate(step as u64)).unwrap();
            }
        }
        assert_eq!(with.state().unwrap(), without.state().unwrap(), "{options:?}");
        let outside = [labels.len() as u32 + 3];
        assert!(with.accumulate(&Features::Device(&resident, &outside), &Targets::single(&[0]), 1).is_err());
    }
}

#[test]
fn thread_count_does_not_change_cpu_results() {
    let (classes, dim, rows) = (2000, 16, 33);
    let features: Vec<f32> = HeadState::init(rows, dim, 6).weight.iter().map(|value| value * 60.0).collect();
    let labels: Vec<u32> = (0..rows as u32).map(|row| row * 60).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let sgd = Sgd { momentum: 0.9, clip_norm: 0.1, ..PLAIN };
            let mut trainer = trainer(HeadState::init(classes, dim, 5), sgd, engines(16, 1)[1]);
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
fn resumed_run_ends_with_the_same_bits() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    for options in engines(5, 16) {
        check_resumed_run(&reference, &features, &labels, options);
    }
}

fn check_resumed_run(reference: &Reference, features: &[f32], labels: &[u32], options: Options) {
    let fresh = || trainer(reference.start(), reference.sgd(), options);
    let (mut whole, mut parts) = (fresh(), fresh());
    for step in 0..20 {
        for this in [&mut whole, &mut parts] {
            accumulate_reference_step(this, features, labels, step);
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
fn validation_loss_equals_training_loss() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let (features, labels) = (&features[..21 * DIM], &labels[..21]);
    for options in engines(4, 13) {
        let mut trainer = trainer(reference.start(), PLAIN, options);
        trainer.accumulate(&Features::Host(features), &Targets::single(labels), 21).unwrap();
        let (sum, _) = trainer.take_loss().unwrap();
        let scored = trainer.scorer().unwrap().score(features, labels, 5).unwrap();
        let validation: f64 = scored.iter().map(|row| row.loss).sum();
        assert!((sum - validation).abs() < 1e-4, "{sum}, {validation}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn tiling_changes_results_by_rounding_only(
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
        for (loss, weight) in engines(rows, tile).map(run) {
            prop_assert!((loss - whole_loss).abs() < 1e-5 * whole_loss.abs());
            prop_assert!(distance(&weight, &whole_weight) < 1e-5);
        }
    }
}
