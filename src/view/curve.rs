//! The charts of `training.csv`.

use serde::{Deserialize, Serialize};

use super::chart::{Chart, Limit, Line, WIDTH, share_axes};
use super::{CHART_STYLE, palette};

/// Rules of a file that holds charts alone.
const FILE_STYLE: &str = "svg { font-family: system-ui, sans-serif; background: var(--page); display: block; max-width: 56rem; margin: 0 auto; }\n\
     .sheet { fill: var(--page); stroke: none; }\ntext { fill: var(--quiet); font-size: 12px; }\n.title { fill: var(--text); font-size: 14px; }\n\
     .axis { stroke: var(--line); fill: none; }\n@media (max-width: 40rem) { text { font-size: 17px; } .title { font-size: 18px; } }\n";
/// Space above and below a panel of a file.
const SPACE: f64 = 12.0;

/// A row of the file: a loss, or the scores of a validation. Other columns are left out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Row {
    step: f64,
    #[serde(default)]
    trial: u32,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    validation_ndcg5: Option<f64>,
    validation_ndcg5_low: Option<f64>,
    validation_ndcg5_high: Option<f64>,
    validation_ndcg5_ceiling: Option<f64>,
    /// Only the points of heads that score together, and of each of them, have it.
    #[serde(default)]
    validation_ndcg5_languages: Option<f64>,
}

/// Losses and validations of a run, of all heads of a sweep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingCurve {
    rows: Vec<Row>,
}

/// The best validation of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestValidation {
    /// Step.
    pub step: f64,
    /// Number of the head in a sweep.
    pub trial: u32,
    /// NDCG@5.
    pub ndcg5: f64,
    /// Highest possible NDCG@5, if it is known.
    pub ceiling: Option<f64>,
}

impl TrainingCurve {
    /// Parses the content of `training.csv`. A row that cannot be parsed ends the curve.
    pub fn from_csv(text: &[u8]) -> Self {
        Self { rows: csv::Reader::from_reader(text).deserialize().map_while(Result::ok).collect() }
    }

    /// Returns whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the number of the last step.
    pub fn last_step(&self) -> Option<f64> {
        self.rows.last().map(|row| row.step)
    }

    /// Returns the best validation, of heads that score together that of all of them by language; the first of equal ones.
    pub fn best(&self) -> Option<BestValidation> {
        let by_language = |row: &Row| row.validation_ndcg5_languages;
        // The points of all heads together have the highest number.
        let Some(all) = self.rows.iter().filter(|row| by_language(row).is_some()).map(|row| row.trial).max() else {
            return self.best_of(|_| true);
        };
        let own = self.rows.iter().rev().filter(|row| row.trial == all && by_language(row).is_some());
        let best = own.max_by(|one, other| {
            by_language(one).unwrap_or_default().total_cmp(&by_language(other).unwrap_or_default())
        })?;
        let (step, trial, ceiling) = (best.step, best.trial, best.validation_ndcg5_ceiling);
        Some(BestValidation { step, trial, ndcg5: best.validation_ndcg5?, ceiling })
    }

    fn best_of(&self, is_wanted: impl Fn(&Row) -> bool) -> Option<BestValidation> {
        let mut best: Option<BestValidation> = None;
        for row in self.rows.iter().filter(|row| is_wanted(row)) {
            let Some(ndcg5) = row.validation_ndcg5.filter(|ndcg5| ndcg5.is_finite()) else { continue };
            if best.as_ref().is_none_or(|best| best.ndcg5 < ndcg5) {
                best = Some(BestValidation {
                    step: row.step,
                    trial: row.trial,
                    ndcg5,
                    ceiling: row.validation_ndcg5_ceiling,
                });
            }
        }
        best
    }

    /// Returns the points of a trial.
    fn points(&self, trial: u32, value: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, f64)> {
        self.rows.iter().filter(|row| row.trial == trial).filter_map(|row| Some((row.step, value(row)?))).collect()
    }

