//! Limits that depend on the model's input size, which is known once the checkpoint is read.

use super::bytes::{StreamBytes, chunk_disk_bytes};
use super::{Problem, RunConfig};

impl RunConfig {
    /// Compares `limits.disk` and `limits.memory` with the least that the stages need.
    ///
    /// `size_px` is the side of the input square. Two chunks must fit on the scratch disk, since one is written while
    /// another is read. The memory must hold what each stage needs for itself, and one block of rows.
    pub fn check_bounds(&self, size_px: u32, bytes: StreamBytes) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.published_dim().is_some() {
            problems.extend(self.check_memory_of_numbers(bytes));
            return problems;
        }
        let (limits, preprocess, rows) = (self.limits(), self.preprocess(), self.chunks().rows);
        let chunk = chunk_disk_bytes(self.chunk_images(), size_px);
        if self.model().is_some() && limits.disk.0 < 2 * chunk {
            problems.push(Problem::new(
                "limits.disk",
                format!(
                    "`{}` is less than the {} that two chunks of {rows} rows at {size_px} px take: raise it, or lower `chunks.rows`",
                    limits.disk,
                    bytesize::ByteSize(2 * chunk)
                ),
            ));
        }
        let floor = bytes.floor();
        if limits.memory.0 < floor {
            let stage_needs = format!(
                "is less than the {} ({floor} bytes) that one block of rows at {size_px} px needs, {} of it for decoding",
                bytesize::ByteSize(floor),
                bytesize::ByteSize(bytes.decoders),
            );
            let preprocessing = format!(
                "lower `preprocess.max_encoded` (`{}`) or `preprocess.max_pixels` (`{}`)",
                preprocess.max_encoded, preprocess.max_pixels
            );
            let what = match limits.available.filter(|_| limits.memory_is_auto) {
                Some(available) => format!(
                    "`auto` gives {}, because {available}: that {stage_needs}; provide more memory, or {preprocessing}",
                    limits.memory
                ),
                None => format!("`{}` {stage_needs}: raise it, or {preprocessing}", limits.memory),
            };
            problems.push(Problem::new("limits.memory", what));
        }
        problems
    }

    /// Refuses a `limits.memory` below what published features need.
    fn check_memory_of_numbers(&self, bytes: StreamBytes) -> Option<Problem> {
        let (limits, floor) = (self.limits(), bytes.floor());
        (limits.memory.0 < floor).then(|| {
            Problem::new(
                "limits.memory",
                format!(
                    "`{}` is less than the {} ({floor} bytes) that reading published features needs: raise it, or lower `chunks.rows`",
                    limits.memory,
                    bytesize::ByteSize(floor)
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MachineFile, PipelineFile};

    #[test]
    fn disk_limit_below_two_chunks_is_refused() {
        let pipeline =
            PipelineFile::parse("[run]\ndir='r'\n[images]\nshards=['i']\n[model]\ncheckpoint='m'\n").unwrap();
        let machine = MachineFile::parse("[limits]\ndisk = '512 MiB'\n").unwrap();
        let config = RunConfig::check(pipeline, &machine).unwrap();
        let bytes = StreamBytes::new(224, 32 << 20, 256 << 20, 2048);
        assert!(config.check_bounds(224, bytes)[0].to_string().contains("`limits.disk`"));
        assert!(config.check_bounds(64, bytes).is_empty());
    }
}
