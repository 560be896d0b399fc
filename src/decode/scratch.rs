//! Buffers that are reused from image to image, and given back after an unusually large one.

/// What a decoder's buffers may hold together from image to image: those of the corpus, 300 pixels wide, need less.
pub(super) const KEEP_BYTES: usize = 5 << 19;

/// Where they hold more, each over this many bytes is freed; there are a dozen at most.
const LARGE_BYTES: usize = KEEP_BYTES / 12;

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

/// As [`grown`], where the first `count` bytes are those that began at `from`.
pub(super) fn kept(buffer: &mut Vec<u8>, len: usize, from: usize, count: usize) -> &mut [u8] {
    buffer.copy_within(from..from + count, 0);
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Bytes that a buffer holds.
pub(super) fn held<T>(buffer: &Vec<T>) -> usize {
    buffer.capacity().saturating_mul(size_of::<T>())
}

/// Frees a buffer over [`LARGE_BYTES`].
pub(super) fn trim<T>(buffer: &mut Vec<T>) {
    if held(buffer) > LARGE_BYTES {
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
        grown(&mut buffer, LARGE_BYTES + 1);
        trim(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }
}
