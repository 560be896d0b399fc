//! Generated captions: what transformers writes, through every input; kills, refusals, scores, and a ranking by them.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{program, run, stderr_of, write};

/// Returns a path among the checkpoints of `tests/reference/captioning.py`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/captioning").join(name)
}

/// Writes the images of a checkpoint as PNG files `0.png` to `4.png`, and one that is no image.
fn write_pictures(folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let bytes = std::fs::read(fixture(name).join("pixels.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let pixels = tensors.tensor("pixels").unwrap();
    let side = pixels.shape()[1];
    for (number, image) in pixels.data().chunks(3 * side * side).enumerate() {
        let file = std::fs::File::create(folder.join(format!("{number}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, side as u32, side as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(image).unwrap();
    }
    std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\nno image").unwrap();
}

/// Returns the texts that transformers generates with the settings that `accept` finds first.
fn expected(name: &str, accept: impl Fn(&Value) -> bool) -> Vec<String> {
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap();
    let case = cases.iter().find(|case| accept(&case["settings"])).unwrap();
    let texts = case["texts"].as_array().unwrap().iter();
    texts.map(|text| text.as_str().unwrap().trim().to_owned()).collect()
}

fn pipeline(run_dir: &Path, checkpoint: &Path, pictures: &Path, more: &str) -> String {
    format!(
        "[run]\ndir = '{}'\n[chunks]\nrows = 2\n[caption]\ncheckpoint = '{}'\nimages = ['{}']\n{more}",
        run_dir.display(),
        checkpoint.display(),
        pictures.display()
    )
}

/// Returns the caption of each id.
fn captions(path: &Path) -> BTreeMap<String, String> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    assert_eq!(reader.headers().unwrap(), &["id", "caption"][..]);
    reader.records().map(Result::unwrap).map(|row| (row[0].to_owned(), row[1].to_owned())).collect()
}

fn report(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn folder_gets_the_captions_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, "swin_bert");
    let run_dir = dir.path().join("run");
    let config = write(dir.path(), &pipeline(&run_dir, &fixture("swin_bert"), &pictures, ""));
    let out = run(&["check", &config]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("greedy, at most 11 tokens"), "{text}{}", stderr_of(&out));
    let out = run(&["caption", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let found = captions(&run_dir.join("captions.csv"));
    let greedy = expected("swin_bert", |settings| settings == &serde_json::json!({}));
    for (number, text) in greedy.iter().enumerate() {
        assert_eq!(&found[&format!("{number}.png")], text);
    }
    assert_eq!((found.len(), found["broken.png"].as_str()), (6, ""), "every id has a row");
    let own = &report(&run_dir.join("captions.report.json"))["captions"];
    assert_eq!(own["ids_without_caption"], 1 + greedy.iter().filter(|text| text.is_empty()).count());
    assert_eq!(own["tally"]["kept"], 5, "{own}");

    // Other images, by files, with beam search, as JSON lines.
    let beams =
        format!("{}num_beams = 4\nmax_new_tokens = 11\n", pipeline(&run_dir, &fixture("swin_bert"), &pictures, ""));
    let config = write(dir.path(), &beams);
    let few = pictures.join("[13].png").display().to_string();
    let out = run(&["caption", &config, "--images", &few, "--output", "few.jsonl", "--json"]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let printed: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(printed["captions"]["search"].as_str().unwrap().starts_with("4 beams"), "{printed}");
    let with_beams = expected("swin_bert", |settings| {
        settings == &serde_json::json!({ "num_beams": 4, "early_stopping": false, "length_penalty": 1.0 })
    });
    let lines = std::fs::read_to_string(run_dir.join("few.jsonl")).unwrap();
    let texts: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["caption"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts, [with_beams[1].clone(), with_beams[3].clone()]);
    // Changed settings make the captions of the pipeline's images again.
    let out = run(&["caption", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    assert_eq!(captions(&run_dir.join("captions.csv"))["2.png"], with_beams[2]);
}

#[test]
fn killed_captioning_resumes_to_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, "vit_gpt2");
    let run_dir = dir.path().join("run");
    let text = pipeline(&run_dir, &fixture("vit_gpt2"), &pictures, "");
    let config = write(dir.path(), &text);
    for plan in [
        "rename run.toml 1",
        "filled predict/caption-captions 1",
        "linked journal/predict-caption-captions 1",
        "linked journal/predict-caption-captions 2",
        "rename captions.csv 1",
        "renamed captions.csv 1",
    ] {
        let out = program().args(["caption", &config]).env("WIKICAP_KILL_AT", plan).output().unwrap();
        assert_eq!(out.status.signal(), Some(9), "`{plan}` was not reached: {}", stderr_of(&out));
        assert_eq!(run_dir.join("captions.csv").exists(), plan.starts_with("renamed"), "{plan}");
    }
    let out = run(&["caption", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let other = dir.path().join("other");
    let config = write(dir.path(), &text.replace(&run_dir.display().to_string(), &other.display().to_string()));
    assert!(run(&["caption", &config]).status.success());
    assert_eq!(captions(&run_dir.join("captions.csv")), captions(&other.join("captions.csv")));
    let greedy = expected("vit_gpt2", |settings| settings == &serde_json::json!({}));
    assert_eq!(captions(&run_dir.join("captions.csv"))["4.png"], greedy[4]);
}

#[test]
fn unusable_checkpoints_and_files_are_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, "vit_gpt2");
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(fixture("vit_gpt2")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let run_dir = dir.path().join("run");
    let refuse = |checkpoint: &Path, more: &str, code: i32, expected: &str| {
        let config = write(dir.path(), &pipeline(&run_dir, checkpoint, &pictures, more));
        let out = run(&["caption", &config]);
        let text = stderr_of(&out);
        assert!(out.status.code() == Some(code) && text.contains(expected), "{:?} {text}", out.status);
        assert!(!run_dir.join("captions.csv").exists());
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let expected = "`model_type` is `vit`; a captioning checkpoint has `vision-encoder-decoder`";
    refuse(&root.join("model/vit"), "", 5, expected);
    refuse(&dir.path().join("none"), "", 5, "config.json");
    refuse(&copy, "max_new_tokens = 99\n", 5, "captions of 99 tokens, and the decoder has 32 positions");
    refuse(&copy, "references = 'none.csv'\n", 3, "none.csv");
    let others = dir.path().join("others.csv");
    std::fs::write(&others, "id,caption\nanother image,a dog\n").unwrap();
    let references = format!("references = '{}'\n", others.display());
    let expected = format!("no id of `{}` (`caption.images`) is in", pictures.display());
    refuse(&copy, &references, 3, &expected);
    let ids = dir.path().join("ids.tsv");
    let with_ids = format!("{references}ids = '{}'\n", ids.display());
    std::fs::write(&ids, "id\timage_url\na\t0.png\na\t1.png\n").unwrap();
    let expected = format!("rows 0 and 1 of `{}` have the same id `a`", ids.display());
    refuse(&copy, &with_ids, 3, &expected);
    std::fs::write(&ids, "id\timage_url\na\t0.png\nb\t1.png\n").unwrap();
    std::fs::write(&others, "id,caption\nc,a dog\n").unwrap();
    refuse(&copy, &with_ids, 3, &format!("no id of `{}` (`caption.ids`) is in", ids.display()));
    assert!(!run_dir.exists(), "captions are generated before the refusal");
    refuse(&copy, "output = 'captions.txt'\n", 2, "`caption.output`");
    let options = std::fs::read_to_string(copy.join("generation_config.json")).unwrap();
    let sampled = options.replacen('{', "{\"do_sample\": true,", 1);
    std::fs::write(copy.join("generation_config.json"), sampled).unwrap();
    refuse(&copy, "", 5, "`do_sample` is `true`, and this option of generation is not supported");
    std::fs::remove_file(copy.join("tokenizer.json")).unwrap();
    refuse(&copy, "", 5, "tokenizer.json");
    // A file of somebody else is never replaced.
    std::fs::remove_dir_all(&run_dir).ok();
    let good = write(dir.path(), &pipeline(&run_dir, &fixture("vit_gpt2"), &pictures, "output = 'mine.csv'\n"));
    assert!(run(&["caption", &good]).status.success());
    std::fs::write(run_dir.join("other.csv"), "mine").unwrap();
    let out = run(&["caption", &good, "--output", "other.csv"]);
    assert!(
        out.status.code() == Some(2) && stderr_of(&out).contains("`caption` did not write it"),
        "{}",
        stderr_of(&out)
    );
    let out = run(&["run", &good]);
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("no stage to run"), "{}", stderr_of(&out));
}

#[test]
fn generated_captions_are_scored_and_rank_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, "vit_gpt2");
    std::fs::remove_file(pictures.join("broken.png")).unwrap();
    let texts = expected("vit_gpt2", |settings| {
        settings == &serde_json::json!({ "num_beams": 3, "early_stopping": true, "length_penalty": 2.5 })
    });
    let mut distinct = texts.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let quoted: Vec<String> = distinct.iter().map(|text| format!("\"{text}\"")).collect();
    let list = format!("caption\n{}\na church\nzebra\ntwo boats\nold map\nrain\n", quoted.join("\n"));
    let rows: Vec<String> = texts.iter().enumerate().map(|(at, text)| format!("{at}.png,\"{text}\"")).collect();
    let truth = format!("id,caption_title_and_reference_description\n{}\n", rows.join("\n"));
    for (name, content) in [("list.csv", &list), ("truth.csv", &truth)] {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(fixture("vit_gpt2")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let options = std::fs::read_to_string(copy.join("generation_config.json")).unwrap();
    let options = options.replacen('{', "{\"num_beams\": 3, \"early_stopping\": true, \"length_penalty\": 2.5,", 1);
    std::fs::write(copy.join("generation_config.json"), options).unwrap();
    let (run_dir, at) = (dir.path().join("run"), dir.path().display());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let more = format!(
        "references = '{at}/truth.csv'\nrank = true\n[head]\nkind = 'text'\n[text]\nencoder = '{}'\n[model]\ncheckpoint = '{}'\n\
         [predict]\nimages = ['{}']\ncaptions = '{at}/list.csv'\ntruth = '{at}/truth.csv'\ntop_k = 3\n",
        root.join("text/xlmr").display(),
        root.join("model/vit").display(),
        pictures.display()
    );
    let config = write(dir.path(), &pipeline(&run_dir, &copy, &pictures, &more));
    let out = run(&["caption", &config]);
    assert!(out.status.success(), "{}", stderr_of(&out));
    let summary = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(summary.contains("by the generated caption") && summary.contains("METEOR (exact + stem)"), "{summary}");
    let own = &report(&run_dir.join("captions.report.json"))["captions"];
    // Each caption is the nearest to itself, and equals its reference.
    assert_eq!(own["ranking"]["scores"]["ndcg5"], 1.0, "{own}");
    assert_eq!(own["ranking"]["captions"].as_u64().unwrap(), distinct.len() as u64 + 5);
    let ranked = std::fs::read_to_string(run_dir.join("captions-ranked.csv")).unwrap();
    assert_eq!(ranked.lines().count(), 1 + 3 * 5);
    let scores = &own["scores"];
    assert!(scores["bleu1"].as_f64().unwrap() > 0.99, "{scores}");
    // `evaluate` finds the same in the files.
    let file = |path: PathBuf| path.display().to_string();
    let (captions, truth) = (file(run_dir.join("captions.csv")), file(dir.path().join("truth.csv")));
    let out = run(&["evaluate", "--captions", &captions, "--truth", &truth, "--json"]);
    assert_eq!(&serde_json::from_slice::<Value>(&out.stdout).unwrap(), scores);
    let out = run(&["evaluate", "--captions", &captions, "--truth", &truth]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("BLEU-4"));
    let out = run(&["evaluate", "--captions", &captions, "--truth", &captions]);
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("name two files"), "{}", stderr_of(&out));
}