    /// Returns the validation of the best trial as a line.
    pub fn best_trial(&self, name: &str, series: usize) -> Line {
        let best = self.best();
        let trial = best.as_ref().map_or(0, |best| best.trial);
        Line {
            name: name.to_owned(),
            series,
            points: self.points(trial, |row| row.validation_ndcg5),
            best: best.map(|best| (best.step, best.ndcg5)),
            ..Line::default()
        }
    }

    /// Returns the charts of each trial: losses, and NDCG@5. Charts of the same kind share their axes. `names` describe the
    /// trials of a sweep; `chance` is the score of random ranking, if it is known.
    pub fn charts(&self, names: &[String], chance: Option<f64>) -> Vec<[Chart; 2]> {
        let trials: std::collections::BTreeSet<u32> = self.rows.iter().map(|row| row.trial).collect();
        let is_sweep = trials.len() > 1;
        let best = self.best();
        let mut charts: Vec<[Chart; 2]> = trials
            .into_iter()
            .map(|trial| {
                let is_best = best.as_ref().is_some_and(|best| best.trial == trial);
                let name = match names.get(trial as usize) {
                    Some(name) if is_sweep => format!("Trial {} ({name})", trial + 1),
                    _ => format!("Trial {}", trial + 1),
                };
                let title = |what: &str| if is_sweep { format!("{name}: {what}") } else { capitalise(what) };
                [
                    self.loss_chart(trial, title("loss")),
                    self.score_chart(
                        trial,
                        title(if is_sweep && is_best { "validation NDCG@5, the best" } else { "validation NDCG@5" }),
                        chance,
                    ),
                ]
            })
            .collect();
        for kind in 0..2 {
            share_axes(charts.iter_mut().map(|pair| &mut pair[kind]));
        }
        charts
    }

    fn loss_chart(&self, trial: u32, title: String) -> Chart {
        let line = |name: &str, series, points| Line { name: name.to_owned(), series, points, ..Line::default() };
        let training = line("training", 1, self.points(trial, |row| row.loss));
        let validation = line("validation", 2, self.points(trial, |row| row.validation_loss));
        Chart::new(title, vec![training, validation])
    }

    fn score_chart(&self, trial: u32, title: String, chance: Option<f64>) -> Chart {
        let ceiling = self.rows.iter().find_map(|row| row.validation_ndcg5_ceiling);
        let limits = [("ceiling", ceiling), ("chance", chance)];
        let band = self.rows.iter().filter(|row| row.trial == trial);
        let band = band.filter_map(|row| Some((row.step, row.validation_ndcg5_low?, row.validation_ndcg5_high?)));
        let line = Line {
            name: "NDCG@5".to_owned(),
            series: 1,
            points: self.points(trial, |row| row.validation_ndcg5),
            band: band.collect(),
            best: self.best_of(|row| row.trial == trial).map(|best| (best.step, best.ndcg5)),
            ..Line::default()
        };
        let mut chart = Chart::new(title, vec![line]);
        chart.limits = limits.into_iter().filter_map(|(name, value)| Some(Limit { name, value: value? })).collect();
        chart.from_zero = true;
        chart
    }

    /// Returns the charts as elements of a page.
    pub fn figures(&self, names: &[String], chance: Option<f64>) -> String {
        let pair =
            |[loss, score]: &[Chart; 2]| format!("<div class=\"columns\">{}{}</div>", loss.figure(), score.figure());
        self.charts(names, chance).iter().map(pair).collect()
    }

    /// Returns the charts as an SVG file.
    pub fn picture(&self, names: &[String]) -> String {
        let mut charts = self.charts(names, None);
        if charts.is_empty() {
            charts.push(["Loss", "Validation NDCG@5"].map(|title| Chart::new(title.to_owned(), Vec::new())));
        }
        let (mut panels, mut y) = (String::new(), SPACE);
        for chart in charts.iter().flatten() {
            let (panel, end) = chart.panel(y);
            panels.push_str(&panel);
            y = end + SPACE;
        }
        let style = palette::resolve(&format!("{CHART_STYLE}{FILE_STYLE}"));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"100%\" viewBox=\"0 0 {WIDTH} {y}\">\n<title>Training curves</title>\n\
             <style>\n:root {{ color-scheme: light dark; }}\n{style}</style>\n<rect class=\"sheet\" width=\"{WIDTH}\" height=\"{y}\"/>\n{panels}</svg>\n"
        )
    }
}

