//! Writing: IORING_OP_WRITE, IORING_OP_WRITE_FIXED, IORING_OP_WRITEV.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::memory::{Memory, Pieces};
use crate::operation::Operation;

/// Writes memory, once: it may write less (pwrite(2), Linux 5.6). Its result is the number of bytes. Out of a registered
/// buffer it is WRITE_FIXED (Linux 5.1).
#[derive(Clone, Copy, Debug)]
pub struct Write<M> {
    /// What is written to.
    pub fd: RawFd,
    /// The bytes.
    pub memory: M,
    /// Their place in a file; [`CURRENT`](super::CURRENT) is the current position, and the one for what has none.
    pub offset: u64,
}

// SAFETY: the memory keeps its bytes in place.
unsafe impl<M: Memory> Operation for Write<M> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let fd = types::Fd(self.fd);
        let (pointer, length) = (self.memory.pointer(), self.memory.length());
        match self.memory.registered() {
            Some(index) => opcode::WriteFixed::new(fd, pointer, length, index)
                .offset(self.offset)
                .build(),
            None => opcode::Write::new(fd, pointer, length)
                .offset(self.offset)
                .build(),
        }
    }
}

/// Writes several pieces of memory, once, one after the other (pwritev(2), Linux 5.1).
#[derive(Clone, Copy, Debug)]
pub struct Writev<P> {
    /// What is written to.
    pub fd: RawFd,
    /// The bytes.
    pub pieces: P,
    /// As for [`Write`].
    pub offset: u64,
}

// SAFETY: the pieces keep their bytes in place, and themselves while the operation is.
unsafe impl<P: Pieces> Operation for Writev<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (pieces, count) = self.pieces.pieces();
        opcode::Writev::new(types::Fd(self.fd), pieces, count as u32)
            .offset(self.offset)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, registered, run, run_alone, Directory};
    use super::super::CURRENT;
    use super::*;
    use crate::memory::{Part, Several, Unregistered};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_place_of_a_file_is_written_and_then_the_current_one() {
        let directory = Directory::new("write");
        let file = File::create(directory.path("file")).unwrap();
        let write = |memory: &[u8], offset| {
            run_alone(&mut Write {
                fd: file.as_raw_fd(),
                memory,
                offset,
            })
        };
        assert_eq!(write(b"789", 7), 3);
        assert_eq!(write(b"0123", CURRENT), 4);
        assert_eq!(write(b"456", CURRENT), 3);
        let written = std::fs::read(directory.path("file")).unwrap();
        assert_eq!(written, b"0123456789");
    }

    #[test]
    fn what_is_left_of_a_part_goes_on() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut write = Write {
            fd: writer.as_raw_fd(),
            memory: Part::new(&b"0123456789"[..], 2, 3),
            offset: CURRENT,
        };
        assert_eq!(run_alone(&mut write), 3);
        write.memory = Part::new(write.memory.into_memory(), 5, u32::MAX);
        write.memory.skip(1);
        assert_eq!(run_alone(&mut write), 4);
        let mut bytes = [0; 7];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"2346789");
    }

    #[test]
    fn memory_says_whether_it_is_registered() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let (region, mapping) = driver.register_buffers(2, 4096).unwrap();
        let (memory, pointer) = registered(&driver, &mapping, 4096, 5);
        // SAFETY: the kernel has nothing to do with the memory yet.
        unsafe { std::ptr::copy_nonoverlapping(b"fixed".as_ptr(), pointer, 5) };
        let mut write = Write {
            fd: writer.as_raw_fd(),
            memory: Part::new(memory, 1, 4),
            offset: CURRENT,
        };
        assert_eq!(run(&mut driver, &mut write), 4);
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ixed");
        driver.unregister_buffers(region);
        assert_eq!(run(&mut driver, &mut write), -libc::EFAULT);
        let mut write = Write {
            fd: writer.as_raw_fd(),
            memory: Unregistered(write.memory),
            offset: CURRENT,
        };
        assert_eq!(run(&mut driver, &mut write), 4);
    }

    #[test]
    fn nobody_reads_the_pipe() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut write = Write {
            fd: writer.as_raw_fd(),
            memory: &b"x"[..],
            offset: CURRENT,
        };
        assert_eq!(run_alone(&mut write), -libc::EPIPE);
    }

    #[test]
    fn pieces_are_written_one_after_the_other() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut write = Writev {
            fd: writer.as_raw_fd(),
            pieces: Several::new(vec![b"one".to_vec(), Vec::new(), b"three".to_vec()]),
            offset: CURRENT,
        };
        assert_eq!(run_alone(&mut write), 8);
        write.pieces.skip(4);
        assert_eq!(run_alone(&mut write), 4);
        let mut bytes = [0; 12];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"onethreehree");
    }
}
