//! Ending a connection in one direction: IORING_OP_SHUTDOWN.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Ends a connection, in one direction or in both (shutdown(2), Linux 5.11).
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// The socket.
    pub fd: RawFd,
    /// SHUT_RD, SHUT_WR or SHUT_RDWR.
    pub how: i32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Shutdown {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Shutdown::new(types::Fd(self.fd), self.how).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Shutdown {}

#[cfg(test)]
mod tests {
    use super::super::testing::run_alone;
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_sees_the_end_and_may_go_on_sending() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let mut shutdown = Shutdown {
            fd: one.as_raw_fd(),
            how: libc::SHUT_WR,
        };
        assert_eq!(run_alone(&mut shutdown), 0);
        assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
        other.write_all(b"x").unwrap();
        assert_eq!(one.read(&mut [0; 1]).unwrap(), 1);
    }

    #[test]
    fn a_pipe_is_no_connection() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut shutdown = Shutdown {
            fd: reader.as_raw_fd(),
            how: libc::SHUT_RD,
        };
        assert_eq!(run_alone(&mut shutdown), -libc::ENOTSOCK);
    }
}
