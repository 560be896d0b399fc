//! Large buffers that were used and wait to be used again.
//!
//! What a stage allocates for each item and frees on another thread costs page faults every time, and the system's allocator
//! keeps the holes. A link has few items, so few buffers are enough for all of them.

use std::borrow::{Borrow, BorrowMut};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// What [`BufferPool`] keeps.
pub trait Reusable: Default {
    /// Bytes of memory that it has.
    fn capacity(&self) -> usize;
}

impl Reusable for Vec<u8> {
    fn capacity(&self) -> usize {
        self.capacity()
    }
}

/// Buffers for one kind of item; clones share them.
#[derive(Debug)]
pub struct BufferPool<B = Vec<u8>> {
    idle: Arc<Mutex<Vec<B>>>,
    most: usize,
    largest_bytes: usize,
}

impl<B> Clone for BufferPool<B> {
    fn clone(&self) -> Self {
        Self { idle: Arc::clone(&self.idle), ..*self }
    }
}

impl<B: Reusable> BufferPool<B> {
    /// Keeps at most `most` buffers, none of which is larger than `largest_bytes`.
    pub fn new(most: usize, largest_bytes: usize) -> Self {
        Self { idle: Arc::default(), most, largest_bytes }
    }

    /// A buffer with whatever it held before, or a new one.
    pub fn take(&self) -> B {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, buffer: B) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most && (1..=self.largest_bytes).contains(&buffer.capacity()) {
            idle.push(buffer);
        }
    }
}

impl BufferPool {
    /// A buffer that comes back by itself, wherever it is dropped.
    pub fn lend(&self) -> PooledBuffer {
        PooledBuffer { buffer: self.take(), home: self.clone() }
    }
}

/// A buffer of [`BufferPool`] that is in use, with whatever it held before.
#[derive(Debug)]
pub struct PooledBuffer {
    buffer: Vec<u8>,
    home: BufferPool,
}

impl Borrow<Vec<u8>> for PooledBuffer {
    fn borrow(&self) -> &Vec<u8> {
        &self.buffer
    }
}

impl BorrowMut<Vec<u8>> for PooledBuffer {
    fn borrow_mut(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.home.give(mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buffers_of_a_usual_size_are_kept() {
        let spares = BufferPool::new(2, 100);
        for bytes in [0, 200, 50, 60, 70] {
            spares.give(Vec::with_capacity(bytes));
        }
        let kept: Vec<usize> = (0..3).map(|_| spares.take().capacity()).collect();
        assert_eq!(kept, [60, 50, 0]);
    }

    #[test]
    fn a_buffer_that_was_lent_comes_back_when_it_is_dropped() {
        let spares = BufferPool::new(1, 100);
        let mut lent = spares.lend();
        BorrowMut::<Vec<u8>>::borrow_mut(&mut lent).extend([1; 70]);
        assert_eq!((lent.as_ref().len(), spares.take().capacity()), (70, 0));
        let shared = bytes::Bytes::from_owner(lent);
        drop(shared.clone());
        assert_eq!(spares.take().capacity(), 0);
        drop(shared);
        assert!(spares.take().capacity() >= 70);
    }
}
