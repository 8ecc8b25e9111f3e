//! A map that forgets what has not been used for long.
//!
//! Two generations: what is touched lives in the young one; when that is full it becomes the old one, and what was in the
//! old one is dropped. Constant time per use and no bookkeeping per entry.
//!
//! It never holds more than twice its generation's size.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// See the module.
#[derive(Clone)]
pub(super) struct Aging<K, V> {
    young: FxHashMap<K, V>,
    old: FxHashMap<K, V>,
    generation_max: usize,
}

impl<K: Eq + Hash + Copy, V> Aging<K, V> {
    /// A map that keeps at least the `generation_max` entries used last.
    pub(super) fn new(generation_max: usize) -> Self {
        Self { young: FxHashMap::default(), old: FxHashMap::default(), generation_max }
    }

    /// The entry, which counts as used.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if let Some(value) = self.old.remove(key) {
            self.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    /// The entry, made if there is none.
    pub(super) fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        if !self.young.contains_key(&key) {
            let value = self.old.remove(&key).unwrap_or_default();
            self.insert(key, value);
        }
        self.young.get_mut(&key).expect("inserted above, and a turn of generations comes before the insertion")
    }

    /// Adds or replaces an entry.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut map = Aging::new(10);
        map.insert(0, "used");
        for n in 1..1000 {
            map.insert(n, "once");
            assert_eq!(map.get_mut(&0), Some(&mut "used"));
            assert!(map.young.len() + map.old.len() <= 20);
        }
        assert_eq!(map.get_mut(&500), None);
        assert_eq!(map.remove(&999), Some("once"));
        assert_eq!(map.remove(&999), None);
    }
}
