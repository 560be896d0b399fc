//! Compares the fits with `NumPy` and scikit-learn (`tests/reference/closed_form.py`) and checks their invariants.

use serde_json::Value;

use super::*;
use crate::train::Targets;

struct Reference(Value);

impl Reference {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/closed_form.json");
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    /// Returns the numbers of a list, or of all rows of a matrix.
    fn numbers(value: &Value) -> Vec<f64> {
        let items = value.as_array().unwrap();
        items.iter().flat_map(|item| item.as_f64().map_or_else(|| Self::numbers(item), |number| vec![number])).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        Self::numbers(&self.0[name]).into_iter().map(|number| number as f32).collect()
    }

    fn of(&self, name: &str) -> Vec<f64> {
        Self::numbers(&self.0[name])
    }

    /// Adds all images, in blocks of any size.
    fn covariances(&self) -> Covariances {
        let (features, captions) = (self.floats("features"), self.floats("captions"));
        let (counts, weights) = (self.of("counts"), self.of("weights"));
        let (input, output) = (features.len() / counts.len(), captions.len() / counts.iter().sum::<f64>() as usize);
        let (mut moments, mut first) = (PairMoments::new(input, output), 0);
        for (image, count) in counts.iter().enumerate() {
            let own = first * output..(first + *count as usize) * output;
            moments.add(&features[image * input..(image + 1) * input], &captions[own], weights[image]);
            first += *count as usize;
        }
        let mut covariances = moments.finish().unwrap();
        covariances.standardise();
        covariances
    }

    /// Returns standardised features and centred captions.
    fn centred(&self, covariances: &Covariances) -> [Vec<Vec<f64>>; 2] {
        let rows = |name: &str, mean: &[f64], std: Option<&[f64]>| {
            let row = |row: &[f32]| {
                let value =
                    |(at, value): (usize, &f32)| (f64::from(*value) - mean[at]) / std.map_or(1.0, |std| std[at]);
                row.iter().enumerate().map(value).collect()
            };
            self.floats(name).chunks_exact(mean.len()).map(row).collect()
        };
        let std = Some(covariances.feature_std.as_slice());
        [rows("features", &covariances.feature_mean, std), rows("captions", &covariances.caption_mean, None)]
    }
}

fn assert_close(found: impl IntoIterator<Item = f64>, expected: &[f64], what: &str) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-300_f64, |largest, value| largest.max(value.abs()));
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() < 1e-6 * largest, "{what}: {one} for {other}");
    }
}

fn by_rows(matrix: &Mat<f64>) -> impl Iterator<Item = f64> + '_ {
    (0..matrix.nrows()).flat_map(move |row| (0..matrix.ncols()).map(move |column| matrix[(row, column)]))
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[test]
fn fits_match_numpy_and_scikit_learn() {
    let reference = Reference::open();
    let covariances = reference.covariances();
    assert_close(covariances.feature_mean.clone(), &reference.of("feature_mean"), "mean of the features");
    assert_close(covariances.caption_mean.clone(), &reference.of("caption_mean"), "mean of the captions");
    assert_close(covariances.feature_std.clone(), &reference.of("std"), "standard deviation");
    assert_close(by_rows(&covariances.features), &reference.of("xx"), "covariance of the features");
    assert_close(by_rows(&covariances.cross), &reference.of("xy"), "cross-covariance");
    assert_close(by_rows(&covariances.captions), &reference.of("yy"), "covariance of the captions");
    let [images, texts] = reference.centred(&covariances);
    let mut classes = ClassMoments::new(6, images[0].len());
    let (features, weights) = (reference.floats("features"), reference.of("weights"));
    for (image, label) in reference.of("labels").iter().enumerate() {
        classes.add(&features[image * images[0].len()..][..images[0].len()], &[*label as u32], weights[image]);
    }
    let shrinkages = reference.of("shrinkages").into_iter().zip(reference.of("caption_shrinkages"));
    for (fit, (shrinkage, captions)) in reference.0["fits"].as_array().unwrap().iter().zip(shrinkages) {
        let expected = |name: &str| Reference::numbers(&fit[name]);
        let cca = Cca::new(&covariances, CcaShrinkage { features: shrinkage, captions }).unwrap();
        assert_close(cca.correlations.clone(), &expected("correlations"), "correlations");
        let [image_map, text_map] = cca.maps(3, 0.5);
        let map = |map: &[f64], row: &[f64]| map.chunks_exact(row.len()).map(|own| dot(own, row)).collect::<Vec<f64>>();
        let texts: Vec<Vec<f64>> = texts.iter().take(40).map(|row| map(&text_map, row)).collect();
        let scores = images.iter().take(10).flat_map(|row| {
            let own = map(&image_map, row);
            texts.iter().map(move |text| dot(&own, text)).collect::<Vec<f64>>()
        });
        assert_close(scores, &expected("scores"), "scores");
        let ridge = Ridge::new(&covariances, shrinkage).unwrap();
        assert_close(ridge.caption_map(&covariances), &expected("ridge"), "ridge");
        for (targets, name, kept) in [(ClassTargets::OneHot, "one_hot", 6), (ClassTargets::Means, "means", 5)] {
            let (weight, bias) = ridge.classifier(&covariances, &classes, targets);
            let logit = |row: &[f32], class: usize| {
                let own = &weight[class * row.len()..(class + 1) * row.len()];
                own.iter().zip(row).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum::<f64>()
                    + f64::from(bias[class])
            };
            let rows = features.chunks_exact(images[0].len()).take(20);
            let found: Vec<f64> = rows.flat_map(|row| (0..kept).map(move |class| logit(row, class))).collect();
            let expected = expected(name);
            let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            // Weights are stored in f32, and the features have means of up to 40.
            assert!(found.iter().zip(&expected).all(|(one, other)| (one - other).abs() < 1e-5 * largest), "{name}");
        }
        assert!(ridge.classifier(&covariances, &classes, ClassTargets::Means).1[5] < -1e3, "a class without images");
    }
}

