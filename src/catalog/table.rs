//! A hash table from text to ids that holds neither the text nor whole hashes.
//!
//! A slot is 8 bytes: 32 bits of the hash and the id. The caller, who has the texts, confirms each candidate.
//! Slots are probed linearly and ordered by hash, so growing copies almost in sequence, by half and not by
//! twice: at most 80 % and, once grown, at least 53 % of the slots are taken, 10 to 15 bytes an id. (A general
//! map would store the key or a whole hash beside the id, and hash every text again to grow.)

const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 16;

/// Ids by the hash of their text. `u32::MAX` is no id.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<u64>,
    taken: usize,
}

impl Table {
    /// The id whose hash agrees and which `confirms`.
    pub(super) fn find(&self, hash: u64, confirms: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = hash >> 32;
        let (wrapped, direct) = self.slots.split_at(home(tag, self.slots.len()));
        // There is always an empty slot, at which the probe ends.
        direct
            .iter()
            .chain(wrapped)
            .take_while(|&&slot| slot != EMPTY)
            .find(|&&slot| slot >> 32 == tag && confirms(slot as u32))
            .map(|&slot| slot as u32)
    }

    /// Adds an id that was not found.
    pub(super) fn insert(&mut self, hash: u64, id: u32) {
        if (self.taken + 1) * 5 > self.slots.len() * 4 {
            let grown = (self.slots.len() + self.slots.len() / 2).max(SMALLEST);
            let old = std::mem::replace(&mut self.slots, vec![EMPTY; grown]);
            for slot in old.into_iter().filter(|&slot| slot != EMPTY) {
                self.place(slot);
            }
        }
        self.place((hash >> 32) << 32 | u64::from(id));
        self.taken += 1;
    }

    fn place(&mut self, new: u64) {
        let (wrapped, direct) = {
            let home = home(new >> 32, self.slots.len());
            self.slots.split_at_mut(home)
        };
        if let Some(slot) = direct.iter_mut().chain(wrapped).find(|slot| **slot == EMPTY) {
            *slot = new;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }
}

/// The tag's place when tags are spread over all slots in order; at most `slots`.
fn home(tag: u64, slots: usize) -> usize {
    // Below 2³² · 2³² for any table of ids, and `slots` itself only where there is none.
    ((tag * slots as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_inserted_is_found(hashes in prop::collection::vec(prop_oneof![any::<u64>(), (0_u64..3).prop_map(|top| top << 62 | 0xFFFF_FFFF), Just(u64::MAX)], 0..300)) {
            let mut table = Table::default();
            for (id, &hash) in hashes.iter().enumerate() {
                table.insert(hash, id as u32);
            }
            for (id, &hash) in hashes.iter().enumerate() {
                prop_assert_eq!(table.find(hash, |candidate| candidate == id as u32), Some(id as u32));
                prop_assert_eq!(table.find(hash, |_| false), None);
            }
        }
    }

    #[test]
    fn an_empty_table_finds_nothing() {
        assert_eq!(Table::default().find(7, |_| true), None);
    }
}
