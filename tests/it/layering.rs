//! Who may name whom: the table of `src/lib.rs`, held.

use std::path::{Path, PathBuf};

/// Module → the modules of this crate that its production code may name, beside itself.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("config", &["types"]),
    ("runtime", &[]),
    ("telemetry", &[]),
    ("objects", &["runtime"]),
    ("run_dir", &["objects", "runtime"]),
    ("hf_hub", &["objects", "run_dir"]),
    ("corpus", &[]),
    ("catalog", &["types"]),
    ("decode", &["types"]),
    ("device", &["types"]),
    ("chunk", &["objects", "run_dir", "runtime", "types"]),
    ("model", &["types"]),
    ("predict", &[]),
    ("train", &["predict", "types"]),
    ("sample", &[]),
    (
        "pipeline",
        &[
            "catalog",
            "chunk",
            "config",
            "corpus",
            "decode",
            "device",
            "hf_hub",
            "model",
            "objects",
            "predict",
            "run_dir",
            "runtime",
            "telemetry",
            "train",
            "types",
        ],
    ),
    ("cli", &["config", "device", "objects", "pipeline", "predict", "runtime", "sample", "telemetry", "types"]),
];

/// Module → crates that it must not know.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    ("types", &["tokio", "arrow", "burn", "image", "std::fs"]),
    ("config", &["tokio", "arrow", "burn", "std::fs"]),
    ("runtime", &["image", "arrow", "burn"]),
    ("telemetry", &["image", "arrow", "burn", "tokio"]),
    ("objects", &["image", "burn", "arrow"]),
    ("run_dir", &["image", "burn", "arrow"]),
    ("hf_hub", &["image", "burn", "arrow", "object_store"]),
    ("corpus", &["object_store", "image", "tokio"]),
    ("catalog", &["image", "burn", "tokio", "arrow"]),
    ("decode", &["tokio", "arrow", "burn", "std::fs"]),
    ("device", &["tokio", "arrow", "image"]),
    ("chunk", &["burn", "object_store"]),
    ("model", &["arrow", "parquet", "tokio"]),
    ("train", &["arrow", "parquet", "tokio", "clap", "image"]),
    ("predict", &["arrow", "parquet", "tokio", "clap", "image"]),
    ("pipeline", &["clap", "indicatif"]),
];

fn sources(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join(format!("{module}.rs"))];
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !is_test(&path) {
                files.push(path);
            }
        }
    }
    files
}

/// Test modules that have a file of their own.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests" || stem == "fuzz") || path.ends_with("model/reference.rs")
}

/// The code of a file without comments and without its test modules, which stand at the end.
fn production(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The words that stand behind `crate::`.
fn named(code: &str) -> Vec<String> {
    code.match_indices("crate::")
        .filter(|(at, _)| {
            !code[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$')
        })
        .map(|(at, _)| code[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn modules_name_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_NAME {
        for file in sources(module) {
            for other in named(&production(&file)) {
                if other != *module && !allowed.contains(&other.as_str()) {
                    wrong.push(format!("{}: `{module}` may not name `{other}`", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_do_not_know_what_they_must_not() {
    let mut wrong = Vec::new();
    for (module, forbidden) in MUST_NOT_KNOW {
        for file in sources(module) {
            let code = production(&file);
            for name in *forbidden {
                let used = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
                });
                if used {
                    wrong.push(format!("{}: `{module}` must not know `{name}`", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_in_the_table_and_on_the_map() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(declared.len() > 10);
    for module in declared {
        assert!(MAY_NAME.iter().any(|(name, _)| *name == module), "`{module}` is not in the table");
        assert!(lib.contains(&format!("//! | [`{module}`]")) || lib.contains(&format!("//! | `{module}`")), "{module}");
    }
}

#[test]
fn the_check_sees_a_forbidden_import() {
    assert_eq!(named("use crate::chunk::Entry; super::x; mycrate::y"), ["chunk"]);
}
