//! Images held out from training: collected in the one pass over the features that counts the samples, and kept.
//!
//! A classifier keeps all of them ([`KeptRows`]), 0.2 GB for 2 % of the real corpus. A projection head keeps a sample
//! ([`HeldOut`]) with the vectors of its captions.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::chunk::RowMeta;
use crate::chunk::features::Values;
use crate::objects::StoreError;
use crate::pipeline::chunk_files::ChunkFile;
use crate::pipeline::error::PipelineError;
use crate::pipeline::train::balance::hash_to_unit;
use crate::runtime::{ByteBudget, BytePermit};
use crate::train::Targets;
use crate::types::{Precision, ValidationSplit};

/// Upper bound on the expected number of images of a sample. If more are held out, a hash selects some of them.
const MAX_IMAGES: u64 = 4096;
/// Separates the hash of this selection from other uses of the seed.
const SELECTION_SEED: u64 = 0x7661_6c69_6461_7465;
/// Name of the file on scratch disk.
const FILE: &str = "held-out.features";

/// Collector of held-out images.
pub(crate) trait HeldOutRows {
    /// Returns whether the features of a held-out row are kept. Called once for each held-out row, in order.
    fn wants(&mut self, chunk: usize, row: usize) -> bool;

    /// Adds the rows of a chunk that were wanted, with their features.
    ///
    /// # Errors
    /// When scratch disk cannot be written.
    fn add(&mut self, rows: &RowMeta, wanted: &[usize], values: &Values) -> Result<(), PipelineError>;
}

/// Reads the rows of the copy `path` of a chunk file, and adds those that are held out to `held_out`. `name` names the file in
/// messages. Blocks the thread.
///
/// # Errors
/// When the file cannot be read or holds features of another size than `dim`, or scratch disk cannot be written.
pub(crate) fn read_chunk_rows(
    (file, path, name): (&ChunkFile, &Path, &str),
    chunk: usize,
    split: ValidationSplit,
    dim: usize,
    held_out: &mut impl HeldOutRows,
) -> Result<RowMeta, PipelineError> {
    if split.is_empty() {
        return file.read_row_meta(path);
    }
    let mut wanted = Vec::new();
    let read = file.read_selected(path, |rows, row| {
        let is_wanted = rows.view(row) <= 1 && split.contains(rows.url(row)) && held_out.wants(chunk, row);
        if is_wanted {
            wanted.push(row);
        }
        is_wanted
    })?;
    require_dim(name, read.dim, dim)?;
    held_out.add(&read.rows, &wanted, &read.values)?;
    Ok(read.rows)
}

/// Refuses a chunk of features of another size.
pub(super) fn require_dim(name: &str, found: usize, expected: usize) -> Result<(), PipelineError> {
    if found == expected {
        return Ok(());
    }
    Err(PipelineError::Input(format!("`{name}` holds features of {found} values, not {expected}: remove the file")))
}

/// All held-out rows: in memory within a limit, beyond it in a file on scratch disk.
pub(crate) struct KeptRows {
    dim: usize,
    labels: Targets,
    /// Features in memory, or those of the file that are not written yet.
    values: Values,
    /// Bytes that may stay in memory.
    memory_bytes: u64,
    scratch: PathBuf,
    file: Option<File>,
    permit: Option<BytePermit>,
}

/// Bytes that are collected before they are written to the file.
const WRITE_BYTES: usize = 4 << 20;

impl KeptRows {
    /// Starts a collection of rows of `dim` values. At most `memory_bytes` of features stay in memory.
    pub(crate) fn new(dim: usize, precision: Precision, memory_bytes: u64, scratch: PathBuf) -> Self {
        let (labels, values) = (Targets::default(), Values::new(precision));
        Self { dim, labels, values, memory_bytes, scratch, file: None, permit: None }
    }

    fn value_bytes(&self) -> usize {
        match self.values {
            Values::Bf16(_) => 2,
            Values::F32(_) => 4,
        }
    }

    /// Ends the collection, and takes the memory of the features from the budget. Blocks the thread.
    ///
    /// # Errors
    /// When scratch disk cannot be written.
    pub(crate) fn finish(mut self, budget: &ByteBudget) -> Result<Self, PipelineError> {
        if self.file.is_some() {
            self.write_out()?;
        }
        self.values.shrink();
        let bytes = (self.values.len() * self.value_bytes() + 4 * self.labels.classes().len() + 8 * self.rows()) as u64;
        self.permit = Some(budget.acquire_blocking(bytes));
        Ok(self)
    }

