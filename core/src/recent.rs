//! A small bounded cache: two generations of a hash map.
//!
//! When the young generation is full it becomes the old one and the former old one is dropped; what is found in the old
//! one moves to the young. So at most `2 * generation_max` entries are kept and what is used stays, without a list to
//! maintain on every look-up.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// See the module.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: FxHashMap<K, V>,
    old: FxHashMap<K, V>,
    generation_max: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// An empty cache of at most twice `generation_max` entries.
    #[must_use]
    pub fn new(generation_max: usize) -> Self {
        Self { young: FxHashMap::default(), old: FxHashMap::default(), generation_max }
    }

    /// Remembers a value.
    pub fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.generation_max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// The value, if it is still known.
    pub fn get(&mut self, key: &K) -> Option<&V>
    where
        K: Copy,
    {
        self.get_mut(key).map(|value| &*value)
    }

    /// As [`Recent::get`], to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V>
    where
        K: Copy,
    {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key)?;
            self.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    /// Forgets one entry.
    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_bounded() {
        let mut cache = Recent::new(4);
        for n in 0..100 {
            cache.insert(n, n);
            assert_eq!(cache.get(&0), Some(&0), "used all the time");
            assert!(cache.young.len() + cache.old.len() <= 8);
        }
        assert_eq!(cache.get(&50), None);
    }
}
