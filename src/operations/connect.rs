//! Connecting a socket: IORING_OP_CONNECT.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::memory::Memory;
use crate::operation::Operation;

/// Connects a socket (connect(2), Linux 5.5).
#[derive(Clone, Copy, Debug)]
pub struct Connect<A> {
    /// The socket.
    pub fd: RawFd,
    /// The bytes of the peer's address: a struct sockaddr of the socket's family.
    pub address: A,
}

// SAFETY: the address keeps its bytes in place.
unsafe impl<A: Memory> Operation for Connect<A> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let address = self.address.pointer().cast();
        opcode::Connect::new(types::Fd(self.fd), address, self.address.length()).build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::run_alone;
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    fn socket() -> OwnedFd {
        // SAFETY: the descriptor is new, and nobody else's.
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        }
    }

    /// A struct sockaddr_in: ip(7).
    fn loopback(port: u16) -> Vec<u8> {
        let family = (libc::AF_INET as u16).to_ne_bytes();
        let parts = [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]];
        parts.concat()
    }

    #[test]
    fn a_socket_is_connected_to_an_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = socket();
        let mut connect = Connect {
            fd: socket.as_raw_fd(),
            address: loopback(listener.local_addr().unwrap().port()),
        };
        assert_eq!(run_alone(&mut connect), 0);
        let client = std::net::TcpStream::from(socket);
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    }

    #[test]
    fn nobody_listens() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let socket = socket();
        let mut connect = Connect {
            fd: socket.as_raw_fd(),
            address: loopback(port),
        };
        assert_eq!(run_alone(&mut connect), -libc::ECONNREFUSED);
    }
}
