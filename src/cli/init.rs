//! Command `init`: writes a pipeline file for the files that it finds.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::output::{emit, print_raw};
use super::{Failure, render, start_runtime};
use crate::config::StoreConfig;
use crate::init::{Init, InitRequest};

/// Output that stands for standard output.
const STDOUT: &str = "-";

/// Arguments of the command.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) paths: Vec<PathBuf>,
    pub(super) output: PathBuf,
    pub(super) run_dir: Option<String>,
    pub(super) model: Option<String>,
    pub(super) encoder: Option<String>,
}

/// Result of the command.
#[derive(Debug, Serialize)]
struct Written<'a> {
    /// The pipeline file.
    file: &'a Path,
    #[serde(flatten)]
    init: &'a Init,
}

/// Looks at the paths and writes the pipeline file; an existing one is kept.
pub(super) fn init(options: &Options, store: &StoreConfig, json: bool) -> Result<(), Failure> {
    let to_stdout = options.output == Path::new(STDOUT);
    // Told before a long look at a remote store.
    if !to_stdout && std::fs::symlink_metadata(&options.output).is_ok() {
        return Err(exists(&options.output));
    }
    let mut paths = Vec::new();
    for path in &options.paths {
        let text = path.to_str().ok_or_else(|| {
            let name = path.display();
            Failure::new(
                2,
                format!(
                    "`{name}` is not UTF-8 text, which a pipeline file cannot name: rename it, or name it by a link"
                ),
            )
        })?;
        paths.push(text.to_owned());
    }
    let stem = options.output.file_stem().unwrap_or_default().to_string_lossy();
    let stem = if to_stdout { "pipeline".into() } else { stem };
    let run_dir = options.run_dir.clone().unwrap_or_else(|| format!("runs/{stem}"));
    let request = InitRequest { paths, run_dir, model: options.model.clone(), encoder: options.encoder.clone() };
    let init = start_runtime(0)?.block_on(crate::init::init(&request, store))?;
    if to_stdout {
        print_raw(&init.pipeline);
        return Ok(());
    }
    write_new(&options.output, init.pipeline.as_bytes())?;
    let written = Written { file: &options.output, init: &init };
    emit(json, &written, || render::init(&options.output, &init))
}

fn exists(path: &Path) -> Failure {
    Failure::new(2, format!("`{}` exists already: choose another name with `--output`, or remove it", path.display()))
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = std::fs::File::create_new(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::new(4, format!("`{}` cannot be written: {error}", path.display())),
    })
}
