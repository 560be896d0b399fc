//! Fingerprints and artefact names of runs, pinned: a change here makes users recompute days of work.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{artefacts, corpus, pipeline, run, stderr_of, write};

/// Returns stage → fingerprint, as `run.toml` records them.
fn fingerprints(run_dir: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(run_dir.join("run.toml")).unwrap();
    let file: toml::Table = text.parse().unwrap();
    let stages = file["stages"].as_table().unwrap();
    stages.iter().map(|(name, stage)| (name.clone(), stage["generation"].as_str().unwrap().to_owned())).collect()
}

fn expected(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(stage, fingerprint)| ((*stage).to_owned(), (*fingerprint).to_owned())).collect()
}

/// Returns artefact names with the numbers of chunks and steps replaced by `N`, and how many files have each name.
fn names(run_dir: &Path) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for name in artefacts(run_dir).into_keys() {
        let parts = name.split('/').map(|part| {
            let stem = part.split('.').next().unwrap_or_default();
            let is_number = stem.len() == 18 && stem.chars().all(|letter| letter.is_ascii_digit() || letter == '-');
            if is_number {
                part.replace(stem, "N")
            } else if stem.starts_with("step-") {
                "step-N".to_owned()
            } else {
                part.to_owned()
            }
        });
        *names.entry(parts.collect::<Vec<_>>().join("/")).or_default() += 1;
    }
    names
}

#[test]
fn fingerprints_and_artefact_names_are_stable() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &[]));
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(
        fingerprints(&run_dir),
        expected(&[
            ("catalog", "38a934f657f35f5efca627a78df7c114"),
            ("predict submission", "c48c7659463cc22fab885288b059152d"),
            ("stream", "d9624bbbc517688151e3a204fb2fa498"),
            ("train", "1421a7b8ae64fcae01569e3bd5e4c251"),
        ])
    );
    let found: Vec<(String, usize)> = names(&run_dir).into_iter().collect();
    let found: Vec<(&str, usize)> = found.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    // One checkpoint where the best head is the newest, else two.
    let checkpoints = found.iter().find(|(name, _)| name.ends_with("state.json")).map_or(0, |(_, count)| *count);
    assert!((1..=2).contains(&checkpoints), "{checkpoints}");
    assert_eq!(
        found,
        [
            ("catalog/classes.parquet", 1),
            ("catalog/labels.parquet", 1),
            ("checkpoints/step-N/head.safetensors", checkpoints),
            ("checkpoints/step-N/optimizer.safetensors", checkpoints),
            ("checkpoints/step-N/state.json", checkpoints),
            ("duplicates.parquet", 1),
            ("examples.html", 1),
            ("features/N.parquet", 16),
            ("journal/catalog.json", 1),
            ("journal/features/N.json", 16),
            ("journal/features/N.urls", 16),
            ("journal/finished/predict-submission.json", 1),
            ("journal/finished/train.json", 1),
            ("journal/predict-submission/N.json", 2),
            ("journal/predict-submission/N.urls", 2),
            ("predict/submission/duplicates.parquet", 1),
            ("predict/submission/features/N.parquet", 2),
            ("predict/submission/quarantine/N.parquet", 1),
            ("quarantine/N.parquet", 6),
            ("submission.csv", 1),
            ("training.csv", 1),
            ("training.svg", 1),
        ]
    );
}

#[test]
fn fingerprint_of_a_pixel_product_is_stable() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let text = format!(
        "[run]\ndir = '{}'\n[images]\nshards = ['{}/data/image_data_test/image_pixels/*.csv']\n[chunks]\nrows = 50\n\
         [preprocess]\nsize_px = 64\n",
        run_dir.display(),
        corpus().display()
    );
    let config = write(dir.path(), &text);
    let out = run(&["run", "--config", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(fingerprints(&run_dir), expected(&[("stream", "f40b9b335a62d224e7108b807db089c8")]));
}
