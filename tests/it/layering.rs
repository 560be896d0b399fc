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

/// Parts of `pipeline` that all others may name.
const PIPELINE_BASE: &[&str] =
    &["context", "error", "store", "manifest", "observe", "chunk_files", "feed", "batch_log"];

/// Part of `pipeline` → the parts that its production code may name, beside itself and the base. A part names only earlier
/// parts, so there are no cycles.
const PIPELINE_MAY_NAME: &[(&str, &[&str])] = &[
    ("hub", &[]),
    ("device", &[]),
    ("catalog", &[]),
    ("images", &[]),
    ("captions", &["device"]),
    ("resolve", &["captions", "device", "hub", "images"]),
    ("features", &["device", "images", "resolve"]),
    ("train", &["captions", "catalog", "device", "resolve"]),
    ("predict", &["captions", "catalog", "device", "features", "hub", "images", "resolve", "train"]),
    ("plan", &["predict", "resolve"]),
    ("check", &["captions", "catalog", "device", "hub", "images", "predict", "resolve"]),
    ("inspect", &["device", "hub"]),
    ("bench", &["device", "images"]),
];

/// The files of a part of `pipeline`, each with its number of folders below `pipeline/`.
fn part_sources(part: &str) -> Vec<(PathBuf, usize)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pipeline");
    let depth = |path: &PathBuf| path.strip_prefix(&root).unwrap().components().count() - 1;
    let files = sources(&format!("pipeline/{part}")).into_iter().filter(|path| path.exists());
    files.map(|path| (path.clone(), depth(&path))).collect()
}

#[test]
fn parts_of_pipeline_name_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    let base = PIPELINE_BASE.iter().map(|part| (*part, &[][..]));
    for (part, allowed) in base.chain(PIPELINE_MAY_NAME.iter().copied()) {
        for (file, depth) in part_sources(part) {
            let code = production(&file);
            for (at, name) in code.match_indices("crate::pipeline::") {
                let rest = &code[at + name.len()..];
                let other: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if other != part && !PIPELINE_BASE.contains(&&*other) && !allowed.contains(&&*other) {
                    wrong.push(format!("{}: `{part}` may not name `{other}`", file.display()));
                }
            }
            if code.contains(&"super::".repeat(depth + 1)) {
                wrong.push(format!("{}: leaves `{part}` by `super`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn parts_of_pipeline_have_no_cycle() {
    for (index, (part, allowed)) in PIPELINE_MAY_NAME.iter().enumerate() {
        for other in *allowed {
            assert!(PIPELINE_MAY_NAME[..index].iter().any(|(earlier, _)| earlier == other), "`{part}` names `{other}`");
        }
    }
}

#[test]
fn every_part_of_pipeline_is_in_the_table_and_on_its_page() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pipeline.rs")).unwrap();
    let parts = page.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    let parts: Vec<&str> = parts.collect();
    assert!(parts.len() > 10);
    let table: Vec<&str> = page.lines().filter(|line| line.starts_with("//! | `")).collect();
    for part in parts {
        let known = PIPELINE_BASE.contains(&part) || PIPELINE_MAY_NAME.iter().any(|(name, _)| *name == part);
        assert!(known, "`{part}` is not in the table");
        assert!(table.iter().any(|line| line.contains(&format!("`{part}`"))), "`{part}` is not on the page");
    }
}
