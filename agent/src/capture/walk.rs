//! All rows of a hash map in which the kernel programs put and remove some meanwhile.
//!
//! Going from key to key would begin anew with each key that is gone when its turn comes: whoever opens and closes
//! connections fast enough could make such a walk last as long as they like. Here it goes bucket by bucket, and there are
//! only so many.

use std::marker::PhantomData;

use aya::{Pod as Plain, maps::MapData};

use super::{error::CaptureError, syscalls};

/// Rows that are asked for at a time; more where a bucket holds more.
const ROOM: u32 = 512;

/// A map that is read whole.
pub(super) struct Walk<K, V> {
    /// For an error.
    what: &'static str,
    map: MapData,
    _rows: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Walk<K, V> {
    pub(super) fn new(what: &'static str, map: MapData) -> Self {
        Self { what, map, _rows: PhantomData }
    }

    /// Every row that is there from the beginning to the end, and some of those that come or go meanwhile.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn rows(&self) -> Result<Vec<(K, V)>, CaptureError> {
        self.rows_and(|_| ())
    }

    /// `each`: called with the rows so far, between one reading and the next.
    fn rows_and(&self, mut each: impl FnMut(&[(K, V)])) -> Result<Vec<(K, V)>, CaptureError> {
        let (mut rows, mut from, mut room) = (Vec::new(), None, ROOM);
        loop {
            match syscalls::look_up_batch(&self.map, from, room, &mut rows) {
                Ok(Some(next)) => from = Some(next),
                Ok(None) => return Ok(rows),
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < u32::MAX / 2 => room *= 2,
                Err(error) => return Err(CaptureError::system(self.what)(error)),
            }
            each(&rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::{HashMap, Map};
    use std::{collections::BTreeSet, os::fd::AsFd as _};

    /// Rows that nobody touches.
    const STAY: u64 = 1_000;
    /// Rows that are there at any time.
    const ALL: u64 = 8 * ROOM as u64;

    type Numbers = HashMap<MapData, u64, u64>;

    /// A map with that many rows, the same map for walking, and once more for going from key to key.
    fn filled() -> (Numbers, Walk<u64, u64>, Numbers) {
        // BPF_MAP_TYPE_HASH, with room for the new ones beside the old.
        let definition = aya_obj::Map::new_from_params(1, 8, 8, 2 * ALL as u32, 0);
        let data = MapData::create(definition, "walk", None).unwrap();
        let same = || MapData::from_fd(data.fd().as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (walk, keys) = (Walk::new("reading a map", same()), Map::HashMap(same()).try_into().unwrap());
        let mut map = Numbers::try_from(Map::HashMap(data)).unwrap();
        (0..ALL).for_each(|key| map.insert(key, 7, 0).unwrap());
        (map, walk, keys)
    }

    #[test]
    #[ignore = "needs root: cargo xtask test"]
    fn a_walk_ends_although_each_row_that_it_finds_is_replaced_by_another() {
        let (mut map, walk, keys) = filled();
        let mut next = ALL;
        let mut replace = |map: &mut Numbers, key: u64| {
            if key >= STAY && map.remove(&key).is_ok() {
                map.insert(next, 7, 0).unwrap();
                next += 1;
            }
        };
        let (mut done, mut readings) = (0, 0);
        let rows = walk.rows_and(|rows| {
            readings += 1;
            rows[done..].iter().for_each(|(key, _)| replace(&mut map, *key));
            done = rows.len();
        });
        let found: BTreeSet<u64> = rows.unwrap().into_iter().map(|(key, _)| key).collect();
        assert!((0..STAY).all(|key| found.contains(&key)), "what was there all the time is found");
        assert!(readings > 4, "{readings}");
        assert!(found.len() < 2 * ALL as usize, "{} rows of {ALL}", found.len());

        // Control: from key to key there is no end.
        let bound = 20 * ALL as usize;
        let found = keys.keys().take(bound).inspect(|key| replace(&mut map, *key.as_ref().unwrap())).count();
        assert_eq!(found, bound);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test"]
    fn what_is_read_is_what_is_there() {
        let (mut map, walk, _) = filled();
        let mut rows = walk.rows().unwrap();
        rows.sort_unstable();
        assert_eq!(rows, (0..ALL).map(|key| (key, 7)).collect::<Vec<_>>());
        (0..ALL).for_each(|key| map.remove(&key).unwrap());
        assert_eq!(walk.rows().unwrap(), []);
    }
}
