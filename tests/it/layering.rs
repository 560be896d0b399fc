//! Import rules between modules: the table of `src/lib.rs`, and the one for the stages of `pipeline`.
//!
//! Rust allows import cycles inside a crate; these tests do not. They read `use` statements (nested groups included) and
//! paths in code, and resolve `super::` and `self::`. Test modules are exempt.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module → the modules of this crate that its production code may import. A module may only name modules above it.
const MODULES: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("runtime", &["types"]),
    ("telemetry", &[]),
    ("corpus", &[]),
    ("caption", &[]),
    ("predict", &[]),
    ("sample", &[]),
    ("view", &[]),
    ("config", &["types"]),
    ("catalog", &["types"]),
    ("decode", &["types"]),
    ("device", &["types"]),
    ("card", &[]),
    ("model", &["card", "types"]),
    ("train", &["card", "predict", "types"]),
    ("objects", &["runtime"]),
    ("run_dir", &["objects", "runtime"]),
    ("hf_hub", &["objects", "run_dir", "types"]),
    ("chunk", &["objects", "run_dir", "runtime", "types"]),
    (
        "pipeline",
        &[
            "caption",
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
            "view",
        ],
    ),
    (
        "bench",
        &[
            "catalog",
            "chunk",
            "config",
            "corpus",
            "decode",
            "device",
            "model",
            "objects",
            "pipeline",
            "run_dir",
            "runtime",
            "telemetry",
            "train",
            "types",
        ],
    ),
    ("init", &["config", "corpus", "objects", "pipeline", "types"]),
    ("search", &["runtime", "types"]),
    (
        "explore",
        &[
            "catalog", "chunk", "config", "corpus", "decode", "device", "model", "objects", "pipeline", "predict",
            "run_dir", "search", "train", "types",
        ],
    ),
    ("serve", &["chunk", "config", "explore", "objects", "pipeline", "run_dir", "runtime", "view"]),
    (
        "cli",
        &[
            "bench",
            "caption",
            "config",
            "device",
            "explore",
            "init",
            "objects",
            "pipeline",
            "predict",
            "run_dir",
            "runtime",
            "sample",
            "serve",
            "telemetry",
            "types",
        ],
    ),
];

/// Module → crates that it must not use.
const FORBIDDEN_CRATES: &[(&str, &[&str])] = &[
    ("types", &["tokio", "arrow", "burn", "image", "std::fs"]),
    ("config", &["tokio", "arrow", "burn", "std::fs"]),
    ("runtime", &["image", "arrow", "burn"]),
    ("telemetry", &["image", "arrow", "burn", "tokio"]),
    ("objects", &["image", "burn", "arrow"]),
    ("run_dir", &["image", "burn", "arrow"]),
    ("hf_hub", &["image", "burn", "arrow"]),
    ("corpus", &["object_store", "image", "tokio"]),
    ("catalog", &["image", "burn", "tokio", "arrow"]),
    ("decode", &["tokio", "arrow", "burn", "std::fs"]),
    ("device", &["tokio", "arrow", "image"]),
    ("chunk", &["burn", "object_store"]),
    ("model", &["arrow", "parquet", "tokio"]),
    ("train", &["arrow", "parquet", "tokio", "clap", "image"]),
    ("predict", &["arrow", "parquet", "tokio", "clap", "image"]),
    ("caption", &["arrow", "burn", "parquet", "tokio", "clap", "image"]),
    ("view", &["arrow", "burn", "std::fs", "tokio"]),
    ("pipeline", &["clap", "indicatif"]),
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Production files of a module, given by its path below `src`.
fn files_of(module: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        Some(src().join(format!("{module}.rs"))).into_iter().filter(|path| path.is_file()).collect();
    let mut folders = vec![src().join(module)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test_file(&path) {
                files.push(path);
            }
        }
    }
    files
}

/// Whether a file holds a test module, by its name or that of a folder.
fn is_test_file(path: &Path) -> bool {
    module_path(path).iter().any(|part| ["tests", "fuzz", "reference"].contains(&part.as_str()))
}

