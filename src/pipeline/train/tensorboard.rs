//! Event files of a training for TensorBoard: a folder for each head of a sweep.
//!
//! A process writes one file of each head, with the whole curve, and removes the files of earlier processes, whose points it
//! holds. A local file grows, so that TensorBoard follows it; on S3 it is replaced at each checkpoint. Wall times of points
//! that an earlier process made are those of this process's start, since the curve records none.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::EventFolder;
use crate::objects::{Store, StoreError};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::curve::Curve;
use crate::run_dir::Directory;
use crate::train::event_file::{Scalar, encode_header, encode_scalar};

/// Folder in the run directory.
pub(super) const FOLDER: &str = "tensorboard";
/// Part of a name by which TensorBoard knows an event file.
const MARK: &str = "tfevents";

/// Writer of the event files.
pub(super) struct EventFiles {
    dir: Directory,
    /// Name below `dir` of each head's folder.
    heads: Vec<EventFile>,
    /// Points of the curve that are in the files: losses, validations.
    written: (usize, usize),
}

/// Event file of one head.
struct EventFile {
    name: String,
    /// The growing file on local disk.
    file: Option<File>,
    /// The whole content, if the directory is remote.
    content: Vec<u8>,
}

/// Returns the seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Returns the folder of a run among those of other runs: its whole path, since runs of two folders may have the same name.
fn folder_of(run_dir: &str) -> String {
    let path = run_dir.split_once("://").map_or(run_dir, |(_, path)| path);
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
    if parts.is_empty() { "run".to_owned() } else { parts.join("/") }
}

impl EventFiles {
    /// Creates the files of a training with `trials` heads, with the points of the curve so far; `None` if the configuration
    /// asks for none.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn create(
        ctx: &RunContext,
        folder: &EventFolder,
        (trials, is_ensemble): (usize, bool),
        curve: &Curve,
    ) -> Result<Option<Self>, PipelineError> {
        let (dir, root) = match folder {
            EventFolder::Off => return Ok(None),
            EventFolder::RunDirectory => (ctx.dir.clone(), FOLDER.to_owned()),
            EventFolder::At(folder) => {
                let name = folder_of(ctx.config.run_dir());
                let staging = ctx.scratch_path().join("tensorboard");
                (Directory::open(&ctx.store, Store::redact(folder), &staging)?, name)
            }
        };
        let file = format!("events.out.{MARK}.{:010}.{}", now() as u64, std::process::id());
        let mut heads = Vec::new();
        for trial in 0..trials + usize::from(is_ensemble) {
            let head = match trials {
                1 => root.clone(),
                _ if trial == trials => format!("{root}/ensemble"),
                _ => format!("{root}/trial-{trial}"),
            };
            for other in dir.list(&head)?.into_iter().filter(|other| other.contains(MARK)) {
                dir.remove(&format!("{head}/{other}"))?;
            }
            heads.push(EventFile::create(&dir, format!("{head}/{file}"))?);
        }
        let mut this = Self { dir, heads, written: (0, 0) };
        this.write(curve)?;
        Ok(Some(this))
    }

    /// Writes the points of the curve that are not in the files yet.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write(&mut self, curve: &Curve) -> Result<(), PipelineError> {
        let (losses, validations) = (curve.losses.get(self.written.0..), curve.validations.get(self.written.1..));
        let mut more: Vec<Vec<u8>> = self.heads.iter().map(|_| Vec::new()).collect();
        let wall_time = now();
        let mut add = |trial: u32, step: u64, tag: &str, value: f64| {
            if let Some(content) = more.get_mut(trial as usize) {
                content.extend(encode_scalar(wall_time, Scalar { tag, step, value }));
            }
        };
        for point in losses.unwrap_or_default() {
            add(point.trial, point.step, "loss/train", point.loss);
            add(point.trial, point.step, "learning_rate", point.learning_rate);
        }
        for point in validations.unwrap_or_default() {
            for (tag, value) in [
                ("loss/validation", point.loss),
                ("validation/ndcg5", point.ndcg5),
                ("validation/ndcg5_ceiling", point.ndcg5_ceiling),
                ("validation/recall1", point.recall1),
                ("validation/recall5", point.recall5),
            ] {
                add(point.trial, point.step, tag, value);
            }
        }
        for (head, more) in self.heads.iter_mut().zip(more) {
            head.append(&self.dir, &more)?;
        }
        self.written = (curve.losses.len(), curve.validations.len());
        Ok(())
    }
}

impl EventFile {
    fn create(dir: &Directory, name: String) -> Result<Self, PipelineError> {
        let file = match dir.local_root() {
            None => None,
            Some(root) => {
                let path: PathBuf = root.join(&name);
                let failed = |error| StoreError::io(&path, "written", error);
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(failed)?;
                }
                Some(OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?)
            }
        };
        let mut this = Self { name, file, content: Vec::new() };
        this.append(dir, &encode_header(now()))?;
        Ok(this)
    }

    fn append(&mut self, dir: &Directory, bytes: &[u8]) -> Result<(), PipelineError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(file) = &mut self.file {
            return file.write_all(bytes).map_err(|error| {
                let path = dir.local_root().map_or_else(PathBuf::new, |root| root.join(&self.name));
                StoreError::io(path, "written", error).into()
            });
        }
        self.content.extend_from_slice(bytes);
        Ok(dir.write_volatile(&self.name, &self.content)?)
    }
}
