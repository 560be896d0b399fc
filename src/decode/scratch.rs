//! Buffers that are reused from image to image, and given back after an unusually large one.

/// A buffer over this many bytes is freed after its image: those of the corpus, 300 pixels wide and up to 580 high, need less.
pub(super) const KEEP_BYTES: usize = 512 << 10;

/// The first `len` bytes, whatever they hold; grows where needed and never shrinks.
pub(super) fn grown(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        // Without the old content, growing does not have to move it.
        buffer.clear();
        buffer.reserve_exact(len);
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Frees a buffer over [`KEEP_BYTES`].
pub(super) fn trim<T>(buffer: &mut Vec<T>) {
    if buffer.capacity().saturating_mul(size_of::<T>()) > KEEP_BYTES {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_to_what_was_asked_and_is_freed_only_when_huge() {
        let mut buffer = Vec::new();
        assert_eq!(grown(&mut buffer, 10).len(), 10);
        assert_eq!(grown(&mut buffer, 5).len(), 5);
        trim(&mut buffer);
        assert_eq!(buffer.len(), 10);
        grown(&mut buffer, KEEP_BYTES + 1);
        trim(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }
}
