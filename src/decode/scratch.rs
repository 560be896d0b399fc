//! Buffers that are reused from image to image, and freed after an unusually large one.

/// Upper bound on the bytes that a decoder's buffers retain between images; those of a corpus of images 300 pixels wide need
/// less.
pub(super) const RETAINED_BYTES: usize = 5 << 19;

/// Size over which a buffer is freed when all of them exceed [`RETAINED_BYTES`]; a decoder has a dozen buffers at most.
const LARGE_BYTES: usize = RETAINED_BYTES / 12;

/// Returns the first `len` bytes, with any content. Grows the buffer where needed and never shrinks it.
pub(super) fn grow(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        // Without the old content, growing does not have to move it.
        buffer.clear();
        buffer.reserve_exact(len);
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Moves the `count` bytes from `from` on to the start and returns the first `len` bytes. Grows the buffer where needed.
pub(super) fn shift_and_grow(buffer: &mut Vec<u8>, from: usize, count: usize, len: usize) -> &mut [u8] {
    buffer.copy_within(from..from + count, 0);
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Bytes that a buffer occupies.
pub(super) fn retained_bytes<T>(buffer: &Vec<T>) -> usize {
    buffer.capacity().saturating_mul(size_of::<T>())
}

/// Frees a buffer over [`LARGE_BYTES`].
pub(super) fn free_if_large<T>(buffer: &mut Vec<T>) {
    if retained_bytes(buffer) > LARGE_BYTES {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_is_freed_only_when_large() {
        let mut buffer = Vec::new();
        assert_eq!(grow(&mut buffer, 10).len(), 10);
        assert_eq!(grow(&mut buffer, 5).len(), 5);
        free_if_large(&mut buffer);
        assert_eq!(buffer.len(), 10);
        grow(&mut buffer, LARGE_BYTES + 1);
        free_if_large(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn shifted_bytes_survive_growing() {
        let mut buffer = vec![1, 2, 3, 4];
        assert_eq!(shift_and_grow(&mut buffer, 2, 2, 6), [3, 4, 3, 4, 0, 0]);
    }
}
