//! Sending: IORING_OP_SEND, IORING_OP_SEND_ZC, IORING_OP_SENDMSG.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::memory::{Memory, Pieces};
use crate::operation::Operation;

/// Sends memory, once: it may send less (send(2), Linux 5.6). Its result is the number of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Send<M> {
    /// The socket.
    pub fd: RawFd,
    /// The bytes.
    pub memory: M,
    /// MSG_*. (MSG_NOSIGNAL for whoever does not want SIGPIPE.)
    pub flags: i32,
    /// The network takes the bytes from where they are, out of a registered buffer if they lie in one (SEND_ZC, Linux
    /// 6.0: see [`Features::send_zc`](crate::Features)). It completes when the last byte has been taken; the result is
    /// there before: see [`Driver::take_early`](crate::Driver::take_early). -EOPNOTSUPP is a socket that cannot.
    pub without_copy: bool,
}

// SAFETY: the memory keeps its bytes in place.
unsafe impl<M: Memory> Operation for Send<M> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let fd = types::Fd(self.fd);
        let (pointer, length) = (self.memory.pointer(), self.memory.length());
        match self.without_copy {
            true => opcode::SendZc::new(fd, pointer, length)
                .flags(self.flags)
                .buf_index(self.memory.registered())
                .build(),
            false => opcode::Send::new(fd, pointer, length)
                .flags(self.flags)
                .build(),
        }
    }
}

/// Sends a message from pieces of memory, to an address, with what goes along (sendmsg(2), Linux 5.3). Its result is the
/// number of bytes.
#[derive(Clone, Copy)]
pub struct SendMsg<P, A = (), C = ()> {
    /// The socket.
    pub fd: RawFd,
    /// The bytes.
    pub pieces: P,
    /// The receiver's address, a struct sockaddr; `()` is whom the socket is connected to.
    pub address: A,
    /// Control messages, each with its header (cmsg(3)); `()` is none.
    pub control: C,
    /// MSG_*.
    pub flags: i32,
    header: libc::msghdr,
}

impl<P: Pieces> SendMsg<P> {
    /// A message of bytes alone.
    #[inline]
    pub fn new(fd: RawFd, pieces: P, flags: i32) -> Self {
        Self::with(fd, pieces, (), (), flags)
    }
}

impl<P: Pieces, A: Memory, C: Memory> SendMsg<P, A, C> {
    /// A message with all that it may have.
    #[inline]
    pub fn with(fd: RawFd, pieces: P, address: A, control: C, flags: i32) -> Self {
        Self {
            fd,
            pieces,
            address,
            control,
            flags,
            // SAFETY: all-zero is a valid struct msghdr: null pointers and numbers.
            header: unsafe { std::mem::zeroed() },
        }
    }
}

