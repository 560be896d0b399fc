//! Learning rate as a pure function of the step, so that a resumed run needs no scheduler state.
//!
//! The formulas equal those of transformers: `get_linear_schedule_with_warmup`,
//! `get_constant_schedule_with_warmup` and `get_cosine_schedule_with_warmup` (half a cycle).

use serde::{Deserialize, Serialize};

pub use crate::types::ScheduleKind;

/// Learning-rate schedule: linear warm-up from 0 to the peak, then a decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Decay after the warm-up.
    pub kind: ScheduleKind,
    /// Largest rate.
    pub peak: f64,
    /// Steps of the warm-up; 0 starts at the peak.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl Schedule {
    /// Creates a schedule whose warm-up is a share of the run, rounded up, as with transformers' `warmup_ratio`.
    #[expect(clippy::cast_sign_loss, reason = "the number is not negative")]
    pub fn with_ratio(kind: ScheduleKind, peak: f64, warmup_ratio: f64, total_steps: u64) -> Self {
        let warmup = (total_steps as f64 * warmup_ratio).ceil().max(0.0);
        Self {
            kind,
            peak,
            // The cast saturates and maps NaN to 0.
            warmup_steps: (warmup as u64).min(total_steps),
            total_steps,
        }
    }

    /// Returns the rate of a step, counted from 0. With a warm-up the first rate is 0, as in transformers.
    ///
    /// The rate at and beyond the last step is 0, except with [`ScheduleKind::Constant`].
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step as f64 / self.warmup_steps as f64);
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => self.total_steps.saturating_sub(step) as f64 / length,
            ScheduleKind::Cosine => {
                let progress = ((step - self.warmup_steps) as f64 / length).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_match_transformers() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/head.json"));
        let reference: serde_json::Value = serde_json::from_str(text).unwrap();
        for (name, kind) in
            [("linear", ScheduleKind::Linear), ("constant", ScheduleKind::Constant), ("cosine", ScheduleKind::Cosine)]
        {
            let rates = reference["schedules"][name].as_array().unwrap();
            let schedule = Schedule { kind, peak: 0.3, warmup_steps: 4, total_steps: 20 };
            // Beyond the last step, the cosine of transformers rises again; here the rate stays 0.
            for (step, rate) in rates.iter().enumerate().take(21) {
                let difference = schedule.rate(step as u64) - rate.as_f64().unwrap();
                assert!(difference.abs() < 1e-12, "{name}, step {step}");
            }
        }
    }

    #[test]
    fn warmup_ratio_is_rounded_up_and_capped() {
        let steps = |ratio, total| Schedule::with_ratio(ScheduleKind::Linear, 1.0, ratio, total).warmup_steps;
        assert_eq!(steps(0.1, 11), 2);
        assert_eq!(steps(0.0, 11), 0);
        assert_eq!(steps(7.0, 11), 11);
        assert_eq!(steps(f64::NAN, 11), 0);
    }

    proptest! {
        #[test]
        fn rates_stay_between_zero_and_the_peak(
            kind in prop::sample::select(vec![ScheduleKind::Linear, ScheduleKind::Constant, ScheduleKind::Cosine]),
            warmup_steps in 0u64..50, total_steps in 0u64..50, step in 0u64..120,
        ) {
            let rate = Schedule { kind, peak: 2.0, warmup_steps, total_steps }.rate(step);
            prop_assert!((0.0..=2.0).contains(&rate), "{}", rate);
        }
    }
}
