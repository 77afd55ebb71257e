//! Reading: IORING_OP_READ, IORING_OP_READ_FIXED, IORING_OP_READV, IORING_OP_READ_MULTISHOT.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::CURRENT;
use crate::memory::{MemoryMut, PiecesMut};
use crate::operation::{Operation, WithoutMemory};

/// Reads into memory, once (pread(2), Linux 5.6). Its result is the number of bytes; 0 is the end. Into a registered
/// buffer it is READ_FIXED (Linux 5.1).
#[derive(Clone, Copy, Debug)]
pub struct Read<M> {
    /// What is read from.
    pub fd: RawFd,
    /// Where the bytes go to.
    pub memory: M,
    /// Their place in a file; [`CURRENT`] is the current position, and the one for what has none.
    pub offset: u64,
}

// SAFETY: the memory keeps its bytes in place.
unsafe impl<M: MemoryMut> Operation for Read<M> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let fd = types::Fd(self.fd);
        let (pointer, length) = (self.memory.pointer_mut(), self.memory.length());
        match self.memory.registered() {
            Some(index) => opcode::ReadFixed::new(fd, pointer, length, index)
                .offset(self.offset)
                .build(),
            None => opcode::Read::new(fd, pointer, length)
                .offset(self.offset)
                .build(),
        }
    }
}

/// Reads into several pieces of memory, once, one after the other (preadv(2), Linux 5.1).
#[derive(Clone, Copy, Debug)]
pub struct Readv<P> {
    /// What is read from.
    pub fd: RawFd,
    /// Where the bytes go to.
    pub pieces: P,
    /// As for [`Read`].
    pub offset: u64,
}

// SAFETY: the pieces keep their bytes in place, and themselves while the operation is.
unsafe impl<P: PiecesMut> Operation for Readv<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (pieces, count) = self.pieces.pieces();
        opcode::Readv::new(types::Fd(self.fd), pieces, count as u32)
            .offset(self.offset)
            .build()
    }
}

/// Reads again and again, from the current position on, into buffers of a group (Linux 6.7: see
/// [`Features::read_multishot`](crate::Features) and [`Driver::start_multishot`](crate::Driver::start_multishot)). The
/// descriptor must be one that can be polled.
#[derive(Clone, Copy, Debug)]
pub struct ReadMultishot {
    /// What is read from.
    pub fd: RawFd,
    /// The group: see [`Driver::buffer_group`](crate::Driver::buffer_group).
    pub group: u16,
}

// SAFETY: the entry points to nothing: the group has the memory.
unsafe impl Operation for ReadMultishot {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::ReadMulti::new(types::Fd(self.fd), 0, self.group)
            .offset(CURRENT)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for ReadMultishot {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run, run_alone, start, Directory};
    use super::*;
    use crate::memory::{Part, SingleMut};
    use crate::multishot::Arrivals;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_place_of_a_file_is_read_and_then_the_current_one() {
        let directory = Directory::new("read");
        directory.write("file", b"0123456789");
        let file = File::open(directory.path("file")).unwrap();
        let mut read = Read {
            fd: file.as_raw_fd(),
            memory: vec![0; 4],
            offset: 7,
        };
        assert_eq!(run_alone(&mut read), 3);
        assert_eq!(read.memory, b"789\0");
        read.offset = CURRENT;
        for expected in [&b"0123"[..], b"4567"] {
            assert_eq!(run_alone(&mut read), 4);
            assert_eq!(read.memory, expected);
        }
        read.offset = 10;
        assert_eq!(run_alone(&mut read), 0);
    }

    #[test]
    fn a_read_of_a_pipe_waits_for_bytes() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let mut bytes = [7; 8];
        let mut read = Read {
            fd: reader.as_raw_fd(),
            memory: Part::new(&mut bytes[..], 2, 4),
            offset: CURRENT,
        };
        let op = start(&mut driver, &mut read);
        assert!(!driver.is_over(op));
        writer.write_all(b"hello").unwrap();
        assert_eq!(finish(&mut driver, op), 4);
        assert_eq!(&bytes, b"\x07\x07hell\x07\x07");
        drop(writer);
        let mut read = Read {
            fd: reader.as_raw_fd(),
            memory: &mut bytes[..],
            offset: CURRENT,
        };
        assert_eq!([1, 0], [(); 2].map(|()| run(&mut driver, &mut read)));
    }

    #[test]
    fn memory_says_whether_it_is_registered() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let (region, mapping) = driver.register_buffers(2, 4096).unwrap();
        let (memory, pointer) = super::super::testing::registered(&driver, &mapping, 4096, 100);
        let mut read = Read {
            fd: reader.as_raw_fd(),
            memory,
            offset: CURRENT,
        };
        writer.write_all(b"fixed").unwrap();
        assert_eq!(run(&mut driver, &mut read), 5);
        // SAFETY: the kernel has written so many bytes there.
        assert_eq!(unsafe { std::slice::from_raw_parts(pointer, 5) }, b"fixed");
        // It is the slot that is read into, not the address alone.
        driver.unregister_buffers(region);
        writer.write_all(b"x").unwrap();
        assert_eq!(run(&mut driver, &mut read), -libc::EFAULT);
    }

    #[test]
    fn pieces_are_filled_one_after_the_other() {
        let directory = Directory::new("readv");
        directory.write("file", b"0123456789");
        let file = File::open(directory.path("file")).unwrap();
        let mut read = Readv {
            fd: file.as_raw_fd(),
            pieces: SingleMut::new(vec![0; 4]),
            offset: 5,
        };
        assert_eq!(run_alone(&mut read), 4);
        assert_eq!(read.pieces.into_memory(), b"5678");
    }

    #[test]
    fn a_multishot_read_brings_what_comes_and_the_end() {
        let mut driver = driver();
        if !driver.features().read_multishot {
            return;
        }
        let (reader, mut writer) = std::io::pipe().unwrap();
        let read = ReadMultishot {
            fd: reader.as_raw_fd(),
            group: driver.buffer_group().unwrap(),
        };
        let op = driver
            .start_multishot(read, Arrivals::bytes(1 << 20))
            .unwrap();
        for bytes in [&b"hel"[..], b"lo"] {
            writer.write_all(bytes).unwrap();
            driver.poll().unwrap();
        }
        drop(writer);
        while driver.multishot(op).unwrap().ended.is_none() {
            driver.sleep(None).unwrap();
            driver.reap();
        }
        let multishot = driver.multishot(op).unwrap();
        assert_eq!(multishot.ended, Some(0));
        let Arrivals::Bytes { bytes, .. } = &multishot.arrivals else {
            unreachable!()
        };
        assert_eq!(bytes.as_slice(), b"hello");
    }
}
