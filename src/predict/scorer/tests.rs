//! Compares the scorer with torch, and tilings with each other.

use burn::backend::Flex;
use burn::tensor::backend::BackendTypes;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn scorer(weight: &[f32], bias: &[f32], dim: usize, rows: usize, tile: usize) -> Scorer<Flex> {
    let tiling = Tiling { rows, classes: tile };
    let device = <Flex as BackendTypes>::Device::default();
    Scorer::new(weight, bias, bias.len(), dim, tiling, Compute::F32, &device).unwrap()
}

#[test]
fn ranking_and_loss_match_torch_for_any_tiling() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/topk.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| {
        let (words, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
        words.to_vec()
    };
    let floats = |name| -> Vec<f32> { words(name).into_iter().map(f32::from_le_bytes).collect() };
    let ints = |name| -> Vec<u32> { words(name).into_iter().map(u32::from_le_bytes).collect() };
    let (features, labels) = (floats("features"), ints("labels"));
    for (rows, tile) in [(1, 203), (7, 10), (100, 1000), (4, 1)] {
        let head = scorer(&floats("weight"), &floats("bias"), 12, rows, tile);
        let scored = head.score(&features, &labels, 5).unwrap();
        let tops: Vec<TopK> = scored.iter().map(|row| row.top.clone()).collect();
        assert_eq!(tops, head.top_k(&features, 17, 5).unwrap());
        let classes: Vec<u32> = tops.iter().flat_map(|top| top.classes.clone()).collect();
        assert_eq!(classes, ints("classes"), "tiling {rows} × {tile}");
        let logits = tops.iter().flat_map(|top| top.logits.clone());
        for (logit, expected) in logits.zip(floats("logits")) {
            assert!((logit - expected).abs() < 1e-5);
        }
        for (row, expected) in scored.iter().zip(floats("loss")) {
            assert!((row.loss - f64::from(expected)).abs() < 1e-5);
        }
    }
}

#[test]
fn class_statistics_cover_all_rows_for_any_tiling() {
    let weight: Vec<f32> = (0..7 * 3).map(|at| (at as f32 * 0.9).sin()).collect();
    let bias: Vec<f32> = (0..7).map(|at| at as f32 * 0.1).collect();
    let features: Vec<f32> = (0..11 * 3).map(|at| (at as f32 * 0.4).cos()).collect();
    let logit = |row: usize, class: usize| -> f32 {
        let product = |at: usize| features[row * 3 + at] * weight[class * 3 + at];
        (0..3).map(product).sum::<f32>() + bias[class]
    };
    for (rows, tile) in [(11, 7), (4, 3), (1, 1)] {
        let head = scorer(&weight, &bias, 3, rows, tile);
        let sums = head.lse_by_class(&features, 11).unwrap();
        let shared = head.shared_lse_by_class(&features, 11).unwrap();
        let of_row = |row: usize| (0..7).map(|class| f64::from(logit(row, class)).exp()).sum::<f64>();
        let mut largest = vec![Vec::new(); 7];
        // Two calls, as for two chunks.
        head.largest_by_class(&features[..15], 5, 4, &mut largest).unwrap();
        head.largest_by_class(&features[15..], 6, 4, &mut largest).unwrap();
        for class in 0..7 {
            let mut all: Vec<f32> = (0..11).map(|row| logit(row, class)).collect();
            let sum = all.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
            assert!((sums[class] - sum).abs() < 1e-5);
            let share = (0..11).map(|row| f64::from(logit(row, class)).exp() / of_row(row)).sum::<f64>().ln();
            assert!((shared[class] - share).abs() < 1e-5);
            all.sort_by(|one, other| other.total_cmp(one));
            assert!(largest[class].iter().zip(&all[..4]).all(|(one, other)| (one - other).abs() < 1e-5));
            assert_eq!(largest[class].len(), 4);
        }
    }
}

