//! Language of each class: that of the first row with its caption.

use crate::catalog::classes::{Group, Groups};

/// Code of a class without rows.
const NO_ROW: u16 = u16::MAX;
/// Code of a class whose first row has no language.
const NO_LANGUAGE: u16 = u16::MAX - 1;

/// Language of each class, 2 bytes per class. The classes of a group share one, since a row cannot tell them apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Languages {
    names: Vec<String>,
    code_of_class: Vec<u16>,
}

impl Languages {
    /// Restores the languages from [`Languages::names`] and [`Languages::codes`].
    pub fn from_parts(names: Vec<String>, code_of_class: Vec<u16>) -> Self {
        Self { names, code_of_class }
    }

    /// Records the language of a row unless its class has one. A language beyond 65,534 distinct ones is ignored,
    /// because the column is then damaged.
    pub fn record(&mut self, group: Group, language: &str) {
        let class = group.first_class() as usize;
        if self.code_of_class.get(class).is_none_or(|code| *code == NO_ROW) {
            self.set(class, language);
        }
    }

    /// Sets the language of a class.
    pub fn set(&mut self, class: usize, language: &str) {
        if self.code_of_class.len() <= class {
            self.code_of_class.resize(class + 1, NO_ROW);
        }
        let known = self.names.iter().position(|name| name == language);
        let code = known.or_else(|| {
            (self.names.len() < usize::from(NO_LANGUAGE) && !language.is_empty()).then(|| {
                self.names.push(language.to_owned());
                self.names.len() - 1
            })
        });
        self.code_of_class[class] = code.map_or(NO_LANGUAGE, |code| code as u16);
    }

    /// Returns the language of a class; empty if no row has it.
    pub fn language(&self, class: u32) -> &str {
        self.code(class).map_or("", |code| &self.names[code])
    }

    /// Returns the index of the class's language in [`Languages::names`].
    pub fn code(&self, class: u32) -> Option<usize> {
        self.code_of_class.get(class as usize).map(|code| usize::from(*code)).filter(|code| *code < self.names.len())
    }

    /// Returns the languages in order of first appearance.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the index of the language by class id.
    pub fn codes(&self) -> &[u16] {
        &self.code_of_class
    }

    /// Copies the language of each group's first class to the whole group.
    pub fn share_within_groups(&mut self, groups: &Groups) {
        self.code_of_class.resize(groups.classes(), NO_ROW);
        if groups.is_trivial() {
            return;
        }
        let mut codes: Vec<u32> = self.code_of_class.iter().copied().map(u32::from).collect();
        groups.copy_from_first(&mut codes);
        self.code_of_class = codes.into_iter().map(|code| code as u16).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{ClassSource, Classes};
    use crate::types::MatchRule;

    #[test]
    fn class_language_comes_from_first_row() {
        let mut classes = Classes::new(ClassSource::List, MatchRule::Trimmed);
        for caption in ["a", "b", "a ", "c"] {
            classes.add(caption).unwrap();
        }
        let mut languages = Languages::default();
        for (caption, language) in [("b", "de"), ("a", "en"), ("b", "fr"), ("a ", "de"), ("c", ""), ("c", "it")] {
            languages.record(classes.group_of(caption).unwrap(), language);
        }
        languages.share_within_groups(&classes.groups());
        let found: Vec<&str> = (0..5).map(|class| languages.language(class)).collect();
        assert_eq!(found, ["en", "de", "en", "", ""]);
        let again = Languages::from_parts(languages.names().to_vec(), languages.codes().to_vec());
        assert_eq!((&again, again.code(1)), (&languages, Some(0)));
    }
}
