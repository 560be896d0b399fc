//! Random crops (views) of the training images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{UInt8Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{artefacts, corpus, differences, pipeline, program, run, stderr_of, write};

/// Returns a pipeline with three views and four epochs.
fn with_views(run_dir: &Path) -> String {
    pipeline(run_dir, &[("[train]", "[train]\nviews = 3"), ("epochs = 12", "epochs = 4")])
}

/// Reads a table of a run.
fn read(path: &Path) -> impl Iterator<Item = RecordBatch> {
    let file = std::fs::File::open(path).unwrap();
    ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().map(Result::unwrap)
}

/// Returns the images that an earlier shard has: chunk and number of the image.
fn duplicates(run_dir: &Path) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    for batch in read(&run_dir.join("duplicates.parquet")) {
        let chunks = batch.column_by_name("chunk").unwrap().as_string::<i32>();
        let images = batch.column_by_name("image").unwrap().as_primitive::<UInt32Type>();
        found.extend((0..batch.num_rows()).map(|row| (chunks.value(row).to_owned(), images.value(row))));
    }
    found
}

/// Returns the views of each image in the feature chunks, with their features. Leaves out the duplicates.
fn features(run_dir: &Path) -> BTreeMap<String, Vec<(u8, Vec<u8>)>> {
    let duplicates = duplicates(run_dir);
    assert!(!duplicates.is_empty(), "no URL of the corpus is in two shards");
    let mut found: BTreeMap<String, Vec<(u8, Vec<u8>)>> = BTreeMap::new();
    for entry in std::fs::read_dir(run_dir.join("features")).unwrap() {
        let entry = entry.unwrap();
        let chunk = entry.file_name().into_string().unwrap();
        let mut images = 0;
        for batch in read(&entry.path()) {
            let urls = batch.column_by_name("image_url").unwrap().as_string::<i32>();
            let views = batch.column_by_name("view").unwrap().as_primitive::<UInt8Type>();
            let features = batch.column_by_name("feature").unwrap().as_fixed_size_binary();
            for row in 0..batch.num_rows() {
                // The first view of an image, or the whole image, begins the next image.
                images += u32::from(views.value(row) <= 1);
                if duplicates.contains(&(chunk.clone(), images - 1)) {
                    continue;
                }
                let feature = features.value(row).to_vec();
                found.entry(urls.value(row).to_owned()).or_default().push((views.value(row), feature));
            }
        }
    }
    found
}

#[test]
fn training_images_are_cropped_and_held_out_ones_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (parts, whole) = (dir.path().join("parts"), dir.path().join("whole"));
    let plain = pipeline(&whole, &[("epochs = 12", "epochs = 4")]);
    for text in [with_views(&parts), plain] {
        let out = run(&["run", "--config", &write(dir.path(), &text)]);
        assert!(out.status.success(), "{}", stderr_of(&out));
    }
    let (of_parts, of_whole) = (features(&parts), features(&whole));
    assert_eq!(of_parts.keys().collect::<Vec<_>>(), of_whole.keys().collect::<Vec<_>>());
    let (mut held_out, mut alike) = (0_u64, 0);
    for (url, views) in &of_parts {
        let numbers: Vec<u8> = views.iter().map(|(view, _)| *view).collect();
        match numbers.as_slice() {
            [0] => {
                held_out += 1;
                assert!(views == &of_whole[url], "{url}: another feature of the whole image");
            }
            // Every crop of a one-colour drawing is equal.
            [1, 2, 3] => alike += u32::from(views[0].1 == views[1].1 || views[1].1 == views[2].1),
            other => panic!("{url}: views {other:?}"),
        }
    }
    assert!(alike < of_parts.len() as u32 / 10, "{alike} images look the same in all parts");
    let report = |run_dir: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(run_dir.join("report.json")).unwrap()).unwrap()
    };
    let (of_parts, of_whole) = (report(&parts), report(&whole));
    assert_eq!(of_parts["training"]["validation_images"].as_u64(), Some(held_out));
    for key in ["samples", "steps", "validation_images"] {
        assert_eq!(of_parts["training"][key], of_whole["training"][key], "{key}");
    }
    // All views of an image count as one image.
    assert_eq!(of_parts["images"]["tally"], of_whole["images"]["tally"]);
    assert_eq!(of_parts["images"]["labels"], of_whole["images"]["labels"]);
    assert_ne!(of_parts["training"]["loss"], of_whole["training"]["loss"]);

    // The views depend on the validation fraction too.
    let text = with_views(&parts).replace("validation_fraction = 0.1", "validation_fraction = 0.2");
    let out = run(&["run", "--config", &write(dir.path(), &text)]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr_of(&out));
    assert!(stderr_of(&out).contains("train.validation_fraction"), "{}", stderr_of(&out));
}

