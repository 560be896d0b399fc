//! Memory that a device takes bytes from as they lie.

use std::fmt;
use std::io::Result;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::runtime::Reusable;

/// What a huge page's address is a multiple of, on x86 and with small pages of 4 KiB on ARM.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Bytes from which on a buffer is in huge pages: below, most of one would lie idle.
const HUGE_FROM_BYTES: usize = HUGE_PAGE_BYTES / 2;

/// Whole pages of memory; the bytes are 0 at first, and cost nothing before they are touched.
pub(super) struct Pages {
    memory: MmapMut,
    /// Where in the memory they begin.
    pub(super) start: usize,
    bytes: usize,
}

impl Pages {
    /// Starts at a huge page's address, and is made of huge pages where the system has them: a device is told of each stretch of memory
    /// by itself, and 2 MiB are one of those or 512.
    pub(super) fn huge(bytes: usize) -> Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let memory = MmapMut::map_anon(bytes + HUGE_PAGE_BYTES)?;
        // Advice: without them it works too.
        #[cfg(target_os = "linux")]
        memory.advise(memmap2::Advice::HugePage).ok();
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        Ok(Self { memory, start, bytes })
    }

    /// For few bytes: the first touch of a huge page clears all of it.
    pub(super) fn small(bytes: usize) -> Result<Self> {
        Ok(Self { memory: MmapMut::map_anon(bytes)?, start: 0, bytes })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}

/// A buffer of bytes that, where they are many, lie in huge pages from the first on: what a
/// [`SequentialWriter`](super::SequentialWriter) has the device take without gathering it.
#[derive(Default)]
pub struct PageBuffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Heap(Vec<u8>),
    Huge(Pages),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Heap(Vec::new())
    }
}

impl PageBuffer {
    /// Makes it `len` bytes long. Whatever it held before is in it, or nothing but 0.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            // Without such memory the heap's serves.
            let huge = if len < HUGE_FROM_BYTES { None } else { Pages::huge(len).ok() };
            self.memory = huge.map_or_else(|| Memory::Heap(vec![0; len]), Memory::Huge);
        }
        self.len = len;
    }

    /// Leaves out what is behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Reusable for PageBuffer {
    fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Heap(bytes) => bytes.len(),
            Memory::Huge(pages) => pages.len(),
        }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(bytes) => &bytes[..self.len],
            Memory::Huge(pages) => &pages[..self.len],
        }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(bytes) => &mut bytes[..self.len],
            Memory::Huge(pages) => &mut pages[..self.len],
        }
    }
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PageBuffer of {} bytes", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_wherever_it_lies() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.is_empty());
        for len in [3, HUGE_FROM_BYTES - 1, HUGE_FROM_BYTES, HUGE_PAGE_BYTES + 1, 5] {
            buffer.resize(len);
            assert_eq!(buffer.len(), len);
            buffer[len - 1] = 7;
        }
        assert_eq!(buffer.capacity(), 2 * HUGE_PAGE_BYTES);
        assert_eq!(buffer.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        buffer.truncate(9);
        assert_eq!(buffer.len(), 5);
        buffer.truncate(2);
        assert_eq!(buffer.len(), 2);
    }
}
