//! Classes: distinct captions, numbered in order of first appearance.
//!
//! Beside its text, a class costs 4 to 8 bytes of offset ([`Texts`]) and 10 to 15 bytes of hash table. A class of a caption
//! list costs another 8 bytes that link strings with the same key. Unless the rule is [`MatchRule::Exact`], it also costs 10 to
//! 15 bytes in a second table. While a table grows, the old and the new one exist together, at most 25 bytes a class.
//!
//! All of this is needed only while captions are looked up. [`Classes::into_texts`] keeps the texts alone.

mod groups;

use twox_hash::XxHash3_64;

use crate::catalog::error::CatalogError;
use crate::catalog::table::Table;
use crate::catalog::texts::Texts;
pub use crate::types::ClassSource;
use crate::types::MatchRule;
pub use groups::{Group, Groups};

/// Upper bound on the number of classes; `u32::MAX` is reserved for [`NO_CLASS`].
const MAX_CLASSES: u32 = u32::MAX - 1;
/// End of a list of linked classes.
const NO_CLASS: u32 = u32::MAX;

/// Classes in order of first appearance.
#[derive(Debug)]
pub struct Classes {
    source: ClassSource,
    rule: MatchRule,
    texts: Texts,
    /// Maps a key to the first class that has it.
    by_key: Table,
    /// Maps a string to its class, where several strings can share a key.
    by_text: Table,
    /// Next class with the same key, by class id.
    next: Vec<u32>,
    /// Last class with the same key, by first class id; makes linking a class constant time.
    last: Vec<u32>,
    duplicates: u64,
    empties: u64,
    keyless: u64,
}

impl Classes {
    /// Creates an empty set of classes.
    pub fn new(source: ClassSource, rule: MatchRule) -> Self {
        Self {
            source,
            rule,
            texts: Texts::default(),
            by_key: Table::default(),
            by_text: Table::default(),
            next: Vec::new(),
            last: Vec::new(),
            duplicates: 0,
            empties: 0,
            keyless: 0,
        }
    }

    /// Returns the rule that decides whether captions are equal.
    pub fn rule(&self) -> MatchRule {
        self.rule
    }

    /// Returns the source of the classes.
    pub fn source(&self) -> ClassSource {
        self.source
    }

    /// Adds `caption` unless it is a class already, and returns the group of a row with this caption. White space is
    /// not a class, and a caption with an empty key has no group.
    ///
    /// # Errors
    /// Fails if there are more classes than `u32` can number.
    pub fn add(&mut self, caption: &str) -> Result<Option<Group>, CatalogError> {
        if caption.trim().is_empty() {
            self.empties += 1;
            return Ok(None);
        }
        let key = self.rule.key(caption);
        let key_hash = hash(&key);
        let group = self.find(&key, key_hash);
        match self.source {
            ClassSource::Train => {
                if key.is_empty() {
                    self.keyless += 1;
                    return Ok(None);
                }
                if group.is_some() {
                    self.duplicates += 1;
                    return Ok(group);
                }
                let class = self.push(caption)?;
                self.by_key.insert(key_hash, class);
                Ok(Some(Group::of_first(class)))
            }
            ClassSource::List => {
                let text_hash = if self.rule == MatchRule::Exact { key_hash } else { hash(caption) };
                let known = if self.rule == MatchRule::Exact {
                    group.map(Group::first_class)
                } else {
                    self.by_text.find(text_hash, |class| self.texts.get(class) == Some(caption))
                };
                if known.is_some() {
                    self.duplicates += 1;
                    return Ok(group);
                }
                let class = self.push(caption)?;
                self.next.push(NO_CLASS);
                self.last.push(class);
                if self.rule != MatchRule::Exact {
                    self.by_text.insert(text_hash, class);
                }
                if key.is_empty() {
                    self.keyless += 1;
                    return Ok(None);
                }
                let Some(group) = group else {
                    self.by_key.insert(key_hash, class);
                    return Ok(Some(Group::of_first(class)));
                };
                self.link(group, class);
                Ok(Some(group))
            }
        }
    }

    /// Restores classes with [`ClassSource::Train`] from the texts of earlier ones, in the same order.
    pub fn from_train_texts(rule: MatchRule, texts: Texts) -> Self {
        let mut by_key = Table::default();
        for (text, class) in texts.iter().zip(0..) {
            by_key.insert(hash(&rule.key(text)), class);
        }
        Self { texts, by_key, ..Self::new(ClassSource::Train, rule) }
    }

    /// Returns the texts of all classes, and frees everything that finds a class by its text.
    pub fn into_texts(mut self) -> Texts {
        self.texts.shrink();
        self.texts
    }