#[test]
fn views_do_not_depend_on_workers_or_kills() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    let out = run(&["run", "--config", &write(dir.path(), &with_views(&undisturbed))]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let run_dir = dir.path().join("killed");
    let config = write(dir.path(), &with_views(&run_dir));
    let machine = dir.path().join("machine.toml");
    std::fs::write(&machine, "[limits]\ncpu_workers = 5\nmemory = '1 GiB'\n").unwrap();
    let machine = machine.to_str().unwrap();
    for plan in ["fill 00000- 1", "renamed features/ 2", "renamed checkpoints/ 2", "removed checkpoints/ 1"] {
        let arguments = ["run", "--config", &config, "--machine", machine];
        let out = program().args(arguments).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.code(), None, "`{plan}` was not reached: {}", stderr_of(&out));
    }
    let out = run(&["run", "--config", &config, "--machine", machine]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(differences(&artefacts(&undisturbed), &artefacts(&run_dir)), Vec::<String>::new());
}

#[test]
fn bench_config_renders_requested_views() {
    let dir = tempfile::tempdir().unwrap();
    let bench = |text: &str| -> serde_json::Value {
        let out = run(&["--json", "bench", "--config", &write(dir.path(), text)]);
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let run_dir = dir.path().join("run");
    let (parts, plain) = (bench(&with_views(&run_dir)), bench(&pipeline(&run_dir, &[])));
    let (run_shown, corpus) = (run_dir.display(), corpus().display());
    let images = format!("shards = ['{corpus}/data/image_data_test/image_pixels/*.csv']\n[preprocess]\nsize_px = 32\n");
    let alone = bench(&format!("[run]\ndir = '{run_shown}'\n[images]\n{images}"));
    let squares = |report: &serde_json::Value| report["squares_per_image"].as_f64().unwrap();
    assert!((squares(&plain) - 1.0).abs() < 1e-9, "{}", squares(&plain));
    // A tenth of the images is held out and stays whole.
    assert!((2.4..3.0).contains(&squares(&parts)), "{}", squares(&parts));
    // Product chunks are not read by the run that wrote them.
    for (report, count) in [(&parts, 6), (&plain, 6), (&alone, 5)] {
        let stages = report["stages"].as_array().unwrap();
        let names: Vec<&str> = stages.iter().filter_map(|stage| stage["name"].as_str()).collect();
        let expected = ["unpack", "split rows", "base64", "decode and resize", "write chunks", "read chunks"];
        assert_eq!(names, &expected[..count]);
        let share: f64 = stages.iter().map(|stage| stage["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() < 1e-9, "{share}");
        for rate in [&report["whole"]["written_per_s"], &report["whole"]["counted_per_s"], &report["decoded_per_s"]] {
            assert!(rate.as_f64().unwrap() > 0.0, "{report}");
        }
        let device = &report["devices"][0];
        let per_image = device["scratch_mb_per_s"].as_f64().unwrap() / device["images_per_s"].as_f64().unwrap();
        let side = report["size_px"].as_f64().unwrap();
        assert!((per_image * 1e6 - 3.0 * side * side).abs() < 1e-3, "{device}");
    }
    // The model of several machines: one for each of the four shards, at most, and the rate of the model on this device.
    let machines: Vec<u64> =
        plain["cluster"]["forecasts"].as_array().unwrap().iter().map(|one| one["machines"].as_u64().unwrap()).collect();
    assert_eq!(machines, [1, 2, 4]);
    assert!(plain["forward"][0].as_f64() > Some(0.0) && alone["forward"].is_null(), "{plain}");
    let out = run(&["bench", "--config", &write(dir.path(), &pipeline(&run_dir, &[])), "--shards", "9"]);
    assert!(stderr_of(&out).contains("--images"), "{}", stderr_of(&out));
    assert!(!run_dir.exists(), "a benchmark is not a run");
}
