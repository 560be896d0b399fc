//! Memory and disk that a run takes, in bytes.

/// Upper bound on the file of a pixel chunk on scratch disk, in bytes: the pixels, and 1 KiB per row for URL, labels and
/// the format's overhead.
///
/// The row reader's limits exclude longer URLs, and the spool checks the real size as well.
pub fn chunk_disk_bytes(rows: u32, size_px: u32) -> u64 {
    let pixels = 3 * u64::from(size_px) * u64::from(size_px);
    u64::from(rows) * (pixels + 1024) + (1 << 20)
}

/// Upper bound on a quarantined row: its URL, reason and message.
pub const QUARANTINED_BYTES: u64 = 2560;

/// Upper bound on the random crops of an image. A block of rows has room for all crops of one image.
pub(super) const MAX_VIEWS: u32 = 32;

/// Upper bound on the images of a block, which are decoded and written together: all views of one image, or
/// [`block_images`].
pub const BLOCK_IMAGES: usize = MAX_VIEWS as usize;

/// Upper bound on the pixels of a block of several images. Smaller blocks cost more hand-overs between threads and more
/// writes; larger ones are no faster.
const BLOCK_PIXEL_BYTES: u64 = 4 << 20;

/// Returns the number of images in a block, views counted, where an image has `image_bytes` bytes of pixels.
pub fn block_images(image_bytes: u64) -> usize {
    (BLOCK_PIXEL_BYTES / image_bytes.max(1)).clamp(1, BLOCK_IMAGES as u64) as usize
}

/// Memory that the stages of a stream hold, in bytes. All of it counts towards `limits.memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBytes {
    /// Reader, for as long as it runs: ranges of the open objects, unpacked text, and the row in progress.
    pub reader: u64,
    /// Decoders: the image that takes most, shared by all of them, and the buffers that each keeps.
    pub decoders: u64,
    /// Writer: a row group of the chunk with its pages or its disk buffer, and the chunk's quarantined rows.
    pub writer: u64,
    /// Model: a page of the chunk, and the batches that are read, computed or waiting.
    pub model: u64,
    /// The largest block of rows: base64 text and pixels.
    pub block: u64,
    /// The base64 text of the largest block.
    pub text: u64,
    /// Pixels, or values, of one image.
    pub pixels: u64,
}

impl StreamBytes {
    /// Computes the memory for squares of side `size_px`, encoded images of at most `max_encoded_bytes`, decoders that take
    /// `decoders` bytes together, and chunks of `chunk_rows` rows.
    pub fn new(size_px: u32, max_encoded_bytes: u64, decoders: u64, chunk_rows: u64) -> Self {
        let pixels = 3 * u64::from(size_px) * u64::from(size_px);
        // The largest image as base64 text, with its URLs.
        let record = (max_encoded_bytes / 3).saturating_mul(4).saturating_add(64 << 10);
        Self {
            reader: record.saturating_mul(2).saturating_add(16 << 20),
            decoders,
            // Quarantined rows of the current chunk, and of the previous one, which is being committed.
            writer: pixels.max(24 << 20) + chunk_rows.saturating_mul(2 * QUARANTINED_BYTES),
            model: 128 * pixels,
            // A block is closed by the row with which it reaches 4 MiB.
            block: record.saturating_add(4 << 20).saturating_add(BLOCK_IMAGES as u64 * pixels),
            text: record.saturating_add(4 << 20),
            pixels,
        }
    }

    /// Computes the memory for features of `dim` values, each read from a text of at most `record` bytes, and chunks of
    /// `chunk_rows` rows.
    pub fn of_numbers(dim: u32, record: u64, chunk_rows: u64) -> Self {
        let values = 4 * u64::from(dim);
        let block = BLOCK_IMAGES as u64 * values;
        Self {
            reader: record.saturating_mul(2).saturating_add(16 << 20),
            decoders: 0,
            // A row group of features, and the values of the block that is added to it.
            writer: (24 << 20) + block + chunk_rows.saturating_mul(2 * QUARANTINED_BYTES),
            model: 0,
            block: record.saturating_add(4 << 20).saturating_add(block),
            text: record.saturating_add(4 << 20),
            pixels: values,
        }
    }

    /// Returns the bytes of a full block of images that take `text` bytes of base64 each.
    pub fn usual_block(self, text: u64) -> u64 {
        let images = block_images(self.pixels) as u64;
        images * (text + self.pixels)
    }

    /// Returns the part of `limits.memory` that the other stages leave to the model.
    pub fn left_for_model(self, memory: u64) -> u64 {
        memory.saturating_sub(self.floor().saturating_sub(self.model))
    }

    /// Returns the smallest `limits.memory` that works: what each stage needs, and one block.
    pub fn floor(self) -> u64 {
        [self.reader, self.decoders, self.writer, self.model, self.block].into_iter().fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_holds_at_most_its_pixel_bytes() {
        for size_px in [1_u64, 32, 208, 209, 224, 384, 512, 1182, 1183, 4096] {
            let image = 3 * size_px * size_px;
            let images = block_images(image);
            assert!((1..=BLOCK_IMAGES).contains(&images), "{size_px} px");
            assert!(images == 1 || images as u64 * image <= BLOCK_PIXEL_BYTES, "{size_px} px");
            assert!(images == BLOCK_IMAGES || (images as u64 + 1) * image > BLOCK_PIXEL_BYTES, "{size_px} px");
        }
    }
}