fn capitalise(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "step,loss,learning_rate,epoch,validation_loss,validation_ndcg5,validation_ndcg5_ceiling,trial\n\
        10,4.5,0.1,,,,,0\n10,4.6,0.1,,,,,1\n20,,,1,4.2,0.25,0.8,0\n20,,,1,4.1,0.5,0.8,1\n40,,,2,4.0,0.5,0.8,1\n";

    #[test]
    fn best_validation_is_the_first_of_equal_ones() {
        let curve = TrainingCurve::from_csv(CSV.as_bytes());
        let best = BestValidation { step: 20.0, trial: 1, ndcg5: 0.5, ceiling: Some(0.8) };
        assert_eq!((curve.best(), curve.last_step()), (Some(best), Some(40.0)));
        let line = curve.best_trial("a", 3);
        assert_eq!((line.points, line.best), (vec![(20.0, 0.5), (40.0, 0.5)], Some((20.0, 0.5))));
    }

    #[test]
    fn best_of_heads_that_score_together_is_of_all_by_language() {
        let head = "step,loss,trial,validation_ndcg5,validation_ndcg5_languages\n";
        let rows = "5,,0,0.9,0.9\n5,,2,0.4,0.6\n9,,2,0.5,0.5\n12,,2,0.3,0.6\n";
        let best = TrainingCurve::from_csv(format!("{head}{rows}").as_bytes()).best();
        assert_eq!(best, Some(BestValidation { step: 5.0, trial: 2, ndcg5: 0.4, ceiling: None }));
    }

    #[test]
    fn row_that_cannot_be_parsed_ends_the_curve() {
        let curve = TrainingCurve::from_csv(b"step,loss,trial\n1,0.5,0\n2,,0\n3,x,0\n4,1,0\n");
        assert_eq!(curve.last_step(), Some(2.0));
        assert!(TrainingCurve::from_csv(b"id,caption\n1,a\n").is_empty());
    }

    #[test]
    fn sweep_has_two_charts_for_each_trial() {
        let curve = TrainingCurve::from_csv(CSV.as_bytes());
        let names = ["lr 0.1 & more".to_owned(), "lr 0.2".to_owned()];
        let picture = curve.picture(&names);
        for part in [
            "Trial 1 (lr 0.1 &amp; more): loss",
            "Trial 2 (lr 0.2): validation NDCG@5, the best",
            "ceiling 0.8",
            "training",
            "validation",
            "step",
            "</svg>",
        ] {
            assert!(picture.contains(part), "{part}: {picture}");
        }
        assert!(!picture.contains("var(--") && !picture.contains("<script"));
        let html = curve.figures(&names, Some(0.03));
        assert_eq!((html.matches("<figure>").count(), html.matches("chance 0.03").count()), (4, 2));
    }

    #[test]
    fn interval_columns_become_a_band() {
        let csv = "step,validation_ndcg5,validation_ndcg5_low,validation_ndcg5_high\n5,0.5,0.4,0.6\n9,0.6,0.5,0.7\n";
        let picture = TrainingCurve::from_csv(csv.as_bytes()).picture(&[]);
        assert!(picture.contains("<path class=\"band series-1\""), "{picture}");
        assert!(!TrainingCurve::from_csv(CSV.as_bytes()).picture(&[]).contains("<path class=\"band"));
    }

    #[test]
    fn empty_curve_has_a_picture() {
        assert_eq!(TrainingCurve::default().picture(&[]).matches("No points yet</text>").count(), 2);
    }
}