// SAFETY: the pieces and the memories keep their bytes in place, the pieces themselves while the operation is; the
// header lies in it.
unsafe impl<P: Pieces, A: Memory, C: Memory> Operation for SendMsg<P, A, C> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (pieces, count) = self.pieces.pieces();
        let header = &mut self.header;
        (header.msg_iov, header.msg_iovlen) = (pieces, count as _);
        header.msg_name = self.address.pointer().cast_mut().cast();
        header.msg_namelen = self.address.length();
        header.msg_control = self.control.pointer().cast_mut().cast();
        header.msg_controllen = self.control.length() as _;
        opcode::SendMsg::new(types::Fd(self.fd), header)
            .flags(self.flags as u32)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, registered, run, run_alone, start};
    use super::super::RecvMsg;
    use super::*;
    use crate::memory::{Several, Single, SingleMut};
    use std::fs::File;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::net::UnixStream;

    fn send<M: Memory>(socket: &impl AsRawFd, memory: M) -> Send<M> {
        Send {
            fd: socket.as_raw_fd(),
            memory,
            flags: libc::MSG_NOSIGNAL,
            without_copy: false,
        }
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_socket_takes_what_it_has_room_for() {
        let (sender, mut receiver) = UnixStream::pair().unwrap();
        assert_eq!(run_alone(&mut send(&sender, &b"hello"[..])), 5);
        let mut bytes = [0; 5];
        receiver.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        drop(receiver);
        assert_eq!(run_alone(&mut send(&sender, &b"x"[..])), -libc::EPIPE);
    }

    #[test]
    fn bytes_are_sent_from_where_they_are() {
        let mut driver = driver();
        if !driver.features().send_zc {
            return;
        }
        let (sender, mut receiver) = connection();
        let (region, mapping) = driver.register_buffers(1, 65536).unwrap();
        let (memory, pointer) = registered(&driver, &mapping, 0, 65536);
        // SAFETY: the kernel has nothing to do with the memory yet.
        unsafe { std::ptr::write_bytes(pointer, b'r', 65536) };
        let mut registered = send(&sender, memory);
        let mut plain = send(&sender, vec![b'p'; 65536]);
        (registered.without_copy, plain.without_copy) = (true, true);
        registered.flags |= libc::MSG_WAITALL;
        plain.flags |= libc::MSG_WAITALL;
        let one = start(&mut driver, &mut registered);
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 2 * 65536];
            receiver.read_exact(&mut bytes).unwrap();
            bytes
        });
        assert_eq!(finish(&mut driver, one), 65536);
        assert_eq!(run(&mut driver, &mut plain), 65536);
        let expected = [[b'r'; 65536], [b'p'; 65536]].concat();
        assert!(reader.join().unwrap() == expected);
        driver.unregister_buffers(region);
        assert_eq!(run(&mut driver, &mut registered), -libc::EFAULT);
    }

    #[test]
    fn a_socket_that_cannot_says_so() {
        let mut driver = driver();
        if !driver.features().send_zc {
            return;
        }
        let (sender, _receiver) = UnixStream::pair().unwrap();
        let mut send = send(&sender, &b"hello"[..]);
        send.without_copy = true;
        assert_eq!(run(&mut driver, &mut send), -libc::EOPNOTSUPP);
    }

    #[test]
    fn a_message_goes_to_an_address_in_one() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        // A struct sockaddr_in: ip(7).
        let family = (libc::AF_INET as u16).to_ne_bytes();
        let port = receiver.local_addr().unwrap().port().to_be_bytes();
        let address = [&family[..], &port, &[127, 0, 0, 1], &[0; 8]].concat();
        let pieces = Several::new(vec![&b"hel"[..], b"lo"]);
        let mut message = SendMsg::with(sender.as_raw_fd(), pieces, address, (), 0);
        assert_eq!(run_alone(&mut message), 5);
        let mut bytes = [0; 8];
        let received = receiver.recv_from(&mut bytes).unwrap();
        assert_eq!(received, (5, sender.local_addr().unwrap()));
        assert_eq!(&bytes[..5], b"hello");
    }

    #[test]
    fn a_descriptor_goes_along() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // A struct cmsghdr with one descriptor: cmsg(3).
        let mut control = Vec::new();
        // SAFETY: a computation of lengths.
        let (length, space) = unsafe { (libc::CMSG_LEN(4), libc::CMSG_SPACE(4)) };
        control.extend((length as usize).to_ne_bytes());
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(libc::SCM_RIGHTS.to_ne_bytes());
        control.extend(writer.as_raw_fd().to_ne_bytes());
        control.resize(space as usize, 0);
        let header = control[..16].to_vec();
        let pieces = Single::new(&b"x"[..]);
        let mut send = SendMsg::with(sender.as_raw_fd(), pieces, (), control, 0);
        assert_eq!(run_alone(&mut send), 1);
        let (pieces, room) = (SingleMut::new(vec![0; 1]), vec![0; space as usize]);
        let flags = libc::MSG_CMSG_CLOEXEC;
        let mut recv = RecvMsg::with(receiver.as_raw_fd(), pieces, (), room, flags);
        assert_eq!(run_alone(&mut recv), 1);
        assert!(recv.control_length() >= length as usize);
        assert_eq!(recv.control[..16], header);
        let fd = i32::from_ne_bytes(recv.control[16..20].try_into().unwrap());
        assert_ne!(fd, writer.as_raw_fd());
        // SAFETY: the descriptor is new, and nobody else's.
        let mut copy = unsafe { File::from_raw_fd(fd) };
        std::io::Write::write_all(&mut copy, b"y").unwrap();
        let mut bytes = [0; 1];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"y");
    }
}