    fn push(&mut self, caption: &str) -> Result<u32, CatalogError> {
        let too_many = CatalogError::TooManyClasses { limit: MAX_CLASSES };
        if self.len() >= MAX_CLASSES as usize {
            return Err(too_many);
        }
        self.texts.push(caption).ok_or(too_many)
    }

    fn link(&mut self, group: Group, class: u32) {
        if let Some(last) = self.last.get_mut(group.first_class() as usize) {
            let before = std::mem::replace(last, class);
            if let Some(next) = self.next.get_mut(before as usize) {
                *next = class;
            }
        }
    }

    fn find(&self, key: &str, key_hash: u64) -> Option<Group> {
        if key.is_empty() {
            return None;
        }
        let same = |class| self.texts.get(class).is_some_and(|text| self.rule.key(text) == key);
        self.by_key.find(key_hash, same).map(Group::of_first)
    }

    /// Returns the group of a row with this caption, if any class has its key.
    pub fn group_of(&self, caption: &str) -> Option<Group> {
        let key = self.rule.key(caption);
        self.find(&key, hash(&key))
    }

    /// Returns the classes of a row with this caption in ascending order; none if no class has its key.
    pub fn classes_of(&self, caption: &str) -> impl Iterator<Item = u32> + use<'_> {
        std::iter::successors(self.group_of(caption).map(Group::first_class), |&class| self.following(class))
    }

    fn following(&self, class: u32) -> Option<u32> {
        self.next.get(class as usize).copied().filter(|&next| next != NO_CLASS)
    }

    /// Returns the text of a class, as it first occurred.
    pub fn text(&self, class: u32) -> Option<&str> {
        self.texts.get(class)
    }

    /// Returns the texts of all classes in order of class id.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.texts.iter()
    }

    /// Returns the texts of all classes from class `first` on.
    pub fn texts_from(&self, first: usize) -> impl ExactSizeIterator<Item = &str> {
        self.texts.iter_from(first)
    }

    /// Returns the number of classes.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns whether there are no classes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many added captions were already a class.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Returns how many added captions were white space.
    pub fn empties(&self) -> u64 {
        self.empties
    }

    /// Returns how many added captions have an empty key, so that no row can match them (` [SEP] …` under
    /// [`MatchRule::Title`]).
    pub fn keyless(&self) -> u64 {
        self.keyless
    }

    /// Frees memory reserved for more classes.
    pub fn shrink(&mut self) {
        self.texts.shrink();
        self.next.shrink_to_fit();
        self.last.shrink_to_fit();
    }

    /// Returns the memory in use, in bytes.
    pub fn bytes(&self) -> usize {
        self.texts.bytes()
            + (self.next.capacity() + self.last.capacity()) * size_of::<u32>()
            + self.by_key.bytes()
            + self.by_text.bytes()
    }

    /// Returns a BLAKE3 hash of the rule, the source and every text with its length. Only equal classes have equal
    /// digests.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let source: &[u8] = match self.source {
            ClassSource::List => b"list\0",
            ClassSource::Train => b"train\0",
        };
        hasher.update(self.rule.as_str().as_bytes()).update(b"\0").update(source);
        for text in self.texts.iter() {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        hasher.finalize()
    }

    /// Returns the members of every group of more than one class.
    pub fn groups(&self) -> Groups {
        let mut groups = Groups::new(self.len());
        for first in 0..self.next.len() as u32 {
            let links = self.last.get(first as usize).is_some_and(|&last| last != first);
            if links {
                groups.push(first, std::iter::successors(Some(first), |&class| self.following(class)));
            }
        }
        groups
    }
}

