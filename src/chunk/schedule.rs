//! Order in which the chunks of a corpus are read, written and committed: the chunks of a few shards are interleaved.
//!
//! One core decompresses one gzipped shard at a time, which feeds about seven decoding cores. Therefore
//! [`INTERLEAVED_SHARDS`] shards are open at once and their readers may read ahead. The order depends only on the
//! number of rows in each shard, never on timing or the machine. Slot `s` of `n` reads the shards `s`, `s + n`, …, one
//! after the other, and the slots alternate chunk by chunk. Of two rows with the same URL, the first one in this order
//! is used.

use super::ChunkId;

/// Number of shards that are read concurrently.
pub const INTERLEAVED_SHARDS: usize = 4;

/// Position in the order of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    shards: u32,
    /// Next chunk of each slot; its shard does not exist once the slot has finished.
    slots: Vec<ChunkId>,
    /// Slot of the next chunk, unless all have finished.
    current: usize,
    /// Number of the next chunk, counted over all slots, including those that have finished.
    number: u64,
}

impl Schedule {
    /// Returns the start of a corpus of `shards` shards.
    pub fn start(shards: u32) -> Self {
        let slots = (0..shards.min(INTERLEAVED_SHARDS as u32)).map(|shard| ChunkId { shard, row: 0 }).collect();
        Self { shards, slots, current: 0, number: 0 }
    }

    /// Returns the id of the next chunk, or `None` after the last one.
    pub fn next(&self) -> Option<ChunkId> {
        self.slots.get(self.current).copied().filter(|at| at.shard < self.shards)
    }

    /// Returns the slot of the next chunk.
    pub fn slot(&self) -> usize {
        self.current
    }

    /// Returns the number of the next chunk. Consecutive chunks of a slot differ by the number of slots.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the next chunk of each slot.
    pub fn slots(&self) -> &[ChunkId] {
        &self.slots
    }

    /// Returns the number of slots that have not finished.
    pub fn unfinished_slots(&self) -> usize {
        self.slots.iter().filter(|at| at.shard < self.shards).count()
    }

    /// Returns whether all rows of a shard are before this position.
    pub fn is_past(&self, shard: u32) -> bool {
        shard < self.shards && self.slots[shard as usize % self.slots.len()].shard > shard
    }

    /// Advances past the next chunk, which has `rows` rows; `last` tells that it is the last of its shard. Nothing
    /// changes at the end of the corpus or if the row number would overflow.
    pub fn advance(&mut self, rows: u64, last: bool) {
        let count = self.slots.len();
        let Some(at) = self.next() else { return };
        let following = if last {
            Some(ChunkId { shard: at.shard.saturating_add(count as u32), row: 0 })
        } else {
            at.row.checked_add(rows).map(|row| ChunkId { row, ..at })
        };
        let Some(following) = following else { return };
        self.slots[self.current] = following;
        for _ in 0..count {
            self.current = (self.current + 1) % count;
            self.number += 1;
            if self.next().is_some() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the chunks of a corpus in order, given the rows of its shards.
    fn chunks(rows: &[u64], chunk_rows: u64) -> Vec<ChunkId> {
        let mut schedule = Schedule::start(rows.len() as u32);
        let mut chunks = Vec::new();
        while let Some(at) = schedule.next() {
            let left = rows[at.shard as usize] - at.row;
            chunks.push(at);
            schedule.advance(left.min(chunk_rows), left <= chunk_rows);
        }
        chunks
    }

    fn id_pairs(chunks: &[ChunkId]) -> Vec<(u32, u64)> {
        chunks.iter().map(|id| (id.shard, id.row)).collect()
    }

    #[test]
    fn shards_are_interleaved_chunk_by_chunk() {
        let order = id_pairs(&chunks(&[25, 5, 10, 5, 15, 5], 10));
        let expected = [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 0), // shard 4 belongs to slot 0, shard 5 to slot 1
            (0, 10),
            (5, 0),
            (0, 20),
            (4, 0),
            (4, 10),
        ];
        assert_eq!(order, expected);
        assert_eq!(id_pairs(&chunks(&[25], 10)), [(0, 0), (0, 10), (0, 20)]);
        assert!(chunks(&[], 10).is_empty());
    }

    proptest! {
        /// Each row is in exactly one chunk, the chunks of a shard are in order, and the number of a chunk follows from
        /// its slot.
        #[test]
        fn every_chunk_has_one_position(rows in proptest::collection::vec(0u64..60, 0..14), chunk_rows in 1u64..20) {
            let order = chunks(&rows, chunk_rows);
            for (shard, rows) in rows.iter().enumerate() {
                let own: Vec<u64> = order.iter().filter(|id| id.shard as usize == shard).map(|id| id.row).collect();
                let expected: Vec<u64> = (0..rows.div_ceil(chunk_rows).max(1)).map(|chunk| chunk * chunk_rows).collect();
                prop_assert_eq!(own, expected);
            }
            let mut schedule = Schedule::start(rows.len() as u32);
            let mut visits = [0; INTERLEAVED_SHARDS];
            while let Some(at) = schedule.next() {
                let (slot, slots) = (schedule.slot(), schedule.slots().len());
                prop_assert_eq!(schedule.number(), (visits[slot] * slots + slot) as u64);
                visits[slot] += 1;
                let left = rows[at.shard as usize] - at.row;
                prop_assert!(!schedule.is_past(at.shard) && schedule.unfinished_slots() > 0);
                schedule.advance(left.min(chunk_rows), left <= chunk_rows);
                prop_assert_eq!(schedule.is_past(at.shard), left <= chunk_rows);
            }
            prop_assert_eq!(schedule.unfinished_slots(), 0);
        }
    }
}
