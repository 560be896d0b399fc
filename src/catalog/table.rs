//! Hash table from texts to ids that stores neither the texts nor whole hashes.
//!
//! A slot is 8 bytes: 32 bits of the hash and the id. The caller owns the texts and confirms each candidate. Probing is
//! linear, and slots are ordered by hash, so growing copies almost sequentially. The table grows by half instead of
//! doubling: between 53 % and 80 % of the slots are occupied, 10 to 15 bytes per id. A general map would store the key
//! or a whole hash beside the id, and would hash every text again to grow.

/// Empty slot.
const EMPTY: u64 = u64::MAX;
/// Smallest number of slots.
const MIN_SLOTS: usize = 16;

/// Ids by the hash of their text. `u32::MAX` is not an id.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<u64>,
    occupied: usize,
}

impl Table {
    /// Returns the id whose hash matches and that `confirms` accepts.
    pub(super) fn find(&self, hash: u64, confirms: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = hash >> 32;
        let (wrapped, direct) = self.slots.split_at(preferred_slot(tag, self.slots.len()));
        // The probe ends at an empty slot, of which there is always one.
        direct
            .iter()
            .chain(wrapped)
            .take_while(|&&slot| slot != EMPTY)
            .find(|&&slot| slot >> 32 == tag && confirms(slot as u32))
            .map(|&slot| slot as u32)
    }

    /// Inserts an id that is not in the table.
    pub(super) fn insert(&mut self, hash: u64, id: u32) {
        if (self.occupied + 1) * 5 > self.slots.len() * 4 {
            let grown = (self.slots.len() + self.slots.len() / 2).max(MIN_SLOTS);
            let old = std::mem::replace(&mut self.slots, vec![EMPTY; grown]);
            for slot in old.into_iter().filter(|&slot| slot != EMPTY) {
                self.insert_slot(slot);
            }
        }
        self.insert_slot((hash >> 32) << 32 | u64::from(id));
        self.occupied += 1;
    }

    fn insert_slot(&mut self, new: u64) {
        let (wrapped, direct) = {
            let preferred_slot = preferred_slot(new >> 32, self.slots.len());
            self.slots.split_at_mut(preferred_slot)
        };
        if let Some(slot) = direct.iter_mut().chain(wrapped).find(|slot| **slot == EMPTY) {
            *slot = new;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }
}

/// Returns the preferred slot of a tag. Tags are spread over all slots in order; the result is at most `slots`.
fn preferred_slot(tag: u64, slots: usize) -> usize {
    // The product is below 2³² · 2³² for any table of ids. The result equals `slots` only in an empty table.
    ((tag * slots as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn inserted_ids_are_found(hashes in prop::collection::vec(prop_oneof![any::<u64>(), (0_u64..3).prop_map(|top| top << 62 | 0xFFFF_FFFF), Just(u64::MAX)], 0..300)) {
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
    fn empty_table_finds_nothing() {
        assert_eq!(Table::default().find(7, |_| true), None);
    }
}
