//! Compares training with torch (`tests/reference/head.py`) and with finite differences.

use super::*;

#[test]
fn twenty_steps_match_torch_for_any_tiling() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    for options in [(1, 50), (7, 7), (8, 50), (1000, 1000), (3, 1)].into_iter().flat_map(|(r, c)| engines(r, c)) {
        let mut trainer = trainer(reference.start(), reference.sgd(), options);
        for step in 0..20 {
            accumulate_reference_step(&mut trainer, &features, &labels, step);
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
fn soft_targets_and_smoothing_match_torch() {
    let reference = Reference::read();
    let features = reference.floats("features");
    let labels = reference.words("soft.labels", i32::from_le_bytes);
    let sgd = Sgd { label_smoothing: reference.number("label_smoothing"), ..reference.sgd() };
    for options in [(5, 16), (8, 50)].into_iter().flat_map(|(r, c)| engines(r, c)) {
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
fn gradient_matches_finite_differences() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let (features, labels) = (&features[..ROWS * DIM], &labels[..ROWS]);
    let start = reference.start();
    // One plain step at rate 1 changes the weights by the negative gradient.
    let [moved, on_host] = engines(3, 20).map(|options| {
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
fn bf16_products_approximate_f32() {
    let reference = Reference::read();
    let (features, labels) = (reference.floats("features"), reference.labels());
    let mut options = options(8, 20);
    options.compute = Compute::Bf16;
    let mut trainer = trainer(reference.start(), reference.sgd(), options);
    for step in 0..20 {
        accumulate_reference_step(&mut trainer, &features, &labels, step);
        trainer.step(reference.schedule().rate(step as u64)).unwrap();
    }
    let distance = distance(&trainer.state().unwrap().weight, &reference.floats("weight"));
    assert!(distance < 0.02, "{distance}");
    assert!(distance > 1e-6, "the products were not in bf16");
}