#[test]
fn views_and_captions_share_the_weight_of_an_image() {
    let fit = |rows: &[(&[f32], &[f32], f64)]| {
        let mut moments = PairMoments::new(2, 1);
        for (feature, captions, weight) in rows {
            moments.add(feature, captions, *weight);
        }
        moments.finish().unwrap()
    };
    let once = fit(&[(&[1.0, 2.0], &[0.5, -0.5], 1.0), (&[0.0, 1.0], &[1.0], 1.0), (&[3.0, -1.0], &[0.2], 1.0)]);
    let halves = fit(&[
        (&[1.0, 2.0], &[0.5], 0.5),
        (&[1.0, 2.0], &[-0.5], 0.5),
        (&[0.0, 1.0], &[1.0, 1.0, 1.0], 1.0),
        (&[3.0, -1.0], &[0.2], 0.5),
        (&[3.0, -1.0], &[0.2], 0.5),
        (&[9.0, 9.0], &[], 1.0),
    ]);
    for (one, other) in
        [(&once.features, &halves.features), (&once.cross, &halves.cross), (&once.captions, &halves.captions)]
    {
        assert_close(by_rows(one), &by_rows(other).collect::<Vec<f64>>(), "covariance");
    }
    assert!((once.weight - 3.0).abs() < 1e-12 && (halves.weight - 3.0).abs() < 1e-12);
}

#[test]
fn blocks_and_panels_do_not_change_the_sums() {
    let value = |row: usize, at: usize| ((row * 31 + at * 17) as f32 * 0.37).sin() + 100.0;
    let (rows, input, output) = (2500, 150, 3);
    let mut moments = PairMoments::new(input, output);
    let feature = |row: usize| (0..input).map(|at| value(row, at)).collect::<Vec<f32>>();
    for row in 0..rows {
        let captions: Vec<f32> = (0..output).map(|at| value(row, at + 7)).collect();
        moments.add(&feature(row), &captions, 1.0);
    }
    let found = moments.finish().unwrap();
    for (one, other) in [(0, 0), (149, 2), (2, 149), (140, 130)] {
        let own: Vec<[f64; 2]> = (0..rows).map(|row| [one, other].map(|at| f64::from(value(row, at)))).collect();
        let mean = [0, 1].map(|side| own.iter().map(|pair| pair[side]).sum::<f64>() / rows as f64);
        let sum: f64 = own.iter().map(|pair| (pair[0] - mean[0]) * (pair[1] - mean[1])).sum();
        assert!((found.features[(one, other)] - sum / rows as f64).abs() < 1e-9);
    }
}

#[test]
fn nothing_to_fit_and_singular_covariances_are_errors() {
    assert!(matches!(PairMoments::new(2, 2).finish(), Err(ClosedFormError::Empty)));
    let mut moments = PairMoments::new(2, 1);
    (0..4).for_each(|row| moments.add(&[row as f32, row as f32], &[row as f32], 1.0));
    let covariances = moments.finish().unwrap();
    assert!(matches!(
        Cca::new(&covariances, CcaShrinkage { features: 0.0, captions: 0.0 }),
        Err(ClosedFormError::Singular("features"))
    ));
    assert!(Cca::new(&covariances, CcaShrinkage { features: 0.01, captions: 0.01 }).unwrap().correlations[0] > 0.95);
    let mut broken = PairMoments::new(1, 1);
    broken.add(&[1.0], &[1.0], 1.0);
    broken.add(&[f32::NAN], &[2.0], 1.0);
    assert!(Ridge::new(&broken.finish().unwrap(), 0.1).is_err());
}

#[test]
fn languages_count_alike_in_the_choice() {
    // Language 0: 20 images, all right. Language 1: 10 images, all wrong.
    let (mut captions_of, dim) = (Targets::default(), 30);
    let unit = |at: usize| (0..dim).map(|own| f32::from(u8::from(own == at))).collect::<Vec<f32>>();
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for at in 0..30 {
        captions_of.push(&[at as u32]);
        images.extend(unit(if at < 20 { at } else { 20 + (at - 19) % 10 }));
        captions.extend(unit(at));
    }
    let answers = Answers::new(&captions_of, |caption| Some(usize::from(caption >= 20)));
    assert_eq!(answers.languages(), 2);
    let found = ndcg5_by_language(&images, &captions, dim, &answers);
    let second: f64 = (0..10).map(|at| crate::predict::metrics::gain(at + 2)).sum::<f64>() / 10.0;
    assert!((found - f64::midpoint(1.0, second)).abs() < 1e-9, "{found}, second {second}");
    let mixed = score_mixed(&images, &captions, dim, 20.0, &answers);
    assert!((mixed.recall1 - 20.0 / 30.0).abs() < 1e-9 && mixed.loss > 0.0);
    let one = Answers::new(&captions_of, |_| None);
    assert_eq!((one.languages(), one.is_empty()), (1, false));
}
