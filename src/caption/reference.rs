//! Compares scores with those of pycocoevalcap and NLTK (`tests/reference/caption_scores.py`).

use serde::Deserialize;

use super::evaluate::score;
use crate::reference;

#[derive(Deserialize)]
struct Case {
    /// Texts whose tokens are separated by spaces.
    captions: Vec<String>,
    references: Vec<Vec<String>>,
    bleu: [f64; 4],
    meteor: f64,
    cider: f64,
}

#[test]
fn scores_equal_those_of_the_usual_packages() {
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(reference::fixture("caption_scores.json")).unwrap()).unwrap();
    assert!(cases.len() >= 5);
    let split = |text: &String| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    for case in cases {
        let captions: Vec<Vec<String>> = case.captions.iter().map(split).collect();
        let references: Vec<Vec<Vec<String>>> =
            case.references.iter().map(|texts| texts.iter().map(split).collect()).collect();
        let found = score(&captions, &references);
        let bleu = [found.bleu1, found.bleu2, found.bleu3, found.bleu4];
        for (found, expected) in bleu.iter().zip(case.bleu) {
            assert!((found - expected).abs() < 1e-12, "{bleu:?} {:?}", case.bleu);
        }
        assert!((found.meteor_exact_stem - case.meteor).abs() < 1e-12, "{} {}", found.meteor_exact_stem, case.meteor);
        assert!((found.cider - case.cider).abs() < 1e-9, "{} {}", found.cider, case.cider);
    }
}
