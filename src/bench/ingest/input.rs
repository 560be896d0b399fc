//! The first rows of an input, decompressed in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncBufReadExt as _;

use crate::corpus::{ImageColumns, ImageRow, ImageRows, PushParser as _};
use crate::decode::{Decoder, View};
use crate::objects::{Object, ReadStats, Store, explain_read};
use crate::pipeline::error::PipelineError;
use crate::pipeline::feed::FEED_BYTES;
use crate::pipeline::images::Views;

/// Upper bound on the decompressed bytes.
const MAX_BYTES: usize = 128 << 20;
/// Longest row.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;

/// The first rows of a shard.
pub(super) struct FirstRows {
    /// Decompressed bytes.
    pub(super) text: Vec<u8>,
    /// Stored bytes that were read.
    pub(super) stored_bytes: u64,
    /// Time spent waiting for the store.
    pub(super) waited: Duration,
    /// Time of reading and decompressing, without the waits.
    pub(super) decompressing: Duration,
}

/// Reads the first bytes of the first shard of a key.
///
/// # Errors
/// When there is no shard, or it cannot be read.
pub(super) async fn read_first_rows(store: &Store, key: &str, shards: &[Object]) -> Result<FirstRows, PipelineError> {
    let shard = shards.first().ok_or_else(|| PipelineError::Input(format!("`{key}` names no file")))?;
    let stats = Arc::new(ReadStats::default());
    let mut reader = store.open(shard, Arc::clone(&stats)).await?;
    let (mut text, started) = (Vec::new(), Instant::now());
    while text.len() < MAX_BYTES {
        let bytes = reader.fill_buf().await.map_err(|error| explain_read(&shard.url, error))?;
        if bytes.is_empty() {
            break;
        }
        let taken = bytes.len();
        text.extend_from_slice(bytes);
        reader.consume(taken);
    }
    let (waited, took) = (stats.waited(), started.elapsed());
    let decompressing = took.saturating_sub(waited);
    Ok(FirstRows { text, stored_bytes: stats.bytes(), waited, decompressing })
}

/// Calls `process` for each image row with its URL and base64, or with `None` if the row is unusable.
///
/// # Errors
/// When a column of the configuration is missing.
pub(super) fn split_rows(
    (text, columns): (&[u8], &ImageColumns),
    mut process: impl FnMut(Option<(&str, &[u8])>),
) -> Result<(), PipelineError> {
    let mut rows = ImageRows::new("the first shard", columns.clone(), MAX_RECORD_BYTES);
    for block in text.chunks(FEED_BYTES) {
        rows.feed(block);
        while let Some(row) = rows.next()? {
            match row {
                ImageRow::Ok { image_url, image, .. } => process(Some((image_url, image.bytes()))),
                ImageRow::Bad { .. } => process(None),
            }
        }
    }
    Ok(())
}

/// An image to decode.
pub(super) struct Sample {
    pub(super) base64: Vec<u8>,
    pub(super) views: Vec<View>,
}

impl Sample {
    pub(super) fn new(settings: Option<Views>, url: &str, base64: &[u8]) -> Self {
        let mut views = Vec::new();
        Views::list(settings, url, &mut views);
        Self { base64: base64.to_vec(), views }
    }

    /// Decodes the image as a run does, with buffers for base64 and pixels; returns whether it is an image.
    pub(super) fn decode(&self, decoder: &mut Decoder, base64: &mut Vec<u8>, pixels: &mut Vec<u8>) -> bool {
        base64.clear();
        base64.extend_from_slice(&self.base64);
        pixels.resize(self.views.len() * decoder.pixel_bytes(), 0);
        decoder.decode_base64_views(base64, &self.views, pixels, |_| ()).is_ok()
    }
}
