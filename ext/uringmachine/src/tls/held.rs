//! Descriptors of which a whole record has been received that OpenSSL has not read. The kernel does not call them
//! readable, so the scheduler's hooks ask here.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each with the number of its wire.
static HELD: Mutex<Vec<(RawFd, usize)>> = Mutex::new(Vec::new());
/// How many they are.
static HELD_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether a record is there to be read from the connection over a descriptor.
#[inline]
pub fn is_held(fd: RawFd) -> bool {
    is_any_held() && held().iter().any(|(held, _)| *held == fd)
}

/// Whether [`is_held`] is true of any descriptor.
#[inline]
pub fn is_any_held() -> bool {
    HELD_COUNT.load(Ordering::Relaxed) > 0
}

/// A descriptor is being closed: its number may soon be another's.
pub fn forget(fd: RawFd) {
    if is_held(fd) {
        change(|list| list.retain(|(held, _)| *held != fd));
    }
}

/// A wire has a record for a descriptor from now on, or none.
pub fn note(fd: RawFd, wire: usize, holds: bool) {
    change(|list| match holds {
        true => list.push((fd, wire)),
        false => list.retain(|(_, held)| *held != wire),
    });
}

fn held() -> MutexGuard<'static, Vec<(RawFd, usize)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change(change: impl FnOnce(&mut Vec<(RawFd, usize)>)) {
    let mut list = held();
    change(&mut list);
    HELD_COUNT.store(list.len(), Ordering::Relaxed);
}
