//! Stand-in for `crate::types::ValidationSplit`.

use crate::train::validation::is_validation;

/// Images held out for validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ValidationSplit {
    pub(crate) seed: u64,
    pub(crate) fraction: f64,
}

impl ValidationSplit {
    pub(crate) fn contains(self, image_url: &str) -> bool {
        is_validation(image_url, self.seed, self.fraction)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.fraction.is_nan() || self.fraction <= 0.0
    }
}
