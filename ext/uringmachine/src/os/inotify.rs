//! inotify(7): watching files.

use std::ffi::CStr;
use std::mem::{offset_of, size_of};
use std::os::fd::RawFd;

use libc::inotify_event as Header;

use super::{checked, Result};

/// inotify_init1(2), close-on-exec: a new descriptor.
pub fn init() -> Result<RawFd> {
    // SAFETY: numbers only.
    checked(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })
}

/// inotify_add_watch(2), by a mask of the program's: the watch's number.
pub fn add(fd: RawFd, path: &CStr, mask: u32) -> Result<i32> {
    // SAFETY: the path ends with NUL, and is there during the call.
    checked(unsafe { libc::inotify_add_watch(fd, path.as_ptr(), mask) })
}

/// inotify_rm_watch(2).
pub fn remove(fd: RawFd, watch: i32) -> Result<()> {
    // SAFETY: numbers only.
    checked(unsafe { libc::inotify_rm_watch(fd, watch) }).map(drop)
}

/// What has happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The number of the watch.
    pub watch: i32,
    /// What has happened: IN_*.
    pub mask: u32,
    /// To which file of the directory that is watched; empty, if to that itself.
    pub name: &'a [u8],
}

/// The events that were read from a descriptor ("Reading events"). Bytes of something else end it early.
#[derive(Clone, Debug)]
pub struct Events<'a>(&'a [u8]);

impl<'a> Events<'a> {
    /// Those of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let (header, rest) = self.0.split_at_checked(size_of::<Header>())?;
        let number = |place| {
            Some(u32::from_ne_bytes(
                header.get(place..place + 4)?.try_into().ok()?,
            ))
        };
        let length = number(offset_of!(Header, len))? as usize;
        let (padded, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        let end = padded.iter().position(|byte| *byte == 0);
        Some(Event {
            watch: number(offset_of!(Header, wd))? as i32,
            mask: number(offset_of!(Header, mask))?,
            name: &padded[..end.unwrap_or(padded.len())],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(watch: i32, mask: u32, name: &[u8], padding: usize) -> Vec<u8> {
        let length = (name.len() + padding) as u32;
        let mut bytes = watch.to_ne_bytes().to_vec();
        for number in [mask, 0, length] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(name);
        bytes.resize(bytes.len() + padding, 0);
        bytes
    }

    #[test]
    fn events_come_one_after_the_other() {
        let read = [
            bytes(1, libc::IN_CREATE, b"name", 12),
            bytes(-1, libc::IN_Q_OVERFLOW, b"", 0),
            bytes(2, libc::IN_DELETE, b"full", 0),
        ]
        .concat();
        let events: Vec<_> = Events::new(&read)
            .map(|event| (event.watch, event.mask, event.name))
            .collect();
        let expected: [(i32, u32, &[u8]); 3] = [
            (1, libc::IN_CREATE, b"name"),
            (-1, libc::IN_Q_OVERFLOW, b""),
            (2, libc::IN_DELETE, b"full"),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn what_is_cut_off_is_no_event() {
        let whole = bytes(1, libc::IN_CREATE, b"name", 12);
        for length in 0..whole.len() {
            assert_eq!(Events::new(&whole[..length]).count(), 0);
        }
        let more = [&whole[..], &whole[..20]].concat();
        assert_eq!(Events::new(&more).count(), 1);
        assert_eq!(Events::new(&[0xff; 64]).count(), 0);
    }
}
