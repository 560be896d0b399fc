//! [`Part`]: a share of the shards of a corpus.

use std::fmt;
use std::str::FromStr;

/// Part `index` of `count`: the shards whose number modulo `count` is `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    index: u32,
    count: u32,
}

/// Largest number of parts.
const MAX_COUNT: u32 = 100_000;

impl Part {
    /// All shards.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Returns part `index` of `count`; `None` unless `index < count` and there are at most 100,000 parts.
    pub fn new(index: u32, count: u32) -> Option<Self> {
        (index < count && count <= MAX_COUNT).then_some(Self { index, count })
    }

    /// Returns the number of the part, from 0.
    pub fn index(self) -> u32 {
        self.index
    }

    /// Returns the number of parts.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Returns whether the shard belongs to the part.
    pub fn contains(self, shard: u32) -> bool {
        shard % self.count == self.index
    }

    /// Returns the name of the part's folder.
    pub fn folder(self) -> String {
        format!("{}-of-{}", self.index, self.count)
    }

    /// Parses the output of [`Self::folder`].
    pub fn from_folder(name: &str) -> Option<Self> {
        let (index, count) = name.split_once("-of-")?;
        let part = Self::new(index.parse().ok()?, count.parse().ok()?)?;
        (part.folder() == name).then_some(part)
    }
}

impl fmt::Display for Part {
    /// Writes the part as the command line takes it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        numbers.and_then(|(index, count)| Self::new(index, count)).ok_or_else(|| {
            format!("`{text}` is not a part: write I/N with I from 0 to N - 1, such as `0/4`, or `auto` in a job array")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_parsed_and_displayed() {
        let part: Part = "2/7".parse().unwrap();
        assert_eq!((part.to_string(), part.folder()), ("2/7".to_owned(), "2-of-7".to_owned()));
        assert_eq!(Part::from_folder("2-of-7"), Some(part));
        for text in ["", "2", "7/7", "-1/2", "0/0", "1/2/3", "0/100001"] {
            assert!(text.parse::<Part>().unwrap_err().contains(&format!("`{text}` is not a part")), "{text}");
        }
        for name in ["2-7", "02-of-7", "7-of-7", "lock"] {
            assert_eq!(Part::from_folder(name), None, "{name}");
        }
    }

    #[test]
    fn each_shard_belongs_to_one_part() {
        for count in 1..8 {
            for shard in 0..20 {
                let owners = (0..count).filter(|index| Part::new(*index, count).unwrap().contains(shard)).count();
                assert_eq!(owners, 1);
            }
        }
    }
}
