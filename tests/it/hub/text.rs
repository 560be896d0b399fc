//! Text encoders of the hub.

use std::path::Path;

use super::Lab;
use crate::support::{artefacts, differences, pipeline, stderr_of, write};

#[test]
fn text_encoder_includes_tokenizer_and_modules() {
    let lab = Lab::new();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/bert");
    lab.server.publish_dir("lab/text", "main", &encoder);
    let sections = |encoder: &str| format!("[text]\nencoder = '{encoder}'\n\n[head]\nkind = 'text'\n\n[train]");
    let config = |run: &str, encoder: &str| {
        let edits = [("[train]", sections(encoder)), ("epochs = 12", "epochs = 1".to_owned())];
        let edits: Vec<(&str, &str)> = edits.iter().map(|(from, to)| (*from, to.as_str())).collect();
        let text = pipeline(&lab.run_dir(run), &edits).replace("learning_rate = 0.2\n", "");
        let path = lab.dir.path().join(format!("{run}.toml"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let run = |name: &str, encoder: &str, offline: bool| {
        let mut command = lab.program();
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        command.args(["run", "--config", &config(name, encoder)]).output().unwrap()
    };
    let out = run("early", "hf:lab/text", true);
    assert_eq!(out.status.code(), Some(4), "{}", stderr_of(&out));
    let check = lab.program().args(["check", "--config", &config("hub", "hf:lab/text")]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && said.contains("2_Dense/model.safetensors"), "{said}");
    for (name, encoder, offline) in [
        ("hub", "hf:lab/text", false),
        ("offline", "hf:lab/text", true),
        ("directory", encoder.to_str().unwrap(), false),
    ] {
        let out = run(name, encoder, offline);
        assert!(out.status.success(), "{name}: {}", stderr_of(&out));
    }
    let one = artefacts(&lab.run_dir("directory"));
    for other in ["hub", "offline"] {
        assert_eq!(differences(&one, &artefacts(&lab.run_dir(other))), Vec::<String>::new(), "{other}");
    }
    let seen: Vec<String> = lab.server.seen().into_iter().map(|seen| seen.line).collect();
    assert!(seen.iter().any(|line| line.ends_with("/1_Pooling/config.json")), "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("onnx") || line.contains("expected")), "{seen:?}");
}

#[test]
fn prompts_come_from_the_hub_and_check_shows_the_prefix() {
    let lab = Lab::new();
    let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/text/sentence");
    lab.server.publish_dir("lab/sentence", "main", &encoder);
    let config = |keys: &str| {
        let sections = format!("[text]\nencoder = 'hf:lab/sentence'\n{keys}\n[head]\nkind = 'text'\n\n[train]");
        let edits = [("[train]", sections.as_str()), ("epochs = 12", "epochs = 1"), ("learning_rate = 0.2\n", "")];
        write(lab.dir.path(), &pipeline(&lab.run_dir("run"), &edits))
    };
    let out = lab.program().args(["run", &config("")]).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let seen: Vec<String> = lab.server.seen().into_iter().map(|seen| seen.line).collect();
    assert!(seen.iter().any(|line| line.ends_with("/config_sentence_transformers.json")), "{seen:?}");
    for (keys, shown) in [
        (
            "",
            "vectors of 16 values in bf16, captions of up to 32 tokens, prefix `Query: ` (the encoder's default prompt, `query`)",
        ),
        ("prefix = 'x: '", "prefix `x: ` (`text.prefix`)"),
        ("prefix = ''", "no prefix (`text.prefix`)"),
        ("truncate_dim = 12", "vectors of the first 12 of 16 values"),
    ] {
        let out = lab.program().args(["--json", "check", &config(keys)]).output().unwrap();
        let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let needs = found["needs"]["text encoder"].as_str().unwrap();
        assert!(needs.contains(shown), "{keys}: {needs}");
    }
    // The same prefix, spelled out, is the same setting; another one is not.
    let out = lab.program().args(["run", &config("prefix = 'Query: '")]).output().unwrap();
    assert!(out.status.success(), "{}", stderr_of(&out));
    let out = lab.program().args(["run", &config("prefix = ''")]).output().unwrap();
    assert!(out.status.code() == Some(2) && stderr_of(&out).contains("text.prefix"), "{}", stderr_of(&out));
}
