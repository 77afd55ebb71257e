//! Moving bytes through a pipe: IORING_OP_SPLICE, IORING_OP_TEE.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Moves bytes from one descriptor to another, of which one is a pipe (splice(2), Linux 5.7). Its result is their
/// number; 0 is the end.
#[derive(Clone, Copy, Debug)]
pub struct Splice {
    /// Where they come from.
    pub from: RawFd,
    /// Their place in it; `None` is the current position, and what a pipe has.
    pub from_offset: Option<u64>,
    /// Where they go to.
    pub to: RawFd,
    /// Their place in it, as above.
    pub to_offset: Option<u64>,
    /// The most that are moved.
    pub length: u32,
    /// SPLICE_F_*.
    pub flags: u32,
}

// SAFETY: the entry points to nothing: the offsets are numbers in it.
unsafe impl Operation for Splice {
    #[inline]
    fn entry(&mut self) -> Entry {
        let offset = |offset: Option<u64>| offset.map_or(-1, |offset| offset as i64);
        opcode::Splice::new(
            types::Fd(self.from),
            offset(self.from_offset),
            types::Fd(self.to),
            offset(self.to_offset),
            self.length,
        )
        .flags(self.flags)
        .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Splice {}

/// Copies bytes from one pipe to another; they stay in the first (tee(2), Linux 5.8). Its result is their number.
#[derive(Clone, Copy, Debug)]
pub struct Tee {
    /// Where they come from.
    pub from: RawFd,
    /// Where they go to.
    pub to: RawFd,
    /// The most that are copied.
    pub length: u32,
    /// SPLICE_F_*.
    pub flags: u32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Tee {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Tee::new(types::Fd(self.from), types::Fd(self.to), self.length)
            .flags(self.flags)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Tee {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run_alone, start, Directory};
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn bytes_move_from_a_place_of_a_file_into_a_pipe() {
        let directory = Directory::new("splice");
        directory.write("file", b"0123456789");
        let mut file = File::open(directory.path("file")).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut splice = Splice {
            from: file.as_raw_fd(),
            from_offset: Some(3),
            to: writer.as_raw_fd(),
            to_offset: None,
            length: 4,
            flags: libc::SPLICE_F_MOVE,
        };
        assert_eq!(run_alone(&mut splice), 4);
        // The current position has not moved.
        splice.from_offset = None;
        assert_eq!(run_alone(&mut splice), 4);
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"34560123");
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "456789");
        assert_eq!(run_alone(&mut splice), 0);
    }

    #[test]
    fn one_of_the_two_is_a_pipe() {
        let file = File::open("/dev/zero").unwrap();
        let mut splice = Splice {
            from: file.as_raw_fd(),
            from_offset: None,
            to: file.as_raw_fd(),
            to_offset: None,
            length: 4,
            flags: 0,
        };
        assert!(run_alone(&mut splice) < 0);
    }

    #[test]
    fn bytes_are_copied_and_stay() {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let (mut copy, copy_writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let mut tee = Tee {
            from: reader.as_raw_fd(),
            to: copy_writer.as_raw_fd(),
            length: 100,
            flags: 0,
        };
        let op = start(&mut driver, &mut tee);
        writer.write_all(b"hello").unwrap();
        assert_eq!(finish(&mut driver, op), 5);
        for end in [&mut reader, &mut copy] {
            let mut bytes = [0; 5];
            end.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
        }
    }
}
