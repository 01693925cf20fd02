//! What is followed by looking again and again: taken when two looks in a row found the same.
//!
//! A file that somebody writes in place is whole at no moment between: the first half of a bundle holds anchors without
//! their revocation lists, and is a bundle like any other.

/// What the last look found.
#[derive(Debug)]
pub(super) struct Twice<T>(Option<T>);

impl<T> Default for Twice<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Twice<T> {
    /// What this look found, if the one before found the same.
    pub fn found(&mut self, found: T) -> Option<&T> {
        let same = self.0.as_ref() == Some(&found);
        self.0 = Some(found);
        self.0.as_ref().filter(|_| same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_written_is_not_taken() {
        let mut looks = Twice::default();
        let taken: Vec<Option<&str>> = ["whole", "whole", "half", "new", "new", "new", "half", "new", "new"]
            .into_iter()
            .map(|found| looks.found(found).copied())
            .collect();
        let new = Some("new");
        assert_eq!(taken, [None, Some("whole"), None, None, new, new, None, None, new]);
    }
}
