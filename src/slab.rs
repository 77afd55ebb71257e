//! A slab whose keys outlive their entries: a key of a removed entry finds nothing, even after
//! its place has been given to another.

/// Names one entry: its place, and how often the place had been given away before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The place in the slab.
    pub index: u32,
    /// The generation of the place.
    pub generation: u32,
}

impl Key {
    /// The key as one word: what a submission carries as its `user_data`.
    #[inline]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key that [`Key::to_bits`] made the word from.
    #[inline]
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

/// Entries of one type under generation-checked keys. Insertion and removal are O(1).
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// How many entries there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// How many entries can be stored without more memory.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Whether there is no entry.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores `entry` and returns its key.
    #[inline]
    pub fn insert(&mut self, entry: T) -> Key {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.entry = Some(entry);
            return Key {
                index,
                generation: place.generation,
            };
        }
        let index = u32::try_from(self.places.len()).expect("a slab holds fewer than 2^32 entries");
        self.places.push(Place {
            generation: 0,
            entry: Some(entry),
        });
        Key {
            index,
            generation: 0,
        }
    }

    /// The entry under `key`, unless it has been removed.
    #[inline]
    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        if place.generation == key.generation {
            place.entry.as_ref()
        } else {
            None
        }
    }

    /// The entry under `key`, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation {
            place.entry.as_mut()
        } else {
            None
        }
    }

    /// Takes the entry out; its key finds nothing from now on.
    #[inline]
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(entry)
    }

    /// Every entry, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places
            .iter_mut()
            .filter_map(|place| place.entry.as_mut())
    }

    /// Every entry with its key.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let key = Key {
                index: index as u32,
                generation: place.generation,
            };
            place.entry.as_ref().map(|entry| (key, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_key_of_a_removed_entry_finds_nothing_after_its_place_is_reused() {
        let mut slab = Slab::default();
        let old = slab.insert("old");
        assert_eq!(slab.remove(old), Some("old"));
        let new = slab.insert("new");
        assert_eq!(new.index, old.index);
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&"new"));
    }

    #[test]
    fn a_key_survives_its_word() {
        let key = Key {
            index: 7,
            generation: u32::MAX,
        };
        assert_eq!(Key::from_bits(key.to_bits()), key);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut slab = Slab::default();
            let mut model: HashMap<Key, usize> = HashMap::new();
            let mut gone = Vec::new();
            for (step, (insert, choice)) in steps.into_iter().enumerate() {
                if insert || model.is_empty() {
                    prop_assert!(model.insert(slab.insert(step), step).is_none());
                } else {
                    let keys: Vec<_> = model.keys().copied().collect();
                    let key = *choice.get(&keys);
                    prop_assert_eq!(slab.remove(key), model.remove(&key));
                    gone.push(key);
                }
                prop_assert_eq!(slab.len(), model.len());
                for (key, value) in &model { prop_assert_eq!(slab.get(*key), Some(value)); }
                for key in &gone { prop_assert_eq!(slab.get(*key), None); }
            }
        }
    }
}