/// Code of a file without comments and without its test modules, which stand at the end.
fn production_code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Module path of a source file: `src/a/b.rs` → `[a, b]`.
fn module_path(file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(src()).unwrap().with_extension("");
    relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect()
}

/// Splits a `use` tree into its paths: `a::{b, c::{d, e}}` → `a::b`, `a::c::d`, `a::c::e`.
fn expand_group(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else { return vec![tree.trim().to_owned()] };
    let (prefix, inner) = (&tree[..open], tree[open + 1..].trim_end().trim_end_matches('}'));
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(expand_group).map(|part| format!("{}{part}", prefix.trim())).collect()
}

/// Absolute paths (without `crate`) of this crate that `code`, in the module `own`, names.
fn imported_paths(code: &str, own: &[String]) -> BTreeSet<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = String::new();
    for part in code.split(';') {
        let statement = part.rfind("use ").filter(|at| part[..*at].chars().next_back().is_none_or(char::is_whitespace));
        match statement {
            Some(at) if part[at..].matches('{').count() == part[at..].matches('}').count() => {
                paths.extend(expand_group(&part[at + "use ".len()..]));
                rest.push_str(&part[..at]);
            }
            _ => rest.push_str(part),
        }
        rest.push(';');
    }
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in rest.match_indices(root) {
            let before = rest[..at].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '$' | ':')) {
                continue;
            }
            let path = rest[at..].chars().take_while(|letter| letter.is_alphanumeric() || matches!(letter, '_' | ':'));
            paths.push(path.collect());
        }
    }
    paths.iter().filter_map(|path| absolute(path, own)).collect()
}

