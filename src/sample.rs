//! Generates a small synthetic corpus in the published layout and a tiny random `ViT` checkpoint. The folder contains
//! everything that `run` needs and every quirk of the published files.
//!
//! The same options give the same bytes on every machine and with any number of threads. The folder appears under its
//! name only when it is complete: all files are written to a sibling (`.NAME.partial`), which is renamed at the end.
//! `sample.json` lists the files with their sizes and BLAKE3 hashes. A later call replaces a folder that contains only
//! what its `sample.json` lists, unchanged; it refuses any other folder that is not empty.
//!
//! Layout of the folder:
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
//! In another [`SampleFormat`], the train tables and the image shards are replaced:
//!
//! | format | files |
//! | --- | --- |
//! | `parquet` | `data/image_data_{train,test}/part-*.parquet`: `image`, `image_url`, `wit_features` |
//! | `jsonl` | `data/image_data_{train,test}/part-*.json.gz`: `image_url`, `b64_bytes`, `wit_features` |
//! | `webdataset` | `data/image_data_{train,test}/part-*.tar`: `KEY.jpg`, `KEY.json` |
//! | `folder` | `data/{train,test}/part-*/NUMBER.jpg`, `data/train/metadata.csv`; ids name the files |
//!
//! With `embeddings`, the files of `image_pixels` are replaced by `resnet_embeddings/{train,test}_resnet_embeddings_part-*`:
//! rows of URL and 2,048 numbers as text.
//!
//! This module never reads a corpus. The images show forty scenes, each a shape in one colour on another. A score on
//! them shows that the parts work together; it says nothing about photographs.

mod checkpoint;
mod contents;
mod embeddings;
mod encode;
mod files;
mod formats;
mod png;
mod render;
mod rng;
mod rows;
mod scenes;
mod urls;

use contents::CorpusContents;
use files::disk_error;
use serde::Deserialize;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

/// File list of the folder. Its presence marks the folder as complete.
const MANIFEST: &str = "sample.json";
/// Marker of an incomplete folder, which may be removed.
const INCOMPLETE_MARKER: &str = "incomplete-sample";
/// Smallest number of training images: one per scene.
const MIN_TRAIN_IMAGES: u32 = 40;
/// Largest number of images: image numbers are 32 bits wide, and a duplicate takes a second one.
const MAX_IMAGES: u32 = 1_000_000;

/// Format of images and captions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleFormat {
    /// The published layout: images and captions in separate files, with every quirk of the published ones.
    #[default]
    Tsv,
    /// Parquet as in `wikimedia/wit_base`: images with their captions.
    Parquet,
    /// Gzipped JSON lines as in Wikimedia's joined files: images with their captions.
    Jsonl,
    /// Tar archives as the `webdataset` library reads them: `KEY.jpg` with `KEY.json`.
    Webdataset,
    /// Picture files, and `metadata.csv` with the captions.
    Folder,
    /// The published layout with features as text in place of the images.
    Embeddings,
}

impl SampleFormat {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_tsv(&self) -> bool {
        *self == Self::Tsv
    }
}

/// Size, seed and format of a synthetic corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleOptions {
    /// Usable images in the train shards, 40 to 1,000,000. About 1 % of unusable and duplicate rows are added.
    pub train_images: u32,
    /// Usable images in the test shards, 1 to 1,000,000.
    pub test_images: u32,
    /// Seed, which determines all content.
    pub seed: u64,
    /// Format of images and captions; their content does not depend on it.
    #[serde(default, skip_serializing_if = "SampleFormat::is_tsv")]
    pub format: SampleFormat,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { train_images: 2400, test_images: 300, seed: 42, format: SampleFormat::Tsv }
    }
}

/// Counts of what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleReport {
    /// Number of files, including `sample.json`.
    pub files: u32,
    /// Bytes of all files.
    pub bytes: u64,
    /// Rows of the five train files, including malformed ones.
    pub train_rows: u64,
    /// Usable images in the train shards.
    pub train_images: u32,
    /// Unusable rows in the train shards.
    pub unusable_train_rows: u32,
    /// Rows of the train shards with a repeated URL.
    pub duplicate_train_rows: u32,
    /// Usable images in the test shards.
    pub test_images: u32,
    /// Ids in `test.tsv`. The image of one of them is missing, that of another is unusable.
    pub ids: u32,
    /// Rows in the caption list.
    pub captions: u32,
    /// Distinct strings in the caption list.
    pub distinct_captions: u32,
}

