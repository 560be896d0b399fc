//! Random access to caption vectors, in memory or on scratch disk.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use half::bf16;

use super::{VectorSet, resident_limit_bytes};
use crate::objects::StoreError;
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::runtime::BytePermit;
use crate::train::text::{RunningMoments, centre_and_normalise};

/// Name of the file on scratch disk.
const FILE: &str = "captions.vectors";

enum Storage {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
    Bf16File(File),
    F32File(File),
}

/// Vectors of a set of captions, indexed by caption number.
pub(crate) struct VectorStore {
    storage: Storage,
    dim: usize,
    mean: Vec<f32>,
    /// Share of `limits.memory`, if the vectors are in memory.
    _permit: Option<BytePermit>,
}

impl VectorStore {
    /// Reads a set into memory, or onto scratch disk if it takes more than a quarter of `limits.memory`.
    ///
    /// # Errors
    /// When a chunk cannot be read or is damaged, or scratch disk cannot be written.
    pub(crate) async fn open(ctx: &RunContext, set: VectorSet) -> Result<Self, PipelineError> {
        let (memory_bytes, scratch) = (resident_limit_bytes(&ctx.config), ctx.scratch_path());
        let budget = ctx.budget.clone();
        tokio::task::spawn_blocking(move || {
            if set.stored_bytes() <= memory_bytes {
                let permit = Some(budget.acquire_blocking(set.stored_bytes()));
                Ok(Self { _permit: permit, ..Self::read_to_memory(&set)? })
            } else {
                Self::copy_to_disk(&set, &scratch)
            }
        })
        .await?
    }

    fn read_to_memory(set: &VectorSet) -> Result<Self, PipelineError> {
        let mut statistics = RunningMoments::default();
        let (mut halves, mut floats) = (Vec::new(), Vec::new());
        set.visit_chunks(|values| {
            values.chunks_exact(set.dim()).for_each(|row| statistics.add(row));
            if set.is_bf16() {
                // Lossless: the values were bf16 in their chunk.
                halves.extend(values.into_iter().map(bf16::from_f32));
            } else {
                floats.extend_from_slice(&values);
            }
            Ok(())
        })?;
        let storage = if set.is_bf16() { Storage::Bf16(halves) } else { Storage::F32(floats) };
        Ok(Self { storage, dim: set.dim(), mean: statistics.mean(), _permit: None })
    }

    fn copy_to_disk(set: &VectorSet, scratch: &Path) -> Result<Self, PipelineError> {
        let path = scratch.join(FILE);
        let failed = |error| PipelineError::from(StoreError::io(&path, "written", error));
        std::fs::create_dir_all(scratch).map_err(failed)?;
        let mut statistics = RunningMoments::default();
        let mut writer = BufWriter::new(File::create(&path).map_err(failed)?);
        set.visit_chunks(|values| {
            values.chunks_exact(set.dim()).for_each(|row| statistics.add(row));
            for value in values {
                let written = if set.is_bf16() {
                    writer.write_all(&bf16::from_f32(value).to_le_bytes())
                } else {
                    writer.write_all(&value.to_le_bytes())
                };
                written.map_err(failed)?;
            }
            Ok(())
        })?;
        writer.flush().map_err(failed)?;
        let file = File::open(&path).map_err(failed)?;
        // The open file stays readable. The system frees it when the process ends.
        std::fs::remove_file(&path).map_err(failed)?;
        let storage = if set.is_bf16() { Storage::Bf16File(file) } else { Storage::F32File(file) };
        Ok(Self { storage, dim: set.dim(), mean: statistics.mean(), _permit: None })
    }

    /// Returns the mean of all vectors.
    pub(crate) fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Reads vectors of captions by number, as `[numbers, dim]`. Subtracts the mean of all vectors and scales each to
    /// length 1. Blocks the thread.
    ///
    /// # Errors
    /// As [`VectorStore::read`].
    pub(crate) fn read_centred(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let mut vectors = self.read(numbers)?;
        centre_and_normalise(&mut vectors, &self.mean);
        Ok(vectors)
    }

    /// Reads vectors of captions by number, as `[numbers, dim]`. Blocks the thread.
    ///
    /// # Errors
    /// When scratch disk fails, or a number is out of range.
    pub(crate) fn read(&self, numbers: &[u32]) -> Result<Vec<f32>, PipelineError> {
        let dim = self.dim;
        let mut out = Vec::with_capacity(numbers.len() * dim);
        let absent = || PipelineError::Internal("a caption has no vector".to_owned());
        let mut row = vec![0_u8; 4 * dim];
        for number in numbers {
            let span = *number as usize * dim..(*number as usize + 1) * dim;
            match &self.storage {
                Storage::Bf16(values) => {
                    out.extend(values.get(span).ok_or_else(absent)?.iter().map(|value| value.to_f32()));
                }
                Storage::F32(values) => out.extend_from_slice(values.get(span).ok_or_else(absent)?),
                Storage::Bf16File(file) => {
                    let row = &mut row[..2 * dim];
                    read_at(file, row, 2 * span.start)?;
                    out.extend(row.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()));
                }
                Storage::F32File(file) => {
                    read_at(file, &mut row, 4 * span.start)?;
                    out.extend(row.as_chunks().0.iter().map(|quad| f32::from_le_bytes(*quad)));
                }
            }
        }
        Ok(out)
    }
}

fn read_at(file: &File, out: &mut [u8], offset: usize) -> Result<(), PipelineError> {
    let failed = |error| StoreError::io(Path::new(FILE), "read", error).into();
    file.read_exact_at(out, offset as u64).map_err(failed)
}
