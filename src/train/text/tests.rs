//! Compares the contrastive trainer with torch (`tests/reference/text_head.py`) and checks its invariants.

use burn::backend::flex::FlexDevice;

use super::*;
use crate::model::{Any, AnyDevice};
use crate::reference;
use crate::train::{Features, TrainError};

fn device() -> AnyDevice {
    AnyDevice::Flex(FlexDevice)
}

struct Reference(Vec<u8>);

impl Reference {
    fn open() -> Self {
        Self(std::fs::read(reference::fixture("text_head.safetensors")).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f32> {
        reference::read_f32(&self.0, name).unwrap_or_else(|| panic!("{name}"))
    }

    /// Returns the head from which the reference training starts.
    fn start(&self, kind: &str, hidden: usize) -> TextState {
        let statistics = [self.values("mean"), self.values("std"), vec![0.0; 8]];
        let mut head = TextHead::init(statistics, hidden, 1);
        let last = head.parameters.len() - 1;
        for (number, parameter) in head.parameters[..last].iter_mut().enumerate() {
            parameter.values = self.values(&format!("{kind}.first.{number}"));
        }
        TextState::new(head)
    }
}

const ADAM: AdamW =
    AdamW { momentum: 0.9, weight_decay: 0.05, clip_norm: 0.8, fixed_scale: false, dropout: 0.0, seed: 5 };

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() < 2e-5 * other.abs().max(1.0), "{what}: {one} for {other}");
    }
}

