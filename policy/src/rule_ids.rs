//! The numbers of rules in the tables, by the rules' names.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

/// Names with their numbers. A decision has its rule's name in hand, which is known again by where it lies: reading it
/// would take longer than the rest of the decision. Each name is kept, so that no other can come to lie there.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleIds(HashMap<usize, (Arc<str>, u32), RandomState>);

fn place(rule: &Arc<str>) -> usize {
    Arc::as_ptr(rule).cast::<u8>().addr()
}

impl RuleIds {
    pub(crate) fn knows(&self, rule: &Arc<str>) -> bool {
        self.0.contains_key(&place(rule))
    }

    pub(crate) fn insert(&mut self, rule: &Arc<str>, id: u32) {
        self.0.insert(place(rule), (Arc::clone(rule), id));
    }

    /// The number of a name; 0: it has none in the tables.
    pub(crate) fn of(&self, rule: &Arc<str>) -> u32 {
        self.0.get(&place(rule)).map_or(0, |(_, id)| *id)
    }

    /// Numbers the names from 1, in their order; alike ones have one number. Returns each name once.
    pub(crate) fn number(&mut self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = self.0.values().map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        names.dedup();
        for (name, id) in self.0.values_mut() {
            let found = names.binary_search(name).ok().and_then(|at| u32::try_from(at + 1).ok());
            *id = found.unwrap_or(0);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_alike_have_one_number_wherever_they_lie() {
        let names: Vec<Arc<str>> = ["b", "a", "c", "a"].into_iter().map(Arc::from).collect();
        let mut ids = RuleIds::default();
        for name in &names {
            assert!(!ids.knows(name));
            ids.insert(name, 0);
        }
        assert_eq!(ids.number().iter().map(|it| &**it).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(names.iter().map(|it| ids.of(it)).collect::<Vec<_>>(), [2, 1, 3, 1]);
        assert_eq!(ids.of(&Arc::from("a")), 0, "another's, which no rule in force has");
    }
}