/// Error of writing a synthetic corpus.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A number of images is out of range.
    #[error("cannot generate `{given}` {what} images: choose a number from {min} to {MAX_IMAGES}")]
    Count {
        /// `train` or `test`.
        what: &'static str,
        /// Requested number.
        given: u32,
        /// Smallest possible number.
        min: u32,
    },
    /// The path does not end in a file name.
    #[error("`{}` does not end in a file name: choose a folder that this command can create", out.display())]
    Nameless {
        /// Path as given.
        out: PathBuf,
    },
    /// The folder or its sibling contains files that this module did not write.
    #[error("`{}` contains `{found}`, which is not part of a sample: choose another folder or move it away", folder.display())]
    Occupied {
        /// Folder.
        folder: PathBuf,
        /// A file that prevents its replacement.
        found: String,
    },
    /// A file of an earlier sample was edited.
    #[error("`{}` contains `{found}`, which was changed since it was rendered: choose another folder or move it away", folder.display())]
    Changed {
        /// Folder.
        folder: PathBuf,
        /// The changed file.
        found: String,
    },
    /// Reading or writing failed.
    #[error("cannot write `{}`: free some space or choose another folder", path.display())]
    Disk {
        /// File or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// An image could not be encoded.
    #[error("cannot encode a synthetic image")]
    Encode {
        /// Error of the encoder.
        source: image::ImageError,
    },
    /// The checkpoint could not be serialised.
    #[error("cannot serialise the random checkpoint")]
    Weights {
        /// Error of the serialiser.
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
    /// Path relative to the folder, with `/` as separator.
    path: String,
    bytes: u64,
    blake3: String,
}

/// Writes a corpus as [`write()`] does, unless `out` holds one. Of several processes on a machine one writes, and the others wait
/// for it; `waits` is called before that.
///
/// # Errors
/// As [`write()`].
pub fn write_if_absent(out: &Path, options: &SampleOptions, waits: impl FnOnce()) -> Result<(), SampleError> {
    if out.join(MANIFEST).is_file() {
        return Ok(());
    }
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(disk_error(parent))?;
    // The lock is on the folder above, so that no lock file is left.
    let folder = fs::File::open(parent).map_err(disk_error(parent))?;
    if folder.try_lock().is_err() {
        waits();
        folder.lock().map_err(disk_error(parent))?;
    }
    if out.join(MANIFEST).is_file() {
        return Ok(());
    }
    write(out, options).map(|_| ())
}

/// Writes a synthetic corpus and a checkpoint to the new folder `out`; a folder from an earlier call is replaced.
///
/// Blocks and uses all processors. Each image takes about 30 KB of disk.
///
/// # Errors
/// Returns [`SampleError::Count`] or [`SampleError::Nameless`] for invalid arguments, [`SampleError::Occupied`] if the
/// folder must not be replaced, and the other variants if writing fails. `out` is then unchanged.
pub fn write(out: &Path, options: &SampleOptions) -> Result<SampleReport, SampleError> {
    for (what, given, min) in [("train", options.train_images, MIN_TRAIN_IMAGES), ("test", options.test_images, 1)] {
        if !(min..=MAX_IMAGES).contains(&given) {
            return Err(SampleError::Count { what, given, min });
        }
    }
    let name = out.file_name().ok_or_else(|| SampleError::Nameless { out: out.to_owned() })?;
    let sibling = |ending: &str| {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(ending);
        out.with_file_name(hidden)
    };
    let partial = sibling(".partial");
    let replaced = sibling(".replaced");
    ensure_replaceable(out)?;
    remove_incomplete(&partial)?;
    remove_incomplete(&replaced)?;

    fs::create_dir_all(&partial).map_err(disk_error(&partial))?;
    let marker = partial.join(INCOMPLETE_MARKER);
    fs::write(&marker, b"").map_err(disk_error(&marker))?;
    let contents = contents::generate(options);
    files::write_all(&partial, &contents, options.seed, options.format)?;
    let files = hash_files(&partial)?;
    let report = report(options, &contents, &files);
    let manifest = Manifest { made_by: "wikicap-pipeline sample".to_owned(), options: options.clone(), files };
    let text = serde_json::to_value(&manifest).map_err(|error| disk_error(&partial)(error.into()))?;
    files::write_json(&partial.join(MANIFEST), &text)?;

    fs::remove_file(&marker).map_err(disk_error(&marker))?;

    let exists = fs::exists(out).map_err(disk_error(out))?;
    if exists {
        fs::rename(out, &replaced).map_err(disk_error(out))?;
    }
    if let Err(error) = fs::rename(&partial, out) {
        if exists {
            fs::rename(&replaced, out).map_err(disk_error(out))?;
        }
        return Err(disk_error(out)(error));
    }
    remove_incomplete(&replaced)?;
    Ok(report)
}

fn report(options: &SampleOptions, contents: &CorpusContents, files: &[ManifestFile]) -> SampleReport {
    let rows: usize = contents.train_shards.iter().map(Vec::len).sum();
    SampleReport {
        files: files.len() as u32 + 1,
        bytes: files.iter().map(|file| file.bytes).sum(),
        train_rows: contents.train_rows.iter().map(|rows| rows.len() as u64).sum(),
        train_images: options.train_images,
        unusable_train_rows: contents.unusable_train_rows,
        duplicate_train_rows: rows as u32 - options.train_images - contents.unusable_train_rows,
        test_images: options.test_images,
        ids: contents.ids.len() as u32,
        captions: contents.list.len() as u32,
        distinct_captions: contents.list.iter().collect::<BTreeSet<_>>().len() as u32,
    }
}

/// Succeeds if `folder` is absent, empty, or contains exactly what its manifest lists.
fn ensure_replaceable(folder: &Path) -> Result<(), SampleError> {
    if !fs::exists(folder).map_err(disk_error(folder))? {
        return Ok(());
    }
    let occupied = |found: String| SampleError::Occupied { folder: folder.to_owned(), found };
    let mut found = BTreeSet::new();
    collect_files(folder, folder, &mut found)?;
    if found.is_empty() {
        return Ok(());
    }
    let manifest = fs::read(folder.join(MANIFEST)).unwrap_or_default();
    let known: BTreeMap<String, String> = serde_json::from_slice::<Manifest>(&manifest)
        .map(|manifest| manifest.files.into_iter().map(|file| (file.path, file.blake3)).collect())
        .unwrap_or_default();
    if let Some(foreign) = found.iter().find(|path| *path != MANIFEST && !known.contains_key(*path)) {
        return Err(occupied(foreign.clone()));
    }
    // An unreadable manifest alone may belong to another program.
    if known.is_empty() {
        return Err(occupied(MANIFEST.to_owned()));
    }
    let hash = |path: &String| hash_file(&folder.join(path)).map(|(_, hash)| hash);
    for path in found.iter().filter(|path| *path != MANIFEST) {
        if known.get(path) != Some(&hash(path)?) {
            return Err(SampleError::Changed { folder: folder.to_owned(), found: path.clone() });
        }
    }
    Ok(())
}

/// Removes a folder that an earlier call prepared or replaced; refuses any other.
fn remove_incomplete(folder: &Path) -> Result<(), SampleError> {
    if !fs::exists(folder).map_err(disk_error(folder))? {
        return Ok(());
    }
    let marker = folder.join(INCOMPLETE_MARKER);
    if !fs::exists(&marker).map_err(disk_error(folder))? {
        ensure_replaceable(folder)?;
        fs::write(&marker, b"").map_err(disk_error(&marker))?;
    }
    // The marker is removed last, so that an interrupted removal can be repeated.
    for entry in fs::read_dir(folder).map_err(disk_error(folder))? {
        let entry = entry.map_err(disk_error(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(disk_error(&path))?.is_dir() {
            fs::remove_dir_all(&path).map_err(disk_error(&path))?;
        } else if path != marker {
            fs::remove_file(&path).map_err(disk_error(&path))?;
        }
    }
    fs::remove_dir_all(folder).map_err(disk_error(folder))
}

/// Collects the paths of all files below `folder`, relative to `root`, with `/` as separator.
fn collect_files(root: &Path, folder: &Path, found: &mut BTreeSet<String>) -> Result<(), SampleError> {
    for entry in fs::read_dir(folder).map_err(disk_error(folder))? {
        let entry = entry.map_err(disk_error(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(disk_error(&path))?.is_dir() {
            collect_files(root, &path, found)?;
        } else {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            found.insert(parts.join("/"));
        }
    }
    Ok(())
}

fn hash_files(root: &Path) -> Result<Vec<ManifestFile>, SampleError> {
    let mut paths = BTreeSet::new();
    collect_files(root, root, &mut paths)?;
    paths.remove(INCOMPLETE_MARKER);
    paths
        .into_iter()
        .map(|relative| {
            let (bytes, blake3) = hash_file(&root.join(&relative))?;
            Ok(ManifestFile { path: relative, bytes, blake3 })
        })
        .collect()
}

/// Returns the size of a file and its BLAKE3 hash in hex.
fn hash_file(path: &Path) -> Result<(u64, String), SampleError> {
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).map_err(disk_error(path))?;
    hasher.update_reader(file).map_err(disk_error(path))?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests;
