//! Number of classes before the catalog is built, and the memory and disk that they take.

use bytesize::ByteSize;

use super::Check;
use crate::config::{ConfigError, HeadConfig, RunConfig, Stage};
use crate::device::SelectedDevice;
use crate::pipeline::captions::Encoder;
use crate::pipeline::needs::ClassNeeds;
use crate::pipeline::resolve::FeatureShape;
use crate::runtime::HostMemory;

/// Number of classes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClassCount {
    /// Counted.
    Exact(u64),
    /// Estimated from a sample.
    About(u64),
}

impl Default for ClassCount {
    fn default() -> Self {
        Self::Exact(0)
    }
}

impl std::fmt::Display for ClassCount {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(classes) => write!(out, "{classes} classes"),
            Self::About(classes) => write!(out, "the captions themselves are the classes, about {}", round(*classes)),
        }
    }
}

/// Ratio of the estimate to the smallest number of classes that is judged. Captions repeat more often in a whole corpus
/// than in a sample of neighbouring rows, so the estimate is often too high: by 2 for the pairs of Wikipedia.
const MARGIN: u64 = 2;

/// Growth of the number of distinct captions with the number of rows.
#[derive(Debug, Default)]
pub(super) struct DistinctCurve {
    /// Distinct captions after each row.
    distinct: Vec<u64>,
}

impl DistinctCurve {
    /// Adds a row, after which there are `distinct` captions.
    pub(super) fn add(&mut self, distinct: u64) {
        self.distinct.push(distinct);
    }

    /// Estimates the distinct captions of `all_bytes` bytes of rows, of which the sample is `sample_bytes`.
    ///
    /// The number of distinct values grows like a power of the number of rows (Heaps' law). The two halves of the sample
    /// determine the exponent.
    pub(super) fn extrapolate(&self, sample_bytes: u64, all_bytes: u64) -> ClassCount {
        let Some(&distinct) = self.distinct.last() else { return ClassCount::About(0) };
        let half = self.distinct.get((self.distinct.len() / 2).saturating_sub(1)).copied().unwrap_or(1).max(1);
        if sample_bytes >= all_bytes || distinct == 0 {
            return ClassCount::Exact(distinct);
        }
        let exponent = (distinct as f64 / half as f64).log2().clamp(0.0, 1.0);
        let growth = all_bytes as f64 / sample_bytes.max(1) as f64;
        ClassCount::About((distinct as f64 * growth.powf(exponent)) as u64)
    }
}

/// Rounds an estimate to two digits, with a unit.
pub(super) fn round(number: u64) -> String {
    match number {
        0..100 => number.to_string(),
        100..1_000_000 => {
            let scale = 10_u64.pow(number.ilog10() - 1);
            (number / scale * scale).to_string()
        }
        _ => format!("{:.1} million", number as f64 / 1e6),
    }
}

/// Models that the classes are trained with.
#[derive(Clone, Copy)]
pub(super) struct TrainedModels<'a> {
    pub(super) shape: FeatureShape,
    pub(super) device: &'a SelectedDevice,
    pub(super) encoder: Option<&'a Encoder>,
}

/// Adds the memory of the heads to the needs, and a problem if the classes exceed memory or disk.
pub(super) fn check_needs(config: &RunConfig, count: ClassCount, models: TrainedModels<'_>, check: &mut Check) {
    let TrainedModels { shape, device, encoder } = models;
    let ranks_classes = config.predict().is_some_and(|predict| predict.captions.is_none())
        && config.catalog().is_some_and(|catalog| catalog.captions.list.is_none());
    let (classes, about) = match count {
        ClassCount::Exact(classes) => (classes, ""),
        ClassCount::About(classes) => (classes, "about "),
    };
    let needs = ClassNeeds {
        config,
        classes,
        held_bytes: 0,
        labelled: None,
        shape,
        device,
        host: HostMemory::detect(),
        encoder,
        ranks_classes,
    };
    if let (HeadConfig::Classes, Some(settings), true) = (config.head(), config.train(), config.runs(Stage::Train)) {
        let bytes = ByteSize(needs.head_bytes(settings).total());
        check
            .needs
            .insert("head".to_owned(), format!("{about}{bytes} of memory for {about}{} classes", round(classes)));
    }
    let judged = match count {
        ClassCount::Exact(classes) => classes,
        ClassCount::About(classes) => classes / MARGIN,
    };
    let mut problems = ClassNeeds { classes: judged, ..needs }.problems();
    if matches!(count, ClassCount::About(_)) {
        for problem in &mut problems {
            problem.what.push_str(&format!(
                " (the pairs have about {} distinct captions, estimated from their first rows; this check assumes half of that)",
                round(classes)
            ));
        }
    }
    if !problems.is_empty() {
        check.add_problem(&ConfigError(problems).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(distinct: impl Iterator<Item = u64>) -> DistinctCurve {
        DistinctCurve { distinct: distinct.collect() }
    }

    #[test]
    fn distinct_rows_are_extrapolated_in_proportion() {
        assert_eq!(curve(1..=4000).extrapolate(1000, 10_000), ClassCount::About(40_000));
    }

    #[test]
    fn repeated_rows_are_extrapolated_by_their_growth() {
        let roots = curve((1..=10_000u64).map(u64::isqrt));
        let ClassCount::About(classes) = roots.extrapolate(100, 10_000) else { panic!("it is an estimate") };
        assert!((950..1100).contains(&classes), "{classes}");
        assert_eq!(curve((1..=4000).map(|row: u64| row.min(7))).extrapolate(1, 1000), ClassCount::About(7));
    }

    #[test]
    fn whole_corpus_is_counted() {
        assert_eq!(curve(1..=40).extrapolate(1000, 1000), ClassCount::Exact(40));
        assert_eq!(curve(std::iter::empty()).extrapolate(10, 1000), ClassCount::About(0));
    }

    #[test]
    fn estimates_have_two_digits() {
        assert_eq!([7, 123, 123_456, 16_548_370].map(round), ["7", "120", "120000", "16.5 million"]);
    }
}
