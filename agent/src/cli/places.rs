//! Places for connections: so many in all, so many for one caller.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Who is connected, by what tells callers apart.
#[derive(Debug)]
pub struct Places<K: Copy + Eq + Hash> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    all: usize,
    each: usize,
}

/// A connection's place; leaving is dropping it.
#[derive(Debug)]
pub struct Place<K: Copy + Eq + Hash> {
    taken: Arc<Mutex<HashMap<K, usize>>>,
    caller: K,
}

fn lock<K>(taken: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Copy + Eq + Hash> Places<K> {
    /// So many in all, and for each caller.
    pub fn new(all: usize, each: usize) -> Self {
        Self { taken: Arc::default(), all, each }
    }

    /// A place for one more of this caller's, if there is one.
    pub fn enter(&self, caller: K) -> Option<Place<K>> {
        let mut taken = lock(&self.taken);
        if taken.values().sum::<usize>() >= self.all {
            return None;
        }
        let count = taken.entry(caller).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Place { taken: Arc::clone(&self.taken), caller })
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_for_others() {
        let places = Places::new(3, 2);
        let first = places.enter('a').unwrap();
        let _second = places.enter('a').unwrap();
        assert!(places.enter('a').is_none());
        let _other = places.enter('b').unwrap();
        assert!(places.enter('b').is_none(), "full");
        drop(first);
        let again = places.enter('b').unwrap();
        drop(again);
        assert_eq!(lock(&places.taken).len(), 2);
    }
}