#[test]
fn k_above_class_count_returns_all_classes() {
    let head = scorer(&[1.0, 1.0, 2.0], &[0.0; 3], 1, 2, 2);
    let top = head.top_k(&[1.0, -1.0], 2, 9).unwrap();
    assert_eq!(top[0].classes, [2, 0, 1]);
    assert_eq!(top[1].classes, [0, 1, 2]);
    assert!(head.top_k(&[], 0, 5).unwrap().is_empty());
}

#[test]
fn nan_never_ranks_but_spoils_the_loss() {
    let head = scorer(&[1.0, f32::NAN, 2.0], &[0.0; 3], 1, 2, 2);
    for selection in [Selection::Host, Selection::Device] {
        let scored = head.clone().with_selection(selection).score(&[1.0], &[0], 3).unwrap();
        assert_eq!(scored[0].top.classes, [2, 0], "{selection:?}");
        assert!(scored[0].loss.is_nan());
    }
}

#[test]
fn wrong_lengths_and_labels_are_rejected() {
    let head = scorer(&[1.0; 6], &[0.0; 3], 2, 2, 2);
    let error = head.top_k(&[0.0; 3], 2, 1).unwrap_err();
    assert_eq!(error.to_string(), "`features` holds `3` values, expected `4`");
    let error = head.score(&[0.0; 2], &[3], 1).unwrap_err();
    assert!(matches!(error, PredictError::Label { row: 0, label: 3, classes: 3 }));
    let device = <Flex as BackendTypes>::Device::default();
    let new = |weight: &[f32], classes, dim| {
        let (tiling, compute) = (Tiling::default(), Compute::F32);
        Scorer::<Flex>::new(weight, &[0.0; 3], classes, dim, tiling, compute, &device).unwrap_err()
    };
    assert!(matches!(new(&[0.0; 5], 3, 2), PredictError::Length { what: "weight", .. }));
    assert!(matches!(new(&[], 3, 0), PredictError::Zero { what: "dim" }));
    assert!(matches!(new(&[0.0; 8], 4, 2), PredictError::Length { what: "bias", .. }));
}

#[test]
fn log_add_handles_infinities_and_nan() {
    assert!((log_add(1000.0, 1000.0) - (1000.0 + 2.0_f64.ln())).abs() < 1e-9);
    assert!((log_add(f64::NEG_INFINITY, 3.0) - 3.0).abs() < 1e-12);
    assert!(log_add(f64::NEG_INFINITY, f64::NEG_INFINITY) == f64::NEG_INFINITY);
    assert!(log_add(f64::INFINITY, f64::NEG_INFINITY) == f64::INFINITY);
    assert!(log_add(f64::NAN, 1.0).is_nan());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn tiling_does_not_change_the_ranking(
        weight in prop::collection::vec((-2i8..3).prop_map(f32::from), 1..40),
        features in prop::collection::vec((-2i8..3).prop_map(f32::from), 0..12),
        rows in 1usize..6, tile in 1usize..12, k in 0usize..7,
    ) {
        // Products of small integers are exact, so ties are ties in every tiling.
        let bias = vec![0.0; weight.len()];
        let whole = scorer(&weight, &bias, 1, 100, 100).top_k(&features, features.len(), k).unwrap();
        let split = scorer(&weight, &bias, 1, rows, tile);
        prop_assert_eq!(&whole, &split.top_k(&features, features.len(), k).unwrap());
        // The device selects the same classes, including ties and signed zeros.
        let on_device = split.clone().with_selection(Selection::Device);
        prop_assert_eq!(&whole, &on_device.top_k(&features, features.len(), k).unwrap());
        let labels: Vec<u32> = (0..features.len()).map(|row| (row * 7 % weight.len()) as u32).collect();
        prop_assert_eq!(split.score(&features, &labels, k).unwrap(), on_device.score(&features, &labels, k).unwrap());
    }
}
