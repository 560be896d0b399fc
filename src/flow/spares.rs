//! Large buffers that were used and wait to be used again.
//!
//! What a stage allocates for each item and frees on another thread costs page faults every time, and the system's allocator
//! keeps the holes. A link has few items, so few buffers are enough for all of them.

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers for one kind of item; clones share them.
#[derive(Debug, Clone)]
pub struct Spares {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
    largest_bytes: usize,
}

impl Spares {
    /// Keeps at most `most` buffers, none of which is larger than `largest_bytes`.
    pub fn new(most: usize, largest_bytes: usize) -> Self {
        Self { idle: Arc::default(), most, largest_bytes }
    }

    /// A buffer with whatever it held before, or a new one.
    pub fn take(&self) -> Vec<u8> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most && (1..=self.largest_bytes).contains(&buffer.capacity()) {
            idle.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buffers_of_a_usual_size_are_kept() {
        let spares = Spares::new(2, 100);
        for bytes in [0, 200, 50, 60, 70] {
            spares.give(Vec::with_capacity(bytes));
        }
        let kept: Vec<usize> = (0..3).map(|_| spares.take().capacity()).collect();
        assert_eq!(kept, [60, 50, 0]);
    }
}
