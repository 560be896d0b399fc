//! Distinct texts by number, without a way to look a text up.
//!
//! Texts are stored end to end in blocks of 4 MiB. A text costs its bytes and 4 to 8 bytes of offset. Blocks never move, so
//! growing copies at most one block; one long string would be copied whole whenever it doubles.

use std::collections::{HashMap, HashSet};

/// Capacity of a block. A longer text has a block of its own.
const BLOCK_BYTES: usize = 4 << 20;

/// Texts stored end to end.
#[derive(Debug, Default)]
struct Block {
    /// Number of the first text.
    first: u32,
    joined: String,
    /// End of each text in `joined`.
    ends: Vec<u32>,
}

/// Texts, numbered in the order in which they were added.
#[derive(Debug, Default)]
pub struct Texts {
    blocks: Vec<Block>,
    count: usize,
}

impl Texts {
    /// Appends a text and returns its number; `None` if the number or the length of the text exceeds `u32`.
    pub fn push(&mut self, text: &str) -> Option<u32> {
        let number = u32::try_from(self.count).ok()?;
        let bytes = u32::try_from(text.len()).ok()?;
        let is_full = |block: &Block| block.joined.len() + text.len() > BLOCK_BYTES && !block.ends.is_empty();
        if self.blocks.last().is_none_or(is_full) {
            // The first block grows as needed, because most sets are small.
            let capacity = if self.blocks.is_empty() { 0 } else { BLOCK_BYTES.max(text.len()) };
            self.blocks.push(Block { first: number, joined: String::with_capacity(capacity), ends: Vec::new() });
        }
        let block = self.blocks.last_mut()?;
        let end = block.ends.last().copied().unwrap_or(0).checked_add(bytes)?;
        block.joined.push_str(text);
        block.ends.push(end);
        self.count += 1;
        Some(number)
    }

    /// Returns the text with this number.
    pub fn get(&self, number: u32) -> Option<&str> {
        let at = self.blocks.partition_point(|block| block.first <= number).checked_sub(1)?;
        let block = self.blocks.get(at)?;
        let within = (number - block.first) as usize;
        let end = *block.ends.get(within)? as usize;
        let start = within.checked_sub(1).and_then(|before| block.ends.get(before)).copied().unwrap_or(0) as usize;
        block.joined.get(start..end)
    }

    /// Returns all texts in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.iter_from(0)
    }

    /// Returns the texts from number `first` on, in order.
    pub fn iter_from(&self, first: usize) -> impl ExactSizeIterator<Item = &str> {
        (first.min(self.count)..self.count).map(|number| self.get(number as u32).unwrap_or_default())
    }

    /// Returns the numbers of those of the `wanted` texts that are among these, in one pass.
    pub fn find_all<'a>(&self, wanted: &HashSet<&'a str>) -> HashMap<&'a str, u32> {
        let number_of = |(text, number): (&str, u32)| wanted.get(text).map(|wanted| (*wanted, number));
        let mut found = HashMap::with_capacity(wanted.len());
        for (text, number) in self.iter().zip(0..).filter_map(number_of) {
            found.entry(text).or_insert(number);
        }
        found
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends all texts of another set; `None` if there are more than `u32` can number.
    pub fn append(&mut self, other: &Self) -> Option<()> {
        other.iter().try_for_each(|text| self.push(text).map(|_| ()))
    }

    /// Frees memory reserved for more texts.
    pub fn shrink(&mut self) {
        for block in &mut self.blocks {
            block.joined.shrink_to_fit();
            block.ends.shrink_to_fit();
        }
    }

    /// Returns the memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        let of_block = |block: &Block| block.joined.capacity() + block.ends.capacity() * size_of::<u32>();
        self.blocks.iter().map(of_block).sum::<usize>() + self.blocks.capacity() * size_of::<Block>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn texts<'a>(all: impl IntoIterator<Item = &'a str>) -> Texts {
        let mut texts = Texts::default();
        for text in all {
            texts.push(text).unwrap();
        }
        texts
    }

    #[test]
    fn texts_of_several_blocks_are_found_by_number() {
        let long = "x".repeat(BLOCK_BYTES + 1);
        let all: Vec<String> = (0..200_000)
            .map(|number| if number % 70_000 == 5 { long.clone() } else { format!("Ä {number}") })
            .collect();
        let mut found = texts(all.iter().map(String::as_str));
        assert!(found.blocks.len() > 3);
        assert!(found.iter().eq(all.iter().map(String::as_str)));
        assert_eq!((found.len(), found.get(200_000), found.get(u32::MAX)), (200_000, None, None));
        found.shrink();
        let bytes: usize = all.iter().map(String::len).sum();
        assert!(found.bytes() <= bytes + 4 * all.len() + 4096, "{}", found.bytes() - bytes);
    }

    #[test]
    fn empty_set_has_no_text() {
        assert_eq!((Texts::default().get(0), Texts::default().len()), (None, 0));
    }

    proptest! {
        #[test]
        fn appended_texts_follow_the_first(one in prop::collection::vec("[aé]{0,3}", 0..9), other in prop::collection::vec("[aé]{0,3}", 0..9)) {
            let mut joined = texts(one.iter().map(String::as_str));
            joined.append(&texts(other.iter().map(String::as_str))).unwrap();
            let all: Vec<&str> = one.iter().chain(&other).map(String::as_str).collect();
            prop_assert_eq!(joined.iter().collect::<Vec<_>>(), all.clone());
            let found = joined.find_all(&HashSet::from(["a", "é", "no"]));
            for text in ["a", "é", "no"] {
                prop_assert_eq!(found.get(text).map(|number| *number as usize), all.iter().position(|other| *other == text));
            }
        }
    }
}
