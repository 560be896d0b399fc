//! What the work takes of memory and of disk, in bytes.

/// Upper bound of a pixel chunk's file that passes through scratch disk, in bytes: pixels, and 1 KiB a row for URL, labels and the
/// format's own.
///
/// URLs beyond that are cut out of the corpus by the row reader's limits; the ring checks the real size too.
pub fn chunk_disk_bytes(rows: u32, size_px: u32) -> u64 {
    let pixels = 3 * u64::from(size_px) * u64::from(size_px);
    u64::from(rows) * (pixels + 1024) + (1 << 20)
}

/// Upper bound of one that is the product, where up to 64 KiB of nothing may lie before each MiB of pixels.
pub fn product_disk_bytes(rows: u32, size_px: u32) -> u64 {
    chunk_disk_bytes(rows, size_px) + u64::from(rows) * 3 * u64::from(size_px) * u64::from(size_px) / 16
}

/// A quarantined row, at most: its URL, reason and sentence.
pub const QUARANTINED_BYTES: u64 = 2560;

/// Random parts that may be made of an image: a block of rows has room for so many.
pub(super) const MAX_VIEWS: u32 = 32;

/// Images of a block, which are decoded and written together, at most: all views of one image, or as many as [`block_images`]
/// says.
pub const BLOCK_IMAGES: usize = MAX_VIEWS as usize;

/// Images of `image_bytes` bytes of pixels that a block has, views counted: those that two huge pages have room for. Fewer
/// are more handing on between threads and more writes; with more a run is no faster.
pub fn block_images(image_bytes: u64) -> usize {
    ((4 << 20) / image_bytes.max(1)).clamp(1, BLOCK_IMAGES as u64) as usize
}

/// What a block's pixels take in memory, in bytes: where they are many, they lie in huge pages.
pub fn in_pages(bytes: u64) -> u64 {
    if bytes < 1 << 20 { bytes } else { bytes.next_multiple_of(2 << 20) }
}

/// What the stages of a stream hold in memory, in bytes. All of it is taken from `limits.memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBytes {
    /// The reader's own for as long as it runs: ranges of the open objects, what is unpacked, and the row that is being put together.
    pub reader: u64,
    /// The decoders' own: the image that takes most, shared by all, and what each keeps.
    pub decoders: u64,
    /// The writer's own: a row group of the chunk and its pages or what it hands to the disk at once, and the chunk's quarantined rows.
    pub writer: u64,
    /// The model's own: a page of the chunk, and batches being read, computed and waiting.
    pub model: u64,
    /// The largest block of rows: the base64 of what a job decodes, and its pixels.
    pub block: u64,
    /// The base64 in it.
    pub text: u64,
    /// An image's pixels.
    pub pixels: u64,
}

impl StreamBytes {
    /// For images of a side of `size_px` pixels, encoded in at most `max_encoded_bytes`, which `decoders` bytes are enough
    /// to decode, in chunks of `chunk_rows`.
    pub fn new(size_px: u32, max_encoded_bytes: u64, decoders: u64, chunk_rows: u64) -> Self {
        let pixels = 3 * u64::from(size_px) * u64::from(size_px);
        // As text, with its URLs.
        let record = (max_encoded_bytes / 3).saturating_mul(4).saturating_add(64 << 10);
        Self {
            reader: record.saturating_mul(2).saturating_add(16 << 20),
            decoders,
            // Of the chunk in hand, and of the one that is being committed meanwhile.
            writer: pixels.max(24 << 20) + chunk_rows.saturating_mul(2 * QUARANTINED_BYTES),
            model: 128 * pixels,
            // A block is closed by the row with which it reaches 4 MiB.
            block: record.saturating_add(4 << 20).saturating_add(in_pages(BLOCK_IMAGES as u64 * pixels)),
            text: record.saturating_add(4 << 20),
            pixels,
        }
    }

    /// A block of images that take `text` bytes each.
    pub fn usual_block(self, text: u64) -> u64 {
        let images = block_images(self.pixels) as u64;
        images * text + in_pages(images * self.pixels)
    }

    /// What `limits.memory` leaves to the model.
    pub fn left_for_model(self, memory: u64) -> u64 {
        memory.saturating_sub(self.floor().saturating_sub(self.model))
    }

    /// Least `limits.memory`: each stage's own, and one block.
    pub fn floor(self) -> u64 {
        [self.reader, self.decoders, self.writer, self.model, self.block].into_iter().fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fills_two_huge_pages_and_no_third() {
        for size_px in [1_u64, 32, 208, 209, 224, 384, 512, 1182, 1183, 4096] {
            let image = 3 * size_px * size_px;
            let images = block_images(image);
            assert!((1..=BLOCK_IMAGES).contains(&images), "{size_px} px");
            assert!(images == 1 || in_pages(images as u64 * image) <= 4 << 20, "{size_px} px");
            assert!(images == BLOCK_IMAGES || (images as u64 + 1) * image > 4 << 20, "{size_px} px");
        }
    }
}