/// Resolves a path against the module it stands in; `None` for a path of another crate.
fn absolute(path: &str, own: &[String]) -> Option<Vec<String>> {
    let mut parts = path.split("::").map(|part| part.trim().split(' ').next().unwrap_or_default().to_owned());
    let mut resolved = match parts.next()?.as_str() {
        "crate" => Vec::new(),
        "self" => own.to_vec(),
        "super" => own[..own.len().saturating_sub(1)].to_vec(),
        _ => return None,
    };
    for part in parts {
        if part == "super" {
            resolved.pop();
        } else if !part.is_empty() && part != "self" {
            resolved.push(part);
        }
    }
    Some(resolved)
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut violations = Vec::new();
    for (module, allowed) in MODULES {
        for file in files_of(module) {
            for path in imported_paths(&production_code(&file), &module_path(&file)) {
                let Some(other) = path.first() else { continue };
                if other != module && !allowed.contains(&other.as_str()) {
                    violations.push(format!("{}: `{module}` may not import `{other}`", file.display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn table_has_no_cycles() {
    for (at, (module, allowed)) in MODULES.iter().enumerate() {
        for other in *allowed {
            assert!(MODULES[..at].iter().any(|(name, _)| name == other), "`{other}` must stand above `{module}`");
        }
    }
}

#[test]
fn modules_do_not_use_forbidden_crates() {
    let mut violations = Vec::new();
    for (module, forbidden) in FORBIDDEN_CRATES {
        for file in files_of(module) {
            let code = production_code(&file);
            for name in *forbidden {
                let is_used = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
                });
                if is_used {
                    violations.push(format!("{}: `{module}` must not use `{name}`", file.display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_module_is_in_the_table_and_on_the_map() {
    let lib = std::fs::read_to_string(src().join("lib.rs")).unwrap();
    let declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(declared.len() > 10);
    for module in declared {
        assert!(MODULES.iter().any(|(name, _)| *name == module), "`{module}` is not in the table");
        assert!(lib.contains(&format!("//! | [`{module}`]")), "`{module}` is not on the map of src/lib.rs");
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let own = ["pipeline".to_owned(), "images".to_owned(), "reader".to_owned()];
    let found = |code: &str| -> Vec<String> { imported_paths(code, &own).iter().map(|path| path.join("::")).collect() };
    assert_eq!(found("use crate::chunk::Entry;"), ["chunk::Entry"]);
    assert_eq!(
        found("use crate::{chunk::{Entry, journal as j}, config};"),
        ["chunk::Entry", "chunk::journal", "config"]
    );
    assert_eq!(found("pub(crate) use super::super::Run;"), ["pipeline::Run"]);
    assert_eq!(
        found("let a = super::block::size(crate::decode::Spec);"),
        ["decode::Spec", "pipeline::images::block::size"]
    );
    assert_eq!(found("use std::fs; use mycrate::x; let y = $crate::z;"), Vec::<String>::new());
}

/// Parts of `pipeline` that every stage may import, lowest first. A part may only name parts above it.
const PIPELINE_BASE: &[&str] = &[
    "error",
    "store",
    "claims",
    "observe",
    "finished",
    "manifest",
    "context",
    "records",
    "chunk_files",
    "feed",
    "inputs",
];

/// Stage → the stages that its production code may import, beside the base. A stage may only name stages above it.
const PIPELINE_STAGES: &[(&str, &[&str])] = &[
    ("hub", &[]),
    ("device", &[]),
    ("catalog", &[]),
    ("images", &[]),
    ("captions", &["catalog", "device", "hub"]),
    ("resolve", &["captions", "device", "hub", "images"]),
    ("features", &["device", "images", "resolve"]),
    ("train", &["captions", "catalog", "device", "resolve"]),
    ("predict", &["captions", "catalog", "device", "features", "hub", "images", "resolve", "train"]),
    ("caption", &["captions", "device", "features", "hub", "images", "predict", "resolve"]),
    ("needs", &["captions", "device", "resolve", "train"]),
    ("plan", &["predict", "resolve"]),
    (
        "execution",
        &["captions", "catalog", "device", "features", "images", "needs", "plan", "predict", "resolve", "train"],
    ),
    ("part", &["catalog", "execution", "plan", "resolve"]),
    ("check", &["captions", "catalog", "device", "hub", "images", "needs", "predict", "resolve"]),
    ("inspect", &["device", "hub"]),
];

#[test]
fn pipeline_parts_import_only_what_the_table_allows() {
    let mut violations = Vec::new();
    let base = PIPELINE_BASE.iter().enumerate().map(|(at, part)| (*part, PIPELINE_BASE[..at].to_vec()));
    let stages = PIPELINE_STAGES.iter().map(|(stage, allowed)| (*stage, [PIPELINE_BASE, *allowed].concat()));
    for (part, allowed) in base.chain(stages) {
        for file in files_of(&format!("pipeline/{part}")) {
            for path in imported_paths(&production_code(&file), &module_path(&file)) {
                if path.first().is_none_or(|module| module != "pipeline") {
                    continue;
                }
                // The orchestrator itself, which nothing below it may name, has no second segment.
                let other = path.get(1).map_or("pipeline", String::as_str);
                if other != part && !allowed.contains(&other) {
                    violations.push(format!("{}: `{part}` may not import `{other}`", file.display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn pipeline_table_has_no_cycles() {
    for (at, (stage, allowed)) in PIPELINE_STAGES.iter().enumerate() {
        for other in *allowed {
            assert!(
                PIPELINE_STAGES[..at].iter().any(|(name, _)| name == other),
                "`{other}` must stand above `{stage}`"
            );
        }
    }
}

#[test]
fn every_part_of_pipeline_is_in_the_table_and_on_its_page() {
    let page = std::fs::read_to_string(src().join("pipeline.rs")).unwrap();
    let parts = page.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    let parts: Vec<&str> = parts.collect();
    assert!(parts.len() > 10);
    let table: Vec<&str> = page.lines().filter(|line| line.starts_with("//! | `")).collect();
    for part in parts {
        let is_listed = PIPELINE_BASE.contains(&part) || PIPELINE_STAGES.iter().any(|(name, _)| *name == part);
        assert!(is_listed, "`{part}` is not in the table");
        assert!(table.iter().any(|line| line.contains(&format!("`{part}`"))), "`{part}` is not on the page");
    }
}