    /// Returns the number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.labels.rows()
    }

    /// Returns the classes of each row.
    pub(crate) fn labels(&self) -> &Targets {
        &self.labels
    }

    /// Returns the features of some rows, `[rows, dim]`. Blocks the thread.
    ///
    /// # Errors
    /// When scratch disk cannot be read.
    pub(crate) fn read(&self, rows: std::ops::Range<usize>) -> Result<Vec<f32>, PipelineError> {
        let span = rows.start * self.dim..rows.end * self.dim;
        let mut out = Vec::with_capacity(span.len());
        let Some(file) = &self.file else {
            self.values.copy_to(span, &mut out);
            return Ok(out);
        };
        let width = self.value_bytes();
        let mut bytes = vec![0; span.len() * width];
        let failed = |error| StoreError::io(Path::new(FILE), "read", error);
        file.read_exact_at(&mut bytes, (span.start * width) as u64).map_err(failed)?;
        let mut values = self.values.empty_like();
        values.extend_from_bytes(&bytes);
        values.copy_to(0..span.len(), &mut out);
        Ok(out)
    }

    /// Appends the values in memory to the file, which the first call creates.
    fn write_out(&mut self) -> Result<(), PipelineError> {
        let path = self.scratch.join(FILE);
        let failed = |error| PipelineError::from(StoreError::io(&path, "written", error));
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                std::fs::create_dir_all(&self.scratch).map_err(failed)?;
                let mut options = File::options();
                let file = options.read(true).write(true).create(true).truncate(true).open(&path).map_err(failed)?;
                // The open file stays usable. The system frees it when the process ends.
                std::fs::remove_file(&path).map_err(failed)?;
                none.insert(file)
            }
        };
        file.write_all(&self.values.to_bytes()).map_err(failed)?;
        self.values = self.values.empty_like();
        Ok(())
    }
}

impl HeldOutRows for KeptRows {
    fn wants(&mut self, _chunk: usize, _row: usize) -> bool {
        true
    }

    fn add(&mut self, rows: &RowMeta, wanted: &[usize], values: &Values) -> Result<(), PipelineError> {
        for (place, row) in wanted.iter().enumerate() {
            self.labels.push(rows.labels(*row));
            self.values.append(values, place * self.dim..(place + 1) * self.dim);
        }
        let bytes = self.values.len() * self.value_bytes();
        let limit = if self.file.is_some() { WRITE_BYTES as u64 } else { self.memory_bytes };
        if bytes as u64 > limit { self.write_out() } else { Ok(()) }
    }
}

/// A sample of the held-out images.
pub(crate) struct HeldOutSample {
    seed: u64,
    dim: usize,
    /// Held-out images so far, wanted or not.
    seen: u64,
    /// Hashes of the wanted rows of the current chunk.
    wanted: Vec<f64>,
    /// Hash of each image, which decides whether it is in the sample.
    hashes: Vec<f64>,
    features: Vec<f32>,
    labels: Targets,
    urls: Vec<Box<str>>,
}

impl HeldOutSample {
    /// Starts a sample of rows of `dim` values.
    pub(crate) fn new(seed: u64, dim: usize) -> Self {
        let (wanted, hashes, features, urls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { seed, dim, seen: 0, wanted, hashes, features, labels: Targets::default(), urls }
    }

    /// Returns the share of the images so far that belong to the sample. It only falls.
    fn share(&self) -> f64 {
        MAX_IMAGES as f64 / self.seen.max(1) as f64
    }

    /// Removes the images that are no longer in the sample.
    fn prune(&mut self) {
        let share = self.share();
        let kept: Vec<usize> = (0..self.hashes.len()).filter(|image| self.hashes[*image] < share).collect();
        let (mut features, mut labels) = (Vec::with_capacity(kept.len() * self.dim), Targets::default());
        for image in &kept {
            features.extend_from_slice(&self.features[image * self.dim..(image + 1) * self.dim]);
            labels.push(self.labels.row(*image));
        }
        self.urls = kept.iter().map(|image| std::mem::take(&mut self.urls[*image])).collect();
        self.hashes = kept.iter().map(|image| self.hashes[*image]).collect();
        (self.features, self.labels) = (features, labels);
    }

    /// Ends the sample. `read_vectors` returns the vectors of classes.
    ///
    /// # Errors
    /// Those of `read_vectors`.
    pub(crate) fn finish(
        mut self,
        read_vectors: impl FnOnce(&[u32]) -> Result<Vec<f32>, PipelineError>,
    ) -> Result<HeldOut, PipelineError> {
        self.prune();
        let Self { features, labels, urls, .. } = self;
        let mut captions = labels.classes().to_vec();
        captions.sort_unstable();
        captions.dedup();
        let mut captions_of = Targets::default();
        for (_, classes) in labels.iter() {
            let places = classes.iter().filter_map(|class| captions.binary_search(class).ok());
            captions_of.push(&places.map(|place| place as u32).collect::<Vec<_>>());
        }
        let vectors = read_vectors(&captions)?;
        Ok(HeldOut { features, captions_of, captions, vectors, urls })
    }
}

impl HeldOutRows for HeldOutSample {
    fn wants(&mut self, chunk: usize, row: usize) -> bool {
        self.seen += 1;
        let hash = hash_to_unit(&[self.seed ^ SELECTION_SEED, chunk as u64, row as u64]);
        let wanted = hash < self.share();
        if wanted {
            self.wanted.push(hash);
        }
        wanted
    }

