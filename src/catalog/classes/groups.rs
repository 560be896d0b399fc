//! Groups of classes that share a key.

/// The classes that share one key, named by the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(u32);

impl Group {
    /// Returns the group whose smallest class id is `class`.
    pub(super) const fn of_first(class: u32) -> Self {
        Self(class)
    }

    /// Returns the smallest class id of the group. Groups are disjoint.
    pub const fn first_class(self) -> u32 {
        self.0
    }
}

/// Groups of classes that share a key, as the join index needs them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    classes: usize,
    /// First class of each group of more than one class, ascending.
    firsts: Vec<u32>,
    /// End of each group in `members`.
    ends: Vec<usize>,
    members: Vec<u32>,
}

impl Groups {
    /// Creates the groups of `classes` classes, none of which shares its key yet.
    pub(super) fn new(classes: usize) -> Self {
        Self { classes, ..Self::default() }
    }

    /// Adds a group. Groups come in the order of their first class, and members in ascending order.
    pub(super) fn push(&mut self, first: u32, members: impl IntoIterator<Item = u32>) {
        self.firsts.push(first);
        self.members.extend(members);
        self.ends.push(self.members.len());
    }

    /// Restores groups from the [`Groups::all_members`] of `classes` classes; `None` if they are not those of such groups.
    pub fn from_members(classes: usize, all_members: &[Vec<u32>]) -> Option<Self> {
        let mut groups = Self::new(classes);
        for members in all_members {
            let first = *members.first()?;
            let ascends =
                members.is_sorted_by(|one, other| one < other) && groups.firsts.last().is_none_or(|&last| last < first);
            if members.len() < 2 || !ascends || members.iter().any(|class| *class as usize >= classes) {
                return None;
            }
            groups.push(first, members.iter().copied());
        }
        Some(groups)
    }

    /// Returns the members of every group of more than one class, ascending.
    pub fn all_members(&self) -> Vec<Vec<u32>> {
        self.firsts.iter().filter_map(|&first| self.members(first)).map(<[u32]>::to_vec).collect()
    }

    /// Returns the number of classes, grouped or not.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns whether no two classes share a key.
    pub fn is_trivial(&self) -> bool {
        self.firsts.is_empty()
    }

    /// Returns the classes of the group that starts with class `first`, ascending, or `None` if it is alone.
    pub fn members(&self, first: u32) -> Option<&[u32]> {
        let position = self.firsts.binary_search(&first).ok()?;
        let start = position.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.members.get(start..*self.ends.get(position)?)
    }

    /// Copies the value of each group's first class to its other classes.
    pub(in crate::catalog) fn copy_from_first(&self, values: &mut [u32]) {
        for members in self.firsts.iter().filter_map(|&first| self.members(first)) {
            let Some(&value) = members.first().and_then(|&first| values.get(first as usize)) else {
                continue;
            };
            for &class in members {
                if let Some(slot) = values.get_mut(class as usize) {
                    *slot = value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_groups_are_refused() {
        for (classes, members) in
            [(3, vec![vec![1]]), (3, vec![vec![1, 3]]), (3, vec![vec![2, 1]]), (5, vec![vec![2, 3], vec![1, 4]])]
        {
            assert_eq!(Groups::from_members(classes, &members), None);
        }
    }
}
