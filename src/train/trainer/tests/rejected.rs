//! Rejected settings, labels, lengths and losses.

use super::*;

#[test]
fn unknown_label_is_rejected_without_effect() {
    let mut trainer = trainer(HeadState::init(3, 2, 0), PLAIN, Options::default());
    let error = trainer.accumulate(&Features::Host(&[0.0; 4][..]), &Targets::single(&[0, 3]), 2).unwrap_err();
    assert_eq!(error.to_string(), "label `3` of row `1` is outside the `3` classes of the head");
    assert_eq!(trainer.take_loss().unwrap().1, 0);
    trainer.accumulate(&Features::Host(&[0.0; 4][..]), &Targets::single(&[0, 2]), 2).unwrap();
}

#[test]
fn loss_error_names_step_and_rate() {
    let mut trainer = trainer(HeadState::init(3, 2, 0), PLAIN, Options::default());
    trainer.accumulate(&Features::Host(&[1.0, 1.0][..]), &Targets::single(&[0]), 1).unwrap();
    trainer.step(0.25).unwrap();
    trainer.accumulate(&Features::Host(&[f32::NAN, 1.0][..]), &Targets::single(&[0]), 1).unwrap();
    let error = trainer.take_loss().unwrap_err();
    assert!(matches!(error, TrainError::Loss { step: 2, .. }));
    assert!(error.to_string().contains("step `2` is `NaN` after a step at learning rate `0.25`"));
}

#[test]
fn wrong_sample_count_is_rejected() {
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
fn invalid_settings_and_lengths_are_rejected() {
    let device = <Cpu as burn::tensor::backend::BackendTypes>::Device::default();
    let new = |state, sgd, options| Trainer::<Cpu>::new(state, sgd, options, &device).err().unwrap();
    let head = || HeadState::init(3, 2, 0);
    let sgd = Sgd { momentum: 1.0, ..PLAIN };
    assert!(new(head(), sgd, Options::default()).to_string().contains("`momentum`"));
    let sgd = Sgd { clip_norm: f64::NAN, ..PLAIN };
    assert!(new(head(), sgd, Options::default()).to_string().contains("`clip_norm`"));
    assert!(new(head(), PLAIN, options(0, 1)).to_string().contains("`tiling.rows`"));
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
