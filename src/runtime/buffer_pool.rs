//! Pool of large byte buffers.
//!
//! A buffer that one thread allocates and another frees costs page faults for every item, and the allocator keeps the
//! freed holes. A stage has few items in flight, so a few pooled buffers serve all of them.

use std::borrow::{Borrow, BorrowMut};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers for one kind of item; clones share them.
#[derive(Debug, Clone)]
pub struct BufferPool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    max_idle: usize,
    max_buffer_bytes: usize,
}

impl BufferPool {
    /// Creates a pool that keeps at most `max_idle` buffers of at most `max_buffer_bytes` each.
    pub fn new(max_idle: usize, max_buffer_bytes: usize) -> Self {
        Self { idle: Arc::default(), max_idle, max_buffer_bytes }
    }

    /// Returns a buffer with its earlier content, or an empty one.
    pub fn acquire(&self) -> Vec<u8> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Returns a buffer of `len` bytes: its earlier content, then zeros.
    pub fn acquire_sized(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.acquire();
        if buffer.capacity() < len {
            // The system hands out zeroed pages; extending a buffer would write the zeros.
            return vec![0; len];
        }
        buffer.resize(len, 0);
        buffer
    }

    /// Returns a buffer that goes back to the pool when it is dropped.
    pub fn acquire_pooled(&self) -> PooledBuffer {
        PooledBuffer { buffer: self.acquire(), pool: self.clone() }
    }

    /// Puts a buffer back into the pool; frees it where the pool is full or the buffer too large.
    pub fn release(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle && (1..=self.max_buffer_bytes).contains(&buffer.capacity()) {
            idle.push(buffer);
        }
    }
}

/// Buffer of a [`BufferPool`] in use, with its earlier content; dropping it puts it back.
#[derive(Debug)]
pub struct PooledBuffer {
    buffer: Vec<u8>,
    pool: BufferPool,
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
        self.pool.release(mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_keeps_few_buffers_of_usual_size() {
        let pool = BufferPool::new(2, 100);
        for bytes in [0, 200, 50, 60, 70] {
            pool.release(Vec::with_capacity(bytes));
        }
        let kept: Vec<usize> = (0..3).map(|_| pool.acquire().capacity()).collect();
        assert_eq!(kept, [60, 50, 0]);
    }

    #[test]
    fn sized_buffer_has_its_length_whatever_was_there() {
        let pool = BufferPool::new(1, 100);
        for (capacity, len) in [(0, 7), (50, 7), (50, 60), (50, 0)] {
            let mut earlier = Vec::with_capacity(capacity);
            earlier.resize(capacity.min(20), 1);
            pool.release(earlier);
            assert_eq!(pool.acquire_sized(len).len(), len, "{capacity} bytes before");
        }
    }

    #[test]
    fn pooled_buffer_returns_when_dropped() {
        let pool = BufferPool::new(1, 100);
        let mut pooled = pool.acquire_pooled();
        BorrowMut::<Vec<u8>>::borrow_mut(&mut pooled).extend([1; 70]);
        assert_eq!((pooled.as_ref().len(), pool.acquire().capacity()), (70, 0));
        let shared = bytes::Bytes::from_owner(pooled);
        drop(shared.clone());
        assert_eq!(pool.acquire().capacity(), 0);
        drop(shared);
        assert!(pool.acquire().capacity() >= 70);
    }
}
