//! Waiting for readiness: IORING_OP_POLL_ADD.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Ends when a descriptor is ready for something (poll(2), Linux 5.1). Its result is what it is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// The descriptor.
    pub fd: RawFd,
    /// POLLIN, POLLOUT, ... POLLERR, POLLHUP and POLLNVAL are always asked for.
    pub events: u32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Poll {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::PollAdd::new(types::Fd(self.fd), self.events).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Poll {}

/// Tells each time that a descriptor is ready for something (IORING_POLL_ADD_MULTI, Linux 5.13).
#[derive(Clone, Copy, Debug)]
pub struct PollMultishot {
    /// The descriptor.
    pub fd: RawFd,
    /// As for [`Poll`].
    pub events: u32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for PollMultishot {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::PollAdd::new(types::Fd(self.fd), self.events)
            .multi(true)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for PollMultishot {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run_alone, start};
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pipe_is_ready_once_something_is_in_it() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let mut poll = Poll {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN as u32,
        };
        let op = start(&mut driver, &mut poll);
        assert!(!driver.is_over(op));
        writer.write_all(b"x").unwrap();
        assert_eq!(finish(&mut driver, op), i32::from(libc::POLLIN));
    }

    #[test]
    fn a_pipe_takes_bytes_until_nobody_reads_it() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut poll = Poll {
            fd: writer.as_raw_fd(),
            events: libc::POLLOUT as u32,
        };
        assert_eq!(run_alone(&mut poll), i32::from(libc::POLLOUT));
        drop(reader);
        assert_ne!(run_alone(&mut poll) & i32::from(libc::POLLERR), 0);
    }

    #[test]
    fn a_descriptor_is_told_of_again_and_again() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut ring = crate::ring::Ring::new(4, crate::Features::ALL, None).unwrap();
        ring.enable().unwrap();
        let mut poll = PollMultishot {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN as u32,
        };
        // SAFETY: a poll points to nothing.
        unsafe { ring.push(&poll.entry()) }.unwrap();
        for _ in 0..3 {
            writer.write_all(b"x").unwrap();
            ring.enter(1, None).unwrap();
            let told = ring.reap().unwrap();
            assert_eq!(told.result(), i32::from(libc::POLLIN));
            assert!(io_uring::cqueue::more(told.flags()));
        }
    }
}
