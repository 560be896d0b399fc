//! The language of each class: that of the first row that has its caption.

use crate::catalog::classes::{Group, Groups};

/// Of a class that no row had yet.
const NONE: u16 = u16::MAX;
/// Of a class whose first row says no language.
const EMPTY: u16 = u16::MAX - 1;

/// Languages by class, 2 bytes a class. Groups share one, as rows cannot tell their classes apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Languages {
    names: Vec<String>,
    of_class: Vec<u16>,
}

impl Languages {
    /// Takes what [`Languages::names`] and [`Languages::codes`] gave.
    pub fn from_parts(names: Vec<String>, of_class: Vec<u16>) -> Self {
        Self { names, of_class }
    }

    /// Notes the language of a row, unless its class has one. More names than 65,534 are none: the column is damaged then.
    pub fn see(&mut self, group: Group, language: &str) {
        let class = group.first_class() as usize;
        if self.of_class.get(class).is_none_or(|code| *code == NONE) {
            self.set(class, language);
        }
    }

    /// Sets the language of a class.
    pub fn set(&mut self, class: usize, language: &str) {
        if self.of_class.len() <= class {
            self.of_class.resize(class + 1, NONE);
        }
        let known = self.names.iter().position(|name| name == language);
        let code = known.or_else(|| {
            (self.names.len() < usize::from(EMPTY) && !language.is_empty()).then(|| {
                self.names.push(language.to_owned());
                self.names.len() - 1
            })
        });
        self.of_class[class] = code.map_or(EMPTY, |code| code as u16);
    }

    /// The language of a class; empty where no row has it.
    pub fn of(&self, class: u32) -> &str {
        self.code(class).map_or("", |code| &self.names[code])
    }

    /// The number of a class's language within [`Languages::names`].
    pub fn code(&self, class: u32) -> Option<usize> {
        self.of_class.get(class as usize).map(|code| usize::from(*code)).filter(|code| *code < self.names.len())
    }

    /// Languages, in the order in which they were seen.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The languages' numbers by class.
    pub fn codes(&self) -> &[u16] {
        &self.of_class
    }

    /// Gives all classes of a group the language of its first.
    pub fn spread(&mut self, groups: &Groups) {
        let mut codes: Vec<u32> = self.of_class.iter().copied().map(u32::from).collect();
        codes.resize(groups.classes(), u32::from(NONE));
        groups.spread(&mut codes);
        self.of_class = codes.into_iter().map(|code| code as u16).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ClassSource, Classes, Match};

    #[test]
    fn a_class_has_the_language_of_its_first_row_and_a_group_that_of_its_first_class() {
        let mut classes = Classes::new(ClassSource::List, Match::Trimmed);
        for caption in ["a", "b", "a ", "c"] {
            classes.add(caption).unwrap();
        }
        let mut languages = Languages::default();
        for (caption, language) in [("b", "de"), ("a", "en"), ("b", "fr"), ("a ", "de"), ("c", ""), ("c", "it")] {
            languages.see(classes.group_of(caption).unwrap(), language);
        }
        languages.spread(&classes.groups());
        let found: Vec<&str> = (0..5).map(|class| languages.of(class)).collect();
        assert_eq!(found, ["en", "de", "en", "", ""]);
        let again = Languages::from_parts(languages.names().to_vec(), languages.codes().to_vec());
        assert_eq!((&again, again.code(1)), (&languages, Some(0)));
    }
}
