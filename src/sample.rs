//! Draws a small corpus in the published layout, and a tiny `ViT` checkpoint: a folder with everything that `run` needs, and
//! every quirk of the real files, out of a seed.
//!
//! The same options give the same bytes, on every machine and with any number of threads; no clock is read. The folder
//! appears under its name when it is complete and not before: everything is written into a sibling (`.NAME.partial`) that
//! is renamed at the end. `sample.json` lists the files with their sizes and BLAKE3 hashes; a later call replaces a folder
//! that holds what its `sample.json` lists and nothing else, and refuses any other that is not empty.
//!
//! Layout below the folder:
//!
//! | path | content |
//! | --- | --- |
//! | `data/train-0000{0..4}-of-00005.tsv` | captions of train images, 18 columns |
//! | `data/image_data_train/image_pixels/*.csv.gz` | train images: four shards, one of them several gzip members |
//! | `data/image_data_test/image_pixels/*.csv` | test images: two shards, uncompressed |
//! | `data/test.tsv`, `data/truth.csv` | ids with their image, ids with their relevant caption |
//! | `data/test_caption_list.csv` | captions to choose from, in another order, some twice |
//! | `data/sample_submission.csv` | a submission in its published form, without merit |
//! | `models/vit-tiny/` | a random `ViT` (64 px, patch 8, width 64, 2 blocks) in Hugging Face layout |
//!
//! Not here: anything that reads a corpus. What is drawn is forty pairs of colours in ten shapes, so a score on it says that
//! the parts work together, and nothing about photographs.

mod checkpoint;
mod concepts;
mod encode;
mod files;
mod plan;
mod png;
mod render;
mod rng;
mod rows;
mod urls;

use files::at;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

/// The list of files in the folder; its presence says that the folder is complete.
const MANIFEST: &str = "sample.json";
/// The first file of a folder in the making; its presence says that the folder may be removed.
const IN_THE_MAKING: &str = "incomplete-sample";
/// One image for each concept.
const FEWEST_TRAIN_IMAGES: u32 = 40;
/// Image numbers are 32 bits wide and a duplicate takes a second one.
const MOST_IMAGES: u32 = 1_000_000;

/// How much to draw, and from which seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleOptions {
    /// Images that can be used in the train shards, 40 to 1,000,000; about 1 % of unusable and duplicate rows come on top.
    pub train_images: u32,
    /// Images that can be used in the test shards, 1 to 1,000,000.
    pub test_images: u32,
    /// Everything follows from it.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { train_images: 2400, test_images: 300, seed: 42 }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleReport {
    /// Files, `sample.json` included.
    pub files: u32,
    /// Bytes of all files.
    pub bytes: u64,
    /// Rows of the five train files, rows that are broken on purpose included.
    pub train_rows: u64,
    /// Images of the train shards that can be used.
    pub train_images: u32,
    /// Rows of the train shards that cannot be used.
    pub unusable_train_rows: u32,
    /// Rows of the train shards whose URL occurs before.
    pub duplicate_train_rows: u32,
    /// Images of the test shards that can be used.
    pub test_images: u32,
    /// Ids of `test.tsv`; two of them ask for an image that is not there or cannot be used.
    pub ids: u32,
    /// Rows of the caption list.
    pub captions: u32,
    /// Distinct strings of the caption list.
    pub distinct_captions: u32,
}

