//! Taking a connection: IORING_OP_ACCEPT.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Takes the next connection of a listening socket (accept4(2), Linux 5.5). Its result is a new descriptor, which
/// whoever gives the operation up closes.
#[derive(Clone, Copy, Debug)]
pub struct Accept {
    /// The listening socket.
    pub fd: RawFd,
    /// SOCK_CLOEXEC, SOCK_NONBLOCK.
    pub flags: i32,
}

// SAFETY: the entry points to nothing: the peer's address is not asked for.
unsafe impl Operation for Accept {
    #[inline]
    fn entry(&mut self) -> Entry {
        let nowhere = std::ptr::null_mut();
        opcode::Accept::new(types::Fd(self.fd), nowhere, std::ptr::null_mut())
            .flags(self.flags)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Accept {}

/// Takes one connection after the other (IORING_ACCEPT_MULTISHOT, Linux 5.19): see
/// [`Driver::start_multishot`](crate::Driver::start_multishot). Each result is a new descriptor.
#[derive(Clone, Copy, Debug)]
pub struct AcceptMultishot {
    /// The listening socket.
    pub fd: RawFd,
    /// SOCK_CLOEXEC, SOCK_NONBLOCK.
    pub flags: i32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for AcceptMultishot {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::AcceptMulti::new(types::Fd(self.fd))
            .flags(self.flags)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for AcceptMultishot {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run_alone, start};
    use super::*;
    use crate::multishot::Arrivals;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd};

    fn is_close_on_exec(fd: RawFd) -> bool {
        // SAFETY: fcntl takes any number.
        unsafe { libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
    }

    /// The socket that a driver was given.
    fn socket(fd: RawFd) -> TcpStream {
        assert!(fd >= 0);
        // SAFETY: the descriptor is new, and nobody else's.
        unsafe { TcpStream::from_raw_fd(fd) }
    }

    #[test]
    fn a_connection_is_taken_when_it_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut driver = driver();
        let mut accept = Accept {
            fd: listener.as_raw_fd(),
            flags: libc::SOCK_CLOEXEC,
        };
        let op = start(&mut driver, &mut accept);
        assert!(!driver.is_over(op));
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = socket(finish(&mut driver, op));
        assert!(is_close_on_exec(server.as_raw_fd()));
        client.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn what_does_not_listen_has_no_connections() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut accept = Accept {
            fd: one.as_raw_fd(),
            flags: 0,
        };
        assert_eq!(run_alone(&mut accept), -libc::EINVAL);
    }

    #[test]
    fn connections_are_taken_one_after_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut driver = driver();
        let accept = AcceptMultishot {
            fd: listener.as_raw_fd(),
            flags: libc::SOCK_CLOEXEC,
        };
        let op = driver
            .start_multishot(accept, Arrivals::descriptors())
            .unwrap();
        let mut taken = Vec::new();
        for number in 1..=3 {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            while taken.len() < number {
                driver.sleep(None).unwrap();
                driver.reap();
                match &mut driver.multishot(op).unwrap().arrivals {
                    Arrivals::Descriptors(fds) => taken.extend(fds.drain(..).map(socket)),
                    Arrivals::Bytes { .. } => unreachable!(),
                }
            }
            let address = taken[number - 1].peer_addr().unwrap();
            assert_eq!(address, client.local_addr().unwrap());
            assert!(is_close_on_exec(taken[number - 1].as_raw_fd()));
        }
        driver.discard_multishot(op).unwrap();
    }
}
