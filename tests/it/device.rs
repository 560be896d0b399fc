//! Device selection and its reasons, and the device benchmarks, through the real program.

use std::path::Path;
use std::process::Output;

use crate::support::{corpus, program, run, stderr_of, write};

/// Returns the program in an environment without CUDA: no visible card and no toolkit folder.
fn without_cuda(args: &[&str]) -> Output {
    program().args(args).env("CUDA_VISIBLE_DEVICES", "").env("CUDA_PATH", "/nonexistent").output().unwrap()
}

fn machine(dir: &Path, device: &str) -> String {
    let path = dir.join("machine.toml");
    std::fs::write(&path, format!("[device]\n{device}\n")).unwrap();
    path.display().to_string()
}

fn features_only(dir: &Path) -> String {
    let corpus = corpus().display();
    write(
        dir,
        &format!(
            "[run]\ndir = '{}/run'\n[images]\nshards = ['{corpus}/data/image_data_test/image_pixels/*.csv']\n[model]\ncheckpoint = \
             '{corpus}/models/vit-tiny'\n",
            dir.display()
        ),
    )
}

#[test]
fn missing_cuda_lists_everything_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (config, machine) = (features_only(dir.path()), machine(dir.path(), "kind = 'cuda'"));
    for command in ["run", "check"] {
        let out = without_cuda(&[command, "--config", &config, "--machine", &machine]);
        let text = stderr_of(&out) + &String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(5), "{text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("`device.kind` is `cuda`")).collect();
        assert_eq!(errors.len(), 1, "{text}");
        for part in ["driver", "`/nonexistent/include` (CUDA_PATH) lacks cuda_runtime.h, ", "mma.h", "set CUDA_PATH"] {
            assert!(errors[0].contains(part), "{part} is not in: {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
        assert!(!dir.path().join("run/features").exists());
    }
    let out = without_cuda(&["bench", "rank", "--classes", "9", "--dim", "4", "--rows", "2", "--machine", &machine]);
    assert_eq!(out.status.code(), Some(5), "{}", stderr_of(&out));
}

#[test]
fn auto_falls_back_to_cpu_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (config, machine) = (features_only(dir.path()), machine(dir.path(), "kind = 'auto'"));
    let out = without_cuda(&["--json", "devices", "--machine", &machine]);
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&found["chosen"]["kind"], &found["cuda"]["usable"]), (&"cpu".into(), &false.into()), "{found}");
    assert_eq!(found["cuda"]["include"], "/nonexistent/include");
    let out = without_cuda(&["check", "--config", &config, "--machine", &machine]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("(no CUDA: "), "{text}{}", stderr_of(&out));
    let out = without_cuda(&["--json", "run", "--config", &config, "--machine", &machine]);
    let said = stderr_of(&out);
    assert!(out.status.success() && said.contains("the model runs") && said.contains("no CUDA"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["device"].as_str().unwrap().starts_with("CPU with "), "{}", report["device"]);
    // A CPU chosen by the config needs no reason.
    let machine = self::machine(dir.path(), "kind = 'cpu'");
    let out = without_cuda(&["devices", "--machine", &machine]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("(`device.kind` is `cpu`)"));
}

#[test]
fn features_do_not_depend_on_batch_size() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = corpus().join("models/vit-tiny").display().to_string();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let forward = |name: &str, more: &[&str]| -> Vec<f32> {
        let mut args = vec!["--json", "bench", "forward", "--precision", "f32", "--checkpoint", &checkpoint];
        let features = file(name);
        args.extend(["--passes", "1", "--features", &features]);
        args.extend(more);
        let out = run(&args);
        assert!(out.status.success(), "{}", stderr_of(&out));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        for key in ["images_per_s", "first_features_s", "tflop_per_s", "flop_per_image"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{report}");
        }
        // A CPU without fused multiplication has no direct path.
        assert!(["direct", "plain"].contains(&report["attention"].as_str().unwrap()), "{report}");
        let bytes = std::fs::read(&features).unwrap();
        assert_eq!(bytes.len() as u64, 4 * report["rows"].as_u64().unwrap() * report["feature_dim"].as_u64().unwrap());
        bytes.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect()
    };
    let all = forward("all", &["--rows", "9", "--batch-size", "9"]);
    let dim = all.len() / 9;
    for (rows, batch) in [("9", "4"), ("9", "8"), ("1", "8")] {
        let some = forward("some", &["--rows", rows, "--batch-size", batch]);
        let pairs = some.iter().zip(&all);
        assert_eq!(some.len(), rows.parse::<usize>().unwrap() * dim);
        assert!(pairs.clone().all(|(one, other)| (one - other).abs() < 1e-4), "{rows} rows in batches of {batch}");
    }
    let out = run(&["bench", "forward", "--checkpoint", &checkpoint, "--pixels", &file("all"), "--size-px", "48"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("is not a whole number of images of 48 × 48 × 3"), "{}", stderr_of(&out));
}

