//! What belongs to a descriptor, found by its number.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// Numbers above this are rare, and have no place in the table.
const TABLED: usize = 65_536;

/// One `T` for each descriptor that has had one, a default one for every other.
#[derive(Debug)]
pub struct ByDescriptor<T> {
    table: Vec<T>,
    others: HashMap<RawFd, T>,
}

impl<T> Default for ByDescriptor<T> {
    fn default() -> Self {
        Self {
            table: Vec::new(),
            others: HashMap::new(),
        }
    }
}

impl<T: Default> ByDescriptor<T> {
    /// What a descriptor has, if it has had anything yet.
    #[inline]
    pub fn get(&self, fd: RawFd) -> Option<&T> {
        match self.table.get(fd as usize) {
            None if fd as usize >= TABLED => self.others.get(&fd),
            found => found,
        }
    }

    /// As [`ByDescriptor::get`], to be changed.
    #[inline]
    pub fn get_mut(&mut self, fd: RawFd) -> Option<&mut T> {
        match self.table.get_mut(fd as usize) {
            None if fd as usize >= TABLED => self.others.get_mut(&fd),
            found => found,
        }
    }

    /// What a descriptor has from now on; `None` for a number that no descriptor has.
    #[inline]
    pub fn of(&mut self, fd: RawFd) -> Option<&mut T> {
        let place = usize::try_from(fd).ok()?;
        if place >= TABLED {
            return Some(self.others.entry(fd).or_default());
        }
        if place >= self.table.len() {
            self.table.resize_with(place + 1, T::default);
        }
        self.table.get_mut(place)
    }

    /// Every descriptor that has had anything.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (RawFd, &mut T)> {
        let tabled = self.table.iter_mut().enumerate();
        let others = self.others.iter_mut().map(|(fd, value)| (*fd, value));
        tabled
            .map(|(place, value)| (place as RawFd, value))
            .chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_descriptor_has_its_own_and_a_bad_number_has_none() {
        let mut numbers = ByDescriptor::<u32>::default();
        for fd in [0, 7, 65_535, 65_536, i32::MAX] {
            assert_eq!(numbers.get(fd).copied().unwrap_or_default(), 0);
            *numbers.of(fd).unwrap() = fd as u32;
        }
        for fd in [0, 7, 65_535, 65_536, i32::MAX] {
            assert_eq!(numbers.get(fd), Some(&(fd as u32)));
            assert_eq!(numbers.get_mut(fd), Some(&mut (fd as u32)));
        }
        for fd in [-1, i32::MIN] {
            assert_eq!(numbers.get(fd), None);
            assert_eq!(numbers.of(fd), None);
        }
        assert_eq!(numbers.iter_mut().count(), 65_536 + 2);
        assert_eq!(numbers.get(70_000), None);
    }
}