fn hash(key: &str) -> u64 {
    XxHash3_64::oneshot(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn classes(source: ClassSource, rule: MatchRule, captions: &[&str]) -> Classes {
        let mut classes = Classes::new(source, rule);
        for caption in captions {
            classes.add(caption).unwrap();
        }
        classes
    }

    fn class_ids(classes: &Classes, caption: &str) -> Vec<u32> {
        classes.classes_of(caption).collect()
    }

    #[test]
    fn list_groups_distinct_strings_by_key() {
        let list = classes(ClassSource::List, MatchRule::Trimmed, &["b", "a ", "b", "", "a", " \u{a0}", "NA", "a "]);
        assert_eq!(list.texts().collect::<Vec<_>>(), ["b", "a ", "a", "NA"]);
        assert_eq!((list.duplicates(), list.empties(), list.keyless()), (2, 2, 0));
        assert_eq!(class_ids(&list, "\u{a0}a"), [1, 2]);
        assert_eq!(class_ids(&list, "b"), [0]);
        assert!(class_ids(&list, "c").is_empty() && class_ids(&list, "").is_empty());
        assert_eq!(list.groups().members(1), Some(&[1, 2][..]));
        assert_eq!(list.groups().members(0), None);
    }

    #[test]
    fn title_matches_all_its_captions() {
        let list = classes(
            ClassSource::List,
            MatchRule::Title,
            &["T [SEP] one", "U [SEP] one", "T [SEP] ", " [SEP] none", "T"],
        );
        assert_eq!(list.len(), 5);
        assert_eq!(class_ids(&list, "T [SEP] another"), [0, 2, 4]);
        assert!(class_ids(&list, " [SEP] none").is_empty());
        assert_eq!(list.keyless(), 1);
    }

    #[test]
    fn training_classes_are_distinct_keys() {
        let train = classes(ClassSource::Train, MatchRule::Casefold, &["Straße", "x", "STRASSE", " strasse ", ""]);
        assert_eq!(train.texts().collect::<Vec<_>>(), ["Straße", "x"]);
        assert_eq!((train.duplicates(), train.empties()), (2, 1));
        assert_eq!(class_ids(&train, "strasse"), [0]);
        assert!(train.groups().is_trivial());
        assert_eq!(train.group_of("X").map(Group::first_class), Some(1));
    }

    #[test]
    fn classes_of_restored_texts_are_the_same() {
        let build = || classes(ClassSource::Train, MatchRule::Casefold, &["Straße", "x", "y"]);
        let restored = Classes::from_train_texts(MatchRule::Casefold, build().into_texts());
        assert_eq!(restored.digest(), build().digest());
        assert_eq!((class_ids(&restored, "STRASSE"), restored.len()), (vec![0], 3));
    }

    #[test]
    fn digest_depends_on_texts_rule_source_and_boundaries() {
        let digest = |source, rule, captions: &[&str]| classes(source, rule, captions).digest();
        let first = digest(ClassSource::List, MatchRule::Exact, &["ab", "c"]);
        assert_eq!(first, digest(ClassSource::List, MatchRule::Exact, &["ab", "c", "ab"]));
        assert_ne!(first, digest(ClassSource::List, MatchRule::Exact, &["a", "bc"]));
        assert_ne!(first, digest(ClassSource::List, MatchRule::Trimmed, &["ab", "c"]));
        assert_ne!(first, digest(ClassSource::Train, MatchRule::Exact, &["ab", "c"]));
    }

    #[test]
    fn overhead_is_at_most_24_bytes_a_class() {
        let mut train = Classes::new(ClassSource::Train, MatchRule::Trimmed);
        let mut text_bytes = 0;
        for number in 0..100_000 {
            let caption = format!("Title {number} [SEP] caption");
            text_bytes += caption.len();
            assert_eq!(train.add(&caption).unwrap(), Some(Group::of_first(number)));
        }
        train.shrink();
        assert!(train.bytes() <= text_bytes + 24 * 100_000, "{}", train.bytes() - text_bytes);
        assert_eq!(class_ids(&train, " Title 77777 [SEP] caption\n"), [77_777]);
    }

    proptest! {
        #[test]
        fn classes_equal_a_linear_search(captions in prop::collection::vec("[aAé ]{0,3}( \\[SEP\\] [xX]?)?", 0..60)) {
            for rule in MatchRule::ALL {
                let mut texts: Vec<&str> = Vec::new();
                for caption in captions.iter().filter(|caption| !caption.trim().is_empty()) {
                    if !texts.contains(&caption.as_str()) {
                        texts.push(caption);
                    }
                }
                let captions: Vec<_> = captions.iter().map(String::as_str).collect();
                let list = classes(ClassSource::List, rule, &captions);
                prop_assert_eq!(list.texts().collect::<Vec<_>>(), texts.clone());
                let groups = list.groups();
                for caption in &captions {
                    let key = rule.key(caption);
                    let expected: Vec<u32> = (0_u32..)
                        .zip(&texts)
                        .filter(|(_, text)| !key.is_empty() && rule.key(text) == key)
                        .map(|(class, _)| class)
                        .collect();
                    prop_assert_eq!(&class_ids(&list, caption), &expected);
                    if expected.len() > 1 {
                        prop_assert_eq!(groups.members(expected[0]), Some(&expected[..]));
                    }
                    prop_assert_eq!(Groups::from_members(list.len(), &groups.all_members()), Some(groups.clone()));
                }
            }
        }
    }
}