#[test]
fn features_that_are_not_finite_are_not_measured() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(corpus().join("models/vit-tiny")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // NaN in every format.
    bytes[header..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let (checkpoint, features) = (dir.path().display().to_string(), dir.path().join("features"));
    let out = run(&[
        "bench",
        "forward",
        "--checkpoint",
        &checkpoint,
        "--rows",
        "2",
        "--passes",
        "1",
        "--features",
        features.to_str().unwrap(),
    ]);
    assert_eq!(out.status.code(), Some(5), "{}", stderr_of(&out));
    assert!(stderr_of(&out).contains("the feature of image 0, from 0, is not a finite number"), "{}", stderr_of(&out));
    assert!(!features.exists());
}

#[test]
fn caption_vectors_do_not_depend_on_their_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/bert").display().to_string();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let embed = |name: &str, captions: &str| {
        std::fs::write(file("captions"), captions).unwrap();
        let (captions, vectors) = (file("captions"), file(name));
        let args = ["--json", "bench", "embed", "--checkpoint", &encoder, "--captions", &captions, "--passes", "1"];
        let out = run(&[&args[..], &["--vectors", &vectors]].concat());
        (out, std::fs::read(&vectors).unwrap_or_default())
    };
    let (out, all) = embed("all", "a red house\ntwo\n\nthe third caption is much longer than the others\n");
    assert!(out.status.success(), "{}", stderr_of(&out));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["captions"] == 4 && report["captions_per_s"].as_f64().unwrap() > 0.0, "{report}");
    let width = 4 * report["dim"].as_u64().unwrap() as usize;
    let (_, alone) = embed("alone", "two\n");
    assert_eq!((all.len(), &all[width..2 * width]), (4 * width, alone.as_slice()));
    let (out, _) = embed("none", "");
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("has no captions"), "{}", stderr_of(&out));
}

#[test]
fn head_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let head = |more: &[&str]| -> serde_json::Value {
        let mut args = vec!["--json", "bench", "head", "--classes", "70", "--dim", "8", "--batch-size", "16"];
        args.extend(more);
        let out = run(&args);
        assert!(out.status.success(), "{}", stderr_of(&out));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let whole = head(&["--steps", "8", "--save", &file("whole"), "--log-every", "1", "--learning-rate", "0.5"]);
    assert_eq!(whole["losses"].as_array().unwrap().len(), 8);
    head(&["--steps", "5", "--save", &file("half"), "--learning-rate", "0.5"]);
    head(&["--steps", "0", "--resume", &file("half"), "--save", &file("again")]);
    head(&["--steps", "3", "--resume", &file("half"), "--save", &file("rest"), "--learning-rate", "0.5"]);
    for name in ["head.safetensors", "optimizer.safetensors"] {
        let read = |folder: &str| std::fs::read(dir.path().join(folder).join(name)).unwrap();
        assert_eq!(read("half"), read("again"), "{name}");
        assert_eq!(read("whole"), read("rest"), "{name}");
        assert_ne!(read("whole"), read("half"), "{name}");
    }
    let out = run(&["bench", "head", "--classes", "71", "--dim", "8", "--resume", &file("half"), "--steps", "1"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(stderr_of(&out).contains("70 classes × 8 values, not 71 × 8"), "{}", stderr_of(&out));
    let out = run(&["bench", "rank", "--classes", "70", "--dim", "8", "--rows", "30"]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("rows/s"), "{}", stderr_of(&out));
}