/// Runs one step of the reference in micro-batches of 24 pairs.
fn run_step(reference: &Reference, trainer: &mut TextTrainer<Any>, step: usize) {
    let (features, vectors, has) = (reference.values("features"), reference.values("vectors"), reference.values("has"));
    let pairs = reference.values("pairs");
    let step_pairs: Vec<(usize, usize)> =
        pairs[step * 96..(step + 1) * 96].chunks(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect();
    for part in step_pairs.chunks(24) {
        let rows: Vec<f32> =
            part.iter().flat_map(|(image, _)| features[image * 10..(image + 1) * 10].to_vec()).collect();
        let captions: Vec<f32> = part.iter().flat_map(|(_, text)| vectors[text * 8..(text + 1) * 8].to_vec()).collect();
        let every = (0..part.len() as u32).flat_map(|row| (0..part.len() as u32).map(move |column| (row, column)));
        let masked: Vec<(u32, u32)> =
            every.filter(|(row, column)| has[part[*row as usize].0 * 60 + part[*column as usize].1] > 0.0).collect();
        assert!(masked.len() > part.len());
        let pairs = ContrastiveBatch { captions: &captions, masked_negatives: &masked };
        trainer.accumulate(&Features::Host(&rows), pairs, 48).unwrap();
    }
    trainer.step(0.02).unwrap();
}

#[test]
fn fifty_steps_match_torch() {
    let reference = Reference::open();
    for (kind, hidden) in [("linear", 0), ("hidden", 14)] {
        let mut trainer = TextTrainer::<Any>::new(reference.start(kind, hidden), ADAM, 0, (0.0, 0), &device()).unwrap();
        for (step, expected) in reference.values(&format!("{kind}.losses")).into_iter().enumerate() {
            run_step(&reference, &mut trainer, step);
            let (sum, count) = trainer.take_loss().unwrap();
            assert_eq!(count, 48);
            assert_close(&[(sum / 48.0) as f32], &[expected], &format!("{kind}, loss of step {step}"));
        }
        let head = trainer.state().unwrap().head;
        let last = head.parameters.len() - 1;
        for (number, parameter) in head.parameters[..last].iter().enumerate() {
            assert_close(&parameter.values, &reference.values(&format!("{kind}.last.{number}")), parameter.name);
        }
        assert_close(&head.parameters[last].values, &reference.values(&format!("{kind}.log_scale")), "logit_scale");
    }
}

#[test]
fn resumed_state_continues_bit_for_bit() {
    let reference = Reference::open();
    let new = |state, step, losses| TextTrainer::<Any>::new(state, ADAM, step, losses, &device()).unwrap();
    let mut whole = new(reference.start("hidden", 14), 0, (0.0, 0));
    let mut cut = new(reference.start("hidden", 14), 0, (0.0, 0));
    for step in 0..12 {
        run_step(&reference, &mut whole, step);
        run_step(&reference, &mut cut, step);
        if step % 3 == 1 {
            let losses = cut.loss().unwrap();
            cut = new(cut.state().unwrap(), step as u64 + 1, losses);
        }
    }
    assert_eq!(whole.state().unwrap(), cut.state().unwrap());
    assert_eq!(whole.take_loss().unwrap(), cut.take_loss().unwrap());
}

#[test]
fn head_of_some_columns_equals_a_head_of_those_features_alone() {
    let reference = Reference::open();
    let mut whole = TextTrainer::<Any>::new(reference.start("hidden", 14), ADAM, 0, (0.0, 0), &device()).unwrap();
    let state = reference.start("hidden", 14);
    let (input, output) = (state.head.input, state.head.output);
    let columns = Some(Columns { first: 2, of: input + 5 });
    let state = TextState { head: state.head.with_columns(columns), ..state };
    let mut part = TextTrainer::<Any>::new(state, ADAM, 0, (0.0, 0), &device()).unwrap();
    let rows = 6;
    let value = |at: usize| ((at * 37) as f32 * 0.61).sin();
    let features: Vec<f32> = (0..rows * input).map(value).collect();
    let wide: Vec<f32> = features.chunks(input).flat_map(|row| [&[9.0, 8.0], row, &[7.0; 3]].concat()).collect();
    let mut captions: Vec<f32> = (0..rows * output).map(|at| value(at + 1000)).collect();
    centre_and_normalise(&mut captions, &vec![0.0; output]);
    let batch = ContrastiveBatch { captions: &captions, masked_negatives: &[] };
    for _ in 0..3 {
        whole.accumulate(&Features::Host(&features), batch, rows).unwrap();
        part.accumulate(&Features::Host(&wide), batch, rows).unwrap();
        whole.step(0.01).unwrap();
        part.step(0.01).unwrap();
    }
    assert_eq!(whole.state().unwrap().head.parameters, part.state().unwrap().head.parameters);
    assert_eq!(whole.projector().project(&features, rows).unwrap(), part.projector().project(&wide, rows).unwrap());
    let wrong = reference.start("hidden", 14).head.with_columns(Some(Columns { first: 6, of: input + 5 }));
    assert!(Projector::<Any>::new(&wrong, &device()).is_err(), "the columns end after the features");
}

#[test]
fn fixed_scale_stays_and_dropout_resumes_bit_for_bit() {
    let reference = Reference::open();
    for (kind, hidden) in [("linear", 0), ("hidden", 14)] {
        let adam = AdamW { fixed_scale: true, dropout: 0.3, ..ADAM };
        let new = |state, step, losses, adam| TextTrainer::<Any>::new(state, adam, step, losses, &device()).unwrap();
        let start = || {
            let mut state = reference.start(kind, hidden);
            state.head = state.head.with_scale(6.0);
            state
        };
        let mut whole = new(start(), 0, (0.0, 0), adam);
        let mut cut = new(start(), 0, (0.0, 0), adam);
        let mut other = new(start(), 0, (0.0, 0), AdamW { seed: 6, ..adam });
        for step in 0..6 {
            for trainer in [&mut whole, &mut cut, &mut other] {
                run_step(&reference, trainer, step);
            }
            if step == 2 {
                let losses = cut.loss().unwrap();
                cut = new(cut.state().unwrap(), 3, losses, adam);
            }
        }
        let head = whole.state().unwrap().head;
        assert!((head.scale() - 6.0).abs() < 1e-5, "{}", head.scale());
        assert_eq!(whole.state().unwrap(), cut.state().unwrap(), "{kind}");
        assert_ne!(head, other.state().unwrap().head, "another seed drops others");
    }
}

#[test]
fn gradient_with_dropout_matches_finite_differences() {
    let reference = Reference::open();
    for (kind, hidden) in [("linear", 0), ("hidden", 14)] {
        let adam = AdamW { momentum: 0.0, weight_decay: 0.0, clip_norm: 0.0, dropout: 0.4, ..ADAM };
        // Loss of the first step, whose dropped inputs depend on the seed alone.
        let loss = |state: TextState| {
            let mut trainer = TextTrainer::<Any>::new(state, adam, 0, (0.0, 0), &device()).unwrap();
            run_step(&reference, &mut trainer, 0);
            (trainer.loss().unwrap().0 / 48.0, trainer.state().unwrap())
        };
        let start = reference.start(kind, hidden);
        let (_, after) = loss(start.clone());
        // The first moment of the first update is the gradient itself without momentum.
        for (parameter, value) in [(0, 0), (0, 17), (start.head.parameters.len() - 3, 5)] {
            let shifted = |by: f32| {
                let mut state = start.clone();
                state.head.parameters[parameter].values[value] += by;
                loss(state).0
            };
            let difference = (shifted(0.01) - shifted(-0.01)) / 0.02;
            let gradient = f64::from(after.first[parameter][value]);
            assert!(
                (difference - gradient).abs() < 2e-2 * gradient.abs().max(0.05),
                "{kind}: {difference} for {gradient}"
            );
        }
    }
}

#[test]
fn outputs_have_unit_length_and_invalid_input_is_rejected() {
    let reference = Reference::open();
    let state = reference.start("linear", 0);
    let projector = Projector::<Any>::new(&state.head, &device()).unwrap();
    let vectors = projector.project(&reference.values("features"), 40).unwrap();
    for vector in vectors.chunks(8) {
        assert!((vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert!(projector.project(&[], 0).unwrap().is_empty());
    assert!(projector.project(&[0.0; 9], 1).is_err());
    assert!((state.head.scale() - 14.285_714).abs() < 1e-4);
    let mut trainer = TextTrainer::<Any>::new(state.clone(), ADAM, 0, (0.0, 0), &device()).unwrap();
    let pairs = ContrastiveBatch { captions: &[0.0; 16], masked_negatives: &[(0, 2)] };
    assert!(trainer.accumulate(&Features::Host(&[0.0; 20]), pairs, 2).is_err());
    let pairs = ContrastiveBatch { captions: &[f32::NAN; 16], masked_negatives: &[] };
    trainer.accumulate(&Features::Host(&[1.0; 20]), pairs, 2).unwrap();
    assert!(matches!(trainer.take_loss(), Err(TrainError::Loss { .. })));
    let adam = AdamW { momentum: 1.0, ..ADAM };
    assert!(TextTrainer::<Any>::new(state, adam, 0, (0.0, 0), &device()).is_err());
}

#[test]
fn running_moments_match_two_pass_moments() {
    let rows: Vec<f32> = (0..300).map(|at| 1e3 + (at as f32 * 0.7).sin() * (1 + at % 3) as f32).collect();
    let mut running = RunningMoments::default();
    rows.chunks(3).for_each(|row| running.add(row));
    for value in 0..3 {
        let own: Vec<f64> = rows.iter().skip(value).step_by(3).map(|value| f64::from(*value)).collect();
        let mean = own.iter().sum::<f64>() / 100.0;
        let variance = own.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 100.0;
        assert!((f64::from(running.mean()[value]) - mean).abs() < 1e-3);
        assert!((f64::from(running.std()[value]) - variance.sqrt()).abs() < 1e-4);
    }
    let mut constant = RunningMoments::default();
    constant.add(&[5.0]);
    constant.add(&[5.0]);
    assert_eq!((constant.std(), constant.rows()), (vec![1.0], 2));
}
