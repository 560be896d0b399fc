//! Vectors of captions that another set of the run directory has already, so that a changed list embeds new captions only.

use std::collections::HashMap;

use twox_hash::XxHash3_64;

use super::vector_set::{CHUNK_CAPTIONS, SetWriter};
use crate::catalog::Texts;
use crate::chunk::features::Values;
use crate::chunk::texts;
use crate::pipeline::chunk_files::fetch_files;
use crate::pipeline::error::{PipelineError, chain};
use crate::runtime::Shutdown;
use crate::types::Precision;

/// Other sets are not searched if they hold more than this many times the captions that are wanted: reading them would take
/// longer than embedding.
const MAX_SEARCHED_PER_WANTED: usize = 64;

fn not_reused(error: &dyn std::error::Error) {
    tracing::warn!("vectors of another list of captions are not used again: {}", chain(error));
}

/// Vectors of some captions of a set.
pub(super) struct KnownVectors {
    /// Row of each known caption, by its number.
    rows: HashMap<u32, u32>,
    values: Values,
    dim: usize,
}

impl KnownVectors {
    /// Finds the vectors of the captions of the chunks `missing` in other sets. Keeps at most `limit_bytes` of vectors. A chunk
    /// of another set that cannot be read is left out, since its vectors can be computed again. Blocks the thread.
    ///
    /// # Errors
    /// [`PipelineError::Stopped`] on a shutdown request; or when the run directory cannot be listed.
    pub(super) fn find(
        writer: &SetWriter,
        captions: &Texts,
        missing: &[usize],
        (dim, precision): (usize, Precision),
        limit_bytes: u64,
        shutdown: &Shutdown,
    ) -> Result<Self, PipelineError> {
        let mut known = Self { rows: HashMap::new(), values: Values::new(precision), dim };
        let others = writer.other_chunks()?;
        if others.is_empty() || others.len() > missing.len().saturating_mul(MAX_SEARCHED_PER_WANTED) {
            return Ok(known);
        }
        let hash = |caption: &str| XxHash3_64::oneshot(caption.as_bytes());
        let numbers = missing.iter().flat_map(|chunk| chunk * CHUNK_CAPTIONS..(chunk + 1) * CHUNK_CAPTIONS);
        let numbers = numbers.filter(|number| *number < captions.len()).map(|number| number as u32);
        let mut wanted: HashMap<u64, u32> =
            numbers.filter_map(|number| Some((hash(captions.get(number)?), number))).collect();
        let width = if precision == Precision::Bf16 { 2 } else { 4 };
        let mut free_rows = (limit_bytes as usize) / (width * dim).max(1);
        for fetched in fetch_files(&writer.dir, &others) {
            if let Some(signal) = shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let copy = match fetched {
                Ok((_, copy)) => copy,
                Err(error) => {
                    not_reused(&error);
                    continue;
                }
            };
            let (mut row, mut found) = (0, Vec::new());
            let visit = |caption: &str| {
                let key = hash(caption);
                let number = wanted.get(&key).copied().filter(|number| captions.get(*number) == Some(caption));
                if let Some(number) = number.filter(|_| free_rows > 0) {
                    wanted.remove(&key);
                    free_rows -= 1;
                    found.push((number, row));
                }
                row += 1;
            };
            if let Err(error) = texts::visit_captions(&copy, visit) {
                not_reused(&error);
                continue;
            }
            if found.is_empty() {
                continue;
            }
            let vectors = match texts::read(&copy) {
                Ok(vectors) => vectors,
                Err(error) => {
                    not_reused(&error);
                    continue;
                }
            };
            if vectors.dim != dim || vectors.precision != precision {
                continue;
            }
            let values = Values::F32(vectors.values);
            for (number, row) in found {
                known.rows.insert(number, known.rows.len() as u32);
                known.values.append(&values, row * dim..(row + 1) * dim);
            }
            if wanted.is_empty() || free_rows == 0 {
                break;
            }
        }
        Ok(known)
    }

    /// Returns the number of captions.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether the vector of a caption is known.
    pub(super) fn contains(&self, number: usize) -> bool {
        self.rows.contains_key(&(number as u32))
    }

    /// Returns the vector of a caption, if it is known.
    pub(super) fn read(&self, number: usize) -> Option<Vec<f32>> {
        let row = *self.rows.get(&(number as u32))? as usize;
        let mut vector = Vec::with_capacity(self.dim);
        self.values.copy_to(row * self.dim..(row + 1) * self.dim, &mut vector);
        Some(vector)
    }
}