    fn add(&mut self, rows: &RowMeta, wanted: &[usize], values: &Values) -> Result<(), PipelineError> {
        values.copy_to(0..wanted.len() * self.dim, &mut self.features);
        for row in wanted {
            self.labels.push(rows.labels(*row));
            self.urls.push(rows.url(*row).into());
        }
        self.hashes.append(&mut self.wanted);
        if self.hashes.len() as u64 > 2 * MAX_IMAGES {
            self.prune();
        }
        Ok(())
    }
}

/// Images held out from training, or a sample of them. Only their own captions are ranked for them.
pub(crate) struct HeldOut {
    /// `[images, dim]`.
    pub(crate) features: Vec<f32>,
    /// Right captions of each image, as positions in `captions`.
    pub(crate) captions_of: Targets,
    /// Class of each caption, ascending.
    pub(crate) captions: Vec<u32>,
    /// Vectors of the captions, `[captions, dim]`.
    pub(crate) vectors: Vec<f32>,
    /// URL of each image.
    pub(crate) urls: Vec<Box<str>>,
}

impl HeldOut {
    /// Returns the number of images.
    pub(crate) fn images(&self) -> usize {
        self.captions_of.rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds chunks of `rows` held-out rows whose only value is their number.
    fn collect(into: &mut impl HeldOutRows, chunks: usize, rows: usize) {
        for chunk in 0..chunks {
            let mut row_meta = RowMeta::default();
            for row in 0..rows {
                row_meta.push(&format!("{chunk}/{row}"), 0..(row as u32 % 3));
            }
            let wanted: Vec<usize> = (0..rows).filter(|row| into.wants(chunk, *row)).collect();
            let values = wanted.iter().map(|row| (chunk * rows + row) as f32).collect();
            into.add(&row_meta, &wanted, &Values::F32(values)).unwrap();
        }
    }

    #[test]
    fn rows_beyond_the_limit_are_read_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let read = |memory_bytes| {
            let mut kept = KeptRows::new(1, Precision::F32, memory_bytes, dir.path().to_owned());
            collect(&mut kept, 20, 50);
            let kept = kept.finish(&ByteBudget::new(1 << 20)).unwrap();
            assert_eq!((kept.rows(), kept.labels().row(52)), (1000, &[0, 1][..]));
            (kept.file.is_some(), kept.values.len(), [kept.read(0..1000).unwrap(), kept.read(990..1000).unwrap()])
        };
        let (memory, disk) = (read(1 << 20), read(1000));
        assert_eq!((memory.0, memory.1, disk.0, disk.1), (false, 1000, true, 0));
        assert_eq!((memory.2[0].len(), memory.2[1][0]), (1000, 990.0));
        assert_eq!(memory.2, disk.2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn sample_is_the_one_of_the_whole_count() {
        let (chunks, rows) = (40, 1000);
        let mut sample = HeldOutSample::new(7, 1);
        collect(&mut sample, chunks, rows);
        let share = MAX_IMAGES as f64 / (chunks * rows) as f64;
        let is_in = |number: &usize| {
            hash_to_unit(&[7 ^ SELECTION_SEED, (number / rows) as u64, (number % rows) as u64]) < share
        };
        let expected: Vec<usize> = (0..chunks * rows).filter(is_in).collect();
        let held_out = sample.finish(|captions| Ok(captions.iter().map(|caption| *caption as f32).collect())).unwrap();
        assert_eq!(held_out.features.iter().map(|value| *value as usize).collect::<Vec<_>>(), expected);
        let name = |number: &usize| Box::from(format!("{}/{}", number / rows, number % rows));
        assert_eq!(held_out.urls, expected.iter().map(name).collect::<Vec<Box<str>>>());
        assert_eq!((held_out.captions, held_out.vectors), (vec![0, 1], vec![0.0, 1.0]));
        assert!((3700..4500).contains(&expected.len()), "{}", expected.len());
    }

    #[test]
    fn small_set_is_kept_whole() {
        let mut sample = HeldOutSample::new(7, 1);
        collect(&mut sample, 3, 5);
        assert_eq!(sample.finish(|_| Ok(Vec::new())).unwrap().images(), 15);
    }
}
