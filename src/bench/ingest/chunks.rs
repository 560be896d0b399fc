//! Benchmark of writing and reading pixel chunks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::chunk::RowMeta;
use crate::chunk::pixels::{PixelReader, PixelWriter};
use crate::config::RunConfig;
use crate::config::bytes::{block_images, chunk_disk_bytes};
use crate::decode::ImageSpec;
use crate::objects::StoreError;
use crate::pipeline::context::scratch_path;
use crate::pipeline::error::PipelineError;
use crate::types::Compression;

/// Upper bound on the pixels that are written to scratch disk.
const MAX_BYTES: u64 = 256 << 20;

/// A file or folder on scratch disk. Drop removes it, along with the parent folders created for it.
pub(super) struct TemporaryPath {
    pub(super) path: PathBuf,
    created: Vec<PathBuf>,
}

impl TemporaryPath {
    pub(super) fn new(config: &RunConfig, extension: &str) -> Result<Self, StoreError> {
        let folder = scratch_path(config);
        let created = folder.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
        std::fs::create_dir_all(&folder).map_err(|error| StoreError::io(&folder, "created", error))?;
        Ok(Self { path: folder.join(format!("bench-{}.{extension}", std::process::id())), created })
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).or_else(|_| std::fs::remove_dir_all(&self.path)).ok();
        for folder in &self.created {
            // Fails, as intended, if a run has put something into the folder meanwhile.
            std::fs::remove_dir(folder).ok();
        }
    }
}

/// Measures the time to write `images` images to a chunk and, if a model reads chunks, the time to read them.
///
/// Fewer images are written if the limits leave no room; the time is then scaled. All I/O goes through the page cache,
/// so the time is that of the processor, not of the disk.
pub(super) fn measure_chunk(
    config: &RunConfig,
    spec: &ImageSpec,
    pixels: &[u8],
    images: usize,
) -> Result<(Duration, Option<Duration>), PipelineError> {
    let file = TemporaryPath::new(config, "parquet")?;
    let path = &file.path;
    let block_rows = block_images(pixels.len() as u64);
    let block_bytes = chunk_disk_bytes(block_rows as u32, spec.geometry.output_px());
    let room = config.limits().disk.0.min(MAX_BYTES) / block_bytes;
    let blocks = images.div_ceil(block_rows).min(room.max(1) as usize);
    let is_consumed = config.model().is_some();
    let compression = if is_consumed { Compression::None } else { config.chunks().compression };
    let mut rows = RowMeta::default();
    (0..block_rows).for_each(|row| rows.push(&format!("https://example.org/{row}.jpg"), [row as u32]));
    let mut pixels = pixels.repeat(block_rows);
    let started = Instant::now();
    let mut writer = PixelWriter::create(path, spec.geometry.output_px(), compression, "bench")?;
    for _ in 0..blocks {
        writer.write(&rows, &pixels)?;
    }
    writer.finish()?;
    let scale = images as f64 / (blocks * block_rows) as f64;
    let writing = started.elapsed().mul_f64(scale);
    if !is_consumed {
        return Ok((writing, None));
    }
    let started = Instant::now();
    let mut reader = PixelReader::open(path, 128)?;
    while reader.next_batch(&mut pixels)?.is_some() {}
    let reading = started.elapsed().mul_f64(scale);
    Ok((writing, Some(reading)))
}