/// Why no corpus was written.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A number of images is out of range.
    #[error("cannot draw `{given}` {what} images: give {fewest} to {MOST_IMAGES}")]
    Count {
        /// `train` or `test`.
        what: &'static str,
        /// What was asked for.
        given: u32,
        /// The least that can be drawn.
        fewest: u32,
    },
    /// The path ends in no name, so nothing can be made under it.
    #[error("`{}` does not end in a name: give a folder that this command may create", out.display())]
    Nameless {
        /// The path as given.
        out: PathBuf,
    },
    /// The folder, or the one that it is prepared in, holds what this module did not write.
    #[error("`{}` is not a drawn sample alone (it holds `{found}`): give another folder or move it away", folder.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// One thing in it that keeps it from being replaced.
        found: String,
    },
    /// Reading or writing failed.
    #[error("cannot write `{}`: free some space or give another folder", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A picture could not be encoded.
    #[error("cannot encode a drawn picture")]
    Encode {
        /// What the encoder said.
        source: image::ImageError,
    },
    /// The checkpoint could not be serialised.
    #[error("cannot serialise the drawn checkpoint")]
    Weights {
        /// What the serialiser said.
        source: safetensors::SafeTensorError,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    made_by: String,
    options: SampleOptions,
    files: Vec<ManifestFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ManifestFile {
    /// Relative to the folder, with `/`.
    path: String,
    bytes: u64,
    blake3: String,
}

/// Draws a corpus and a checkpoint into `out`, which is created; a folder that an earlier call wrote is replaced.
///
/// Blocks, and uses all processors; about 30 KB of disk an image.
///
/// # Errors
/// [`SampleError::Count`] and [`SampleError::Nameless`] for what cannot work, [`SampleError::Occupied`] for a folder that is
/// not this function's to replace, the others when writing fails. `out` is then as it was.
pub fn write(out: &Path, options: &SampleOptions) -> Result<SampleReport, SampleError> {
    for (what, given, fewest) in
        [("train", options.train_images, FEWEST_TRAIN_IMAGES), ("test", options.test_images, 1)]
    {
        if !(fewest..=MOST_IMAGES).contains(&given) {
            return Err(SampleError::Count { what, given, fewest });
        }
    }
    let name = out.file_name().ok_or_else(|| SampleError::Nameless { out: out.to_owned() })?;
    let beside = |ending: &str| {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(ending);
        out.with_file_name(hidden)
    };
    let partial = beside(".partial");
    let replaced = beside(".replaced");
    refuse_foreign(out)?;
    remove_unfinished(&partial)?;
    remove_unfinished(&replaced)?;

    fs::create_dir_all(&partial).map_err(at(&partial))?;
    let marker = partial.join(IN_THE_MAKING);
    fs::write(&marker, b"").map_err(at(&marker))?;
    let plan = plan::plan(options);
    files::write_all(&partial, &plan, options.seed)?;
    let listed = listed_files(&partial)?;
    let report = report(options, &plan, &listed);
    let manifest = Manifest { made_by: "wikicap-pipeline sample".to_owned(), options: options.clone(), files: listed };
    let text = serde_json::to_value(&manifest).map_err(|error| at(&partial)(error.into()))?;
    files::write_json(&partial.join(MANIFEST), &text)?;

    fs::remove_file(&marker).map_err(at(&marker))?;

    let exists = fs::exists(out).map_err(at(out))?;
    if exists {
        fs::rename(out, &replaced).map_err(at(out))?;
    }
    if let Err(error) = fs::rename(&partial, out) {
        if exists {
            fs::rename(&replaced, out).map_err(at(out))?;
        }
        return Err(at(out)(error));
    }
    remove_unfinished(&replaced)?;
    Ok(report)
}

fn report(options: &SampleOptions, plan: &plan::Plan, listed: &[ManifestFile]) -> SampleReport {
    let rows: usize = plan.train_shards.iter().map(Vec::len).sum();
    SampleReport {
        files: listed.len() as u32 + 1,
        bytes: listed.iter().map(|file| file.bytes).sum(),
        train_rows: plan.train_rows.iter().map(|rows| rows.len() as u64).sum(),
        train_images: options.train_images,
        unusable_train_rows: plan.unusable_train_rows,
        duplicate_train_rows: rows as u32 - options.train_images - plan.unusable_train_rows,
        test_images: options.test_images,
        ids: plan.ids.len() as u32,
        captions: plan.list.len() as u32,
        distinct_captions: plan.list.iter().collect::<BTreeSet<_>>().len() as u32,
    }
}

/// `Ok` where `folder` is absent, empty, or holds exactly what its manifest lists.
fn refuse_foreign(folder: &Path) -> Result<(), SampleError> {
    if !fs::exists(folder).map_err(at(folder))? {
        return Ok(());
    }
    let occupied = |found: String| SampleError::Occupied { folder: folder.to_owned(), found };
    let mut found = BTreeSet::new();
    walk(folder, folder, &mut found)?;
    if found.is_empty() {
        return Ok(());
    }
    let manifest = fs::read(folder.join(MANIFEST)).unwrap_or_default();
    let known: BTreeSet<String> = serde_json::from_slice::<Manifest>(&manifest)
        .map(|manifest| manifest.files.into_iter().map(|file| file.path).collect())
        .unwrap_or_default();
    match found.into_iter().find(|path| path != MANIFEST && !known.contains(path)) {
        Some(foreign) => Err(occupied(foreign)),
        // A manifest that cannot be read, and nothing else: not ours to judge.
        None if known.is_empty() => Err(occupied(MANIFEST.to_owned())),
        None => Ok(()),
    }
}

/// Removes a folder that an earlier call prepared or replaced, and refuses any other.
fn remove_unfinished(folder: &Path) -> Result<(), SampleError> {
    if !fs::exists(folder).map_err(at(folder))? {
        return Ok(());
    }
    let marker = folder.join(IN_THE_MAKING);
    if !fs::exists(&marker).map_err(at(folder))? {
        refuse_foreign(folder)?;
        fs::write(&marker, b"").map_err(at(&marker))?;
    }
    // The marker goes last, so that a removal that was cut short can be taken up again.
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            fs::remove_dir_all(&path).map_err(at(&path))?;
        } else if path != marker {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    fs::remove_dir_all(folder).map_err(at(folder))
}

/// Paths of everything below `folder` that is not a folder, relative to `root`, with `/`.
fn walk(root: &Path, folder: &Path, found: &mut BTreeSet<String>) -> Result<(), SampleError> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(at(&path))?.is_dir() {
            walk(root, &path, found)?;
        } else {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            found.insert(parts.join("/"));
        }
    }
    Ok(())
}

fn listed_files(root: &Path) -> Result<Vec<ManifestFile>, SampleError> {
    let mut paths = BTreeSet::new();
    walk(root, root, &mut paths)?;
    paths.remove(IN_THE_MAKING);
    paths
        .into_iter()
        .map(|relative| {
            let path = root.join(&relative);
            let mut hasher = blake3::Hasher::new();
            let file = fs::File::open(&path).map_err(at(&path))?;
            hasher.update_reader(file).map_err(at(&path))?;
            let bytes = hasher.count();
            Ok(ManifestFile { path: relative, bytes, blake3: hasher.finalize().to_hex().to_string() })
        })
        .collect()
}

#[cfg(test)]
mod tests;
