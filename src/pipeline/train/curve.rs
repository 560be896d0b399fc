//! The training curve as a CSV file that round-trips exactly.

use serde::{Deserialize, Serialize};

use crate::pipeline::observe::report::{LossPoint, ValidationPoint};
use crate::predict::bootstrap::Interval;

/// Points of the training curve, of all heads of a sweep.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Curve {
    pub(crate) losses: Vec<LossPoint>,
    pub(crate) validations: Vec<ValidationPoint>,
}

/// A row of the file: a loss, or the scores of a validation.
///
/// The format is CSV because a resumed run needs every bit of a number, and because spreadsheets open it. `serde_json`
/// parses floats exactly only with an optional feature.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct CurveRow {
    step: u64,
    loss: Option<f64>,
    learning_rate: Option<f64>,
    epoch: Option<u32>,
    validation_loss: Option<f64>,
    validation_ndcg5: Option<f64>,
    validation_ndcg5_ceiling: Option<f64>,
    validation_recall1: Option<f64>,
    validation_recall5: Option<f64>,
    #[serde(default)]
    validation_ndcg5_low: Option<f64>,
    #[serde(default)]
    validation_ndcg5_high: Option<f64>,
    #[serde(default)]
    validation_ndcg5_languages: Option<f64>,
    #[serde(default)]
    trial: u32,
}

impl Curve {
    /// Serialises the points in the order of their steps.
    ///
    /// # Errors
    /// Those of the CSV writer.
    pub(crate) fn to_csv(&self) -> Result<Vec<u8>, csv::Error> {
        let losses = self.losses.iter().map(|point| CurveRow {
            step: point.step,
            loss: Some(point.loss),
            learning_rate: Some(point.learning_rate),
            trial: point.trial,
            ..CurveRow::default()
        });
        let validations = self.validations.iter().map(|point| CurveRow {
            step: point.step,
            epoch: Some(point.epoch),
            validation_loss: Some(point.loss),
            validation_ndcg5: Some(point.ndcg5),
            validation_ndcg5_ceiling: Some(point.ndcg5_ceiling),
            validation_recall1: Some(point.recall1),
            validation_recall5: Some(point.recall5),
            validation_ndcg5_low: point.ndcg5_interval.map(|interval| interval.low),
            validation_ndcg5_high: point.ndcg5_interval.map(|interval| interval.high),
            validation_ndcg5_languages: point.ndcg5_languages,
            trial: point.trial,
            ..CurveRow::default()
        });
        let mut rows: Vec<CurveRow> = losses.chain(validations).collect();
        rows.sort_by_key(|row| (row.step, row.epoch, row.trial));
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in rows {
            writer.serialize(row)?;
        }
        writer.into_inner().map_err(|error| error.into_error().into())
    }

    /// Parses the points up to a step.
    ///
    /// # Errors
    /// When a row is not one of [`Self::to_csv`].
    pub(crate) fn from_csv(content: &[u8], up_to_step: u64) -> Result<Self, csv::Error> {
        let mut curve = Self::default();
        for row in csv::Reader::from_reader(content).deserialize::<CurveRow>() {
            let row = row?;
            if row.step > up_to_step {
                continue;
            }
            let (step, trial) = (row.step, row.trial);
            if let (Some(loss), Some(learning_rate)) = (row.loss, row.learning_rate) {
                curve.losses.push(LossPoint { step, loss, learning_rate, trial });
            }
            if let (Some(epoch), Some(loss), Some(ndcg5)) = (row.epoch, row.validation_loss, row.validation_ndcg5) {
                curve.validations.push(ValidationPoint {
                    step,
                    epoch,
                    loss,
                    ndcg5,
                    ndcg5_ceiling: row.validation_ndcg5_ceiling.unwrap_or_default(),
                    recall1: row.validation_recall1.unwrap_or_default(),
                    recall5: row.validation_recall5.unwrap_or_default(),
                    ndcg5_interval: interval(row.validation_ndcg5_low, row.validation_ndcg5_high),
                    ndcg5_languages: row.validation_ndcg5_languages,
                    trial,
                });
            }
        }
        Ok(curve)
    }
}

fn interval(low: Option<f64>, high: Option<f64>) -> Option<Interval> {
    Some(Interval { low: low?, high: high? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_file_is_no_curve() {
        assert!(Curve::from_csv(b"id,caption_title_and_reference_description\n1,a\n", u64::MAX).is_err());
        let mut cut =
            Curve { losses: vec![LossPoint { step: 7, loss: 1.5, ..LossPoint::default() }], ..Curve::default() }
                .to_csv()
                .unwrap();
        cut.truncate(cut.len() - 4);
        assert!(Curve::from_csv(&cut, u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn curve_round_trips_exactly(
            losses in prop::collection::vec((0.0f64..20.0, 0.0f64..1.0), 0..40),
            validations in prop::collection::vec((0.0f64..20.0, 0.0f64..1.0), 0..5),
        ) {
            let mut curve = Curve::default();
            for (step, (loss, learning_rate)) in (1..).zip(&losses) {
                curve.losses.push(LossPoint { step: step * 10, loss: *loss, learning_rate: *learning_rate, trial: 0 });
            }
            for (epoch, (loss, ndcg5)) in (1..).zip(&validations) {
                curve.validations.push(ValidationPoint {
                    step: u64::from(epoch) * 70, epoch, loss: *loss, ndcg5: *ndcg5, ndcg5_ceiling: 0.7, recall1: 0.1, recall5: 0.3, trial: epoch % 2,
                    ndcg5_interval: (epoch % 3 > 0).then(|| Interval { low: ndcg5 / 3.0, high: ndcg5 * 1.1 }),
                    ndcg5_languages: (epoch % 2 > 0).then_some(ndcg5 / 7.0),
                });
            }
            let text = curve.to_csv().unwrap();
            prop_assert_eq!(&Curve::from_csv(&text, u64::MAX).unwrap(), &curve);
            prop_assert!(Curve::from_csv(&text, 70).unwrap().losses.iter().all(|point| point.step <= 70));
        }
    }
}
