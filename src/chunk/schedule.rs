//! In which order the chunks of a corpus are read, written and committed: a chunk of each of a few shards in turn.
//!
//! A gzipped shard is unpacked by one core at a time, which is enough for about seven that decode. So [`LANES`] shards are open at once, and
//! their readers may work side by side, each ahead of its turn. The order is a function of the shards' rows alone and never of
//! timing or of the machine: lane `l` has the shards `l`, `l + LANES`, …, one after the other, and the lanes take turns by chunks. Of two
//! rows with one URL the first in this order is used.

use super::ChunkId;

/// Shards that are read side by side.
pub const LANES: usize = 4;

/// A place in the order of chunks: what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    shards: u32,
    /// Where each lane goes on; behind the last shard, it has ended.
    lanes: Vec<ChunkId>,
    /// The lane whose turn it is, if any has not ended.
    turn: usize,
    /// Turns taken or passed over.
    number: u64,
}

impl Schedule {
    /// The start of a corpus of so many shards.
    pub fn start(shards: u32) -> Self {
        let lanes = (0..shards.min(LANES as u32)).map(|shard| ChunkId { shard, row: 0 }).collect();
        Self { shards, lanes, turn: 0, number: 0 }
    }

    /// Where the next chunk starts; `None` once all shards have ended.
    pub fn next(&self) -> Option<ChunkId> {
        self.lanes.get(self.turn).copied().filter(|at| at.shard < self.shards)
    }

    /// The lane of the next chunk.
    pub fn lane(&self) -> usize {
        self.turn
    }

    /// The number of the next chunk: a lane's is [`LANES`], or as many as there are lanes, more than that of its chunk before.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where each lane goes on.
    pub fn lanes(&self) -> &[ChunkId] {
        &self.lanes
    }

    /// Lanes that have not ended.
    pub fn live(&self) -> usize {
        self.lanes.iter().filter(|at| at.shard < self.shards).count()
    }

    /// Whether the rows of a shard are all behind this place.
    pub fn is_past(&self, shard: u32) -> bool {
        shard < self.shards && self.lanes[shard as usize % self.lanes.len()].shard > shard
    }

    /// Goes on behind the next chunk, which has so many rows; `last`: its shard ends with it. Behind the end nothing changes, and
    /// neither does it for a number of rows that no corpus has.
    pub fn advance(&mut self, rows: u64, last: bool) {
        let count = self.lanes.len();
        let Some(at) = self.next() else { return };
        let behind = if last {
            Some(ChunkId { shard: at.shard.saturating_add(count as u32), row: 0 })
        } else {
            at.row.checked_add(rows).map(|row| ChunkId { row, ..at })
        };
        let Some(behind) = behind else { return };
        self.lanes[self.turn] = behind;
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
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

    /// The chunks of a corpus in order, by the rows of its shards.
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

    fn text(chunks: &[ChunkId]) -> Vec<(u32, u64)> {
        chunks.iter().map(|id| (id.shard, id.row)).collect()
    }

    #[test]
    fn shards_take_turns_by_chunks_and_the_next_shard_of_a_lane_follows_its_last() {
        let order = text(&chunks(&[25, 5, 10, 5, 15, 5], 10));
        let expected = [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 0), // the fifth shard is the first lane's, the sixth the second's
            (0, 10),
            (5, 0),
            (0, 20),
            (4, 0),
            (4, 10),
        ];
        assert_eq!(order, expected);
        assert_eq!(text(&chunks(&[25], 10)), [(0, 0), (0, 10), (0, 20)]);
        assert!(chunks(&[], 10).is_empty());
    }

    proptest! {
        /// Every row is in one chunk, those of a shard are in order, and where a lane's chunk stands says only how often it had its turn.
        #[test]
        fn every_chunk_has_one_place(rows in proptest::collection::vec(0u64..60, 0..14), chunk_rows in 1u64..20) {
            let order = chunks(&rows, chunk_rows);
            for (shard, rows) in rows.iter().enumerate() {
                let own: Vec<u64> = order.iter().filter(|id| id.shard as usize == shard).map(|id| id.row).collect();
                let expected: Vec<u64> = (0..rows.div_ceil(chunk_rows).max(1)).map(|chunk| chunk * chunk_rows).collect();
                prop_assert_eq!(own, expected);
            }
            let mut schedule = Schedule::start(rows.len() as u32);
            let mut turns = [0; LANES];
            while let Some(at) = schedule.next() {
                let (lane, lanes) = (schedule.lane(), schedule.lanes().len());
                prop_assert_eq!(schedule.number(), (turns[lane] * lanes + lane) as u64);
                turns[lane] += 1;
                let left = rows[at.shard as usize] - at.row;
                prop_assert!(!schedule.is_past(at.shard) && schedule.live() > 0);
                schedule.advance(left.min(chunk_rows), left <= chunk_rows);
                prop_assert_eq!(schedule.is_past(at.shard), left <= chunk_rows);
            }
            prop_assert_eq!(schedule.live(), 0);
        }
    }
}
