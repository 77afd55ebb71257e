//! Receiving: IORING_OP_RECV, IORING_OP_RECVMSG.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::CURRENT;
use crate::memory::{MemoryMut, PiecesMut};
use crate::operation::{Operation, WithoutMemory};

/// Receives into memory, once (recv(2), Linux 5.6). Its result is the number of bytes; 0 is the end. Into a registered
/// buffer it is READ_FIXED (Linux 5.1), which takes no flags.
#[derive(Clone, Copy, Debug)]
pub struct Recv<M> {
    /// The socket.
    pub fd: RawFd,
    /// Where the bytes go to. With flags it is used as if it were not registered.
    pub memory: M,
    /// MSG_*.
    pub flags: i32,
    /// The socket is known to be empty, so that the first attempt would be in vain: it is polled before
    /// (IORING_RECVSEND_POLL_FIRST, Linux 5.19). READ_FIXED has no such flag.
    pub poll_first: bool,
}

// SAFETY: the memory keeps its bytes in place.
unsafe impl<M: MemoryMut> Operation for Recv<M> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let fd = types::Fd(self.fd);
        let (pointer, length) = (self.memory.pointer_mut(), self.memory.length());
        match self.memory.registered() {
            Some(index) if self.flags == 0 => opcode::ReadFixed::new(fd, pointer, length, index)
                .offset(CURRENT)
                .build(),
            _ => {
                let entry = opcode::Recv::new(fd, pointer, length)
                    .flags(self.flags)
                    .build();
                polled(entry, self.poll_first)
            }
        }
    }
}

/// Receives a message into pieces of memory, with its sender and what comes along (recvmsg(2), Linux 5.3). Its result is
/// the number of bytes.
#[derive(Clone, Copy)]
pub struct RecvMsg<P, A = (), C = ()> {
    /// The socket.
    pub fd: RawFd,
    /// Where the bytes go to.
    pub pieces: P,
    /// Room for the sender's address, a struct sockaddr; `()` does not ask for it.
    pub address: A,
    /// Room for control messages, each with its header (cmsg(3)); `()` does not ask for them.
    pub control: C,
    /// MSG_*.
    pub flags: i32,
    /// As for [`Recv`].
    pub poll_first: bool,
    header: libc::msghdr,
}

impl<P: PiecesMut> RecvMsg<P> {
    /// A message's bytes alone.
    #[inline]
    pub fn new(fd: RawFd, pieces: P, flags: i32) -> Self {
        Self::with(fd, pieces, (), (), flags)
    }
}

impl<P: PiecesMut, A: MemoryMut, C: MemoryMut> RecvMsg<P, A, C> {
    /// All of a message.
    #[inline]
    pub fn with(fd: RawFd, pieces: P, address: A, control: C, flags: i32) -> Self {
        Self {
            fd,
            pieces,
            address,
            control,
            flags,
            poll_first: false,
            // SAFETY: all-zero is a valid struct msghdr: null pointers and numbers.
            header: unsafe { std::mem::zeroed() },
        }
    }

    /// How many bytes the sender's address has, which may be more than there was room for.
    #[inline]
    pub fn address_length(&self) -> usize {
        self.header.msg_namelen as usize
    }

    /// How many bytes of control messages have come.
    #[inline]
    pub fn control_length(&self) -> usize {
        self.header.msg_controllen as _
    }

    /// What else there is to say of it: MSG_TRUNC, MSG_CTRUNC, MSG_EOR, ...
    #[inline]
    pub fn message_flags(&self) -> i32 {
        self.header.msg_flags
    }
}

// SAFETY: the pieces and the memories keep their bytes in place, the pieces themselves while the operation is; the
// header lies in it.
unsafe impl<P: PiecesMut, A: MemoryMut, C: MemoryMut> Operation for RecvMsg<P, A, C> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (pieces, count) = self.pieces.pieces();
        let header = &mut self.header;
        (header.msg_iov, header.msg_iovlen) = (pieces, count as _);
        header.msg_name = self.address.pointer_mut().cast();
        header.msg_namelen = self.address.length();
        header.msg_control = self.control.pointer_mut().cast();
        header.msg_controllen = self.control.length() as _;
        header.msg_flags = 0;
        let entry = opcode::RecvMsg::new(types::Fd(self.fd), header)
            .flags(self.flags as u32)
            .build();
        polled(entry, self.poll_first)
    }
}

/// Receives again and again into buffers of a group (IORING_RECV_MULTISHOT, Linux 6.0): see
/// [`Driver::start_multishot`](crate::Driver::start_multishot).
#[derive(Clone, Copy, Debug)]
pub struct RecvMultishot {
    /// The socket.
    pub fd: RawFd,
    /// The group: see [`Driver::buffer_group`](crate::Driver::buffer_group).
    pub group: u16,
    /// MSG_*.
    pub flags: i32,
}

// SAFETY: the entry points to nothing: the group has the memory.
unsafe impl Operation for RecvMultishot {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::RecvMulti::new(types::Fd(self.fd), self.group)
            .flags(self.flags)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for RecvMultishot {}

#[inline]
fn polled(entry: Entry, first: bool) -> Entry {
    match first {
        true => poll_first(entry),
        false => entry,
    }
}

/// Has a receive look for readiness before it tries: for a socket that is known to be empty, whose first
/// attempt would be in vain (IORING_RECVSEND_POLL_FIRST, Linux 5.19).
#[must_use]
pub fn poll_first(mut entry: Entry) -> Entry {
    const POLL_FIRST: u16 = 1;
    const IOPRIO: usize = 2;
    // SAFETY: an Entry is a struct io_uring_sqe, whose 16-bit field `ioprio` is at byte 2
    // (linux/io_uring.h); the crate sets it for no builder of a plain receive.
    unsafe {
        (&raw mut entry)
            .cast::<u8>()
            .add(IOPRIO)
            .cast::<u16>()
            .write(POLL_FIRST);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::super::testing::{byte, driver, finish, registered, run, run_alone, start};
    use super::*;
    use crate::memory::SingleMut;
    use crate::multishot::Arrivals;
    use std::io::Write;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn recv<M>(socket: &impl AsRawFd, memory: M, flags: i32) -> Recv<M> {
        Recv {
            fd: socket.as_raw_fd(),
            memory,
            flags,
            poll_first: false,
        }
    }

    #[test]
    fn what_is_there_is_received_and_what_comes() {
        for (poll_first, sent_before) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let (receiver, mut sender) = UnixStream::pair().unwrap();
            let mut driver = driver();
            let mut recv = recv(&receiver, vec![0; 8], 0);
            recv.poll_first = poll_first;
            // `ioprio`, and IORING_RECVSEND_POLL_FIRST (linux/io_uring.h).
            assert_eq!(byte(&mut recv, 2), u8::from(poll_first));
            if sent_before {
                sender.write_all(b"hello").unwrap();
            }
            let op = start(&mut driver, &mut recv);
            if !sent_before {
                assert!(!driver.is_over(op));
                sender.write_all(b"hello").unwrap();
            }
            assert_eq!(finish(&mut driver, op), 5);
            assert_eq!(recv.memory, b"hello\0\0\0");
            drop(sender);
            assert_eq!(run(&mut driver, &mut recv), 0);
        }
    }

    #[test]
    fn what_is_peeked_at_stays_in_a_registered_buffer_too() {
        let (receiver, mut sender) = UnixStream::pair().unwrap();
        let left = || {
            let mut bytes: libc::c_int = -1;
            // SAFETY: a place for the answer.
            unsafe { libc::ioctl(receiver.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
            bytes
        };
        sender.write_all(b"hello").unwrap();
        let mut driver = driver();
        let (_, mapping) = driver.register_buffers(1, 4096).unwrap();
        let (memory, pointer) = registered(&driver, &mapping, 0, 5);
        let mut recv = recv(&receiver, memory, 0);
        for (flags, stays) in [(libc::MSG_PEEK, 5), (0, 0)] {
            // SAFETY: the kernel has nothing to do with the memory now.
            unsafe { std::ptr::write_bytes(pointer, 0, 5) };
            recv.flags = flags;
            assert_eq!((run(&mut driver, &mut recv), left()), (5, stays));
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(pointer, 5) };
            assert_eq!(bytes, b"hello");
        }
    }

    #[test]
    fn a_message_tells_its_sender_and_whether_it_was_cut() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        sender.send_to(b"hello", to).unwrap();
        sender.send_to(b"too long", to).unwrap();
        let pieces = SingleMut::new(vec![0; 5]);
        let mut message = RecvMsg::with(receiver.as_raw_fd(), pieces, vec![0; 32], (), 0);
        assert_eq!(run_alone(&mut message), 5);
        assert_eq!(message.message_flags() & libc::MSG_TRUNC, 0);
        // A struct sockaddr_in: ip(7).
        assert_eq!(message.address_length(), 16);
        let port = sender.local_addr().unwrap().port().to_be_bytes();
        assert_eq!(message.address[2..8], [port[0], port[1], 127, 0, 0, 1]);
        assert_eq!(run_alone(&mut message), 5);
        assert_ne!(message.message_flags() & libc::MSG_TRUNC, 0);
        assert_eq!(message.pieces.into_memory(), b"too l");
    }

    #[test]
    fn an_empty_message_is_not_the_end() {
        let (receiver, sender) = UnixDatagram::pair().unwrap();
        sender.send(b"").unwrap();
        sender.send(b"hi").unwrap();
        let pieces = SingleMut::new(vec![0; 5]);
        let mut message = RecvMsg::new(receiver.as_raw_fd(), pieces, 0);
        message.poll_first = true;
        let counts = [(); 2].map(|()| run_alone(&mut message));
        assert_eq!((counts, message.control_length()), ([0, 2], 0));
    }

    #[test]
    fn a_multishot_receive_brings_what_comes() {
        let (receiver, mut sender) = UnixStream::pair().unwrap();
        let mut driver = driver();
        let recv = RecvMultishot {
            fd: receiver.as_raw_fd(),
            group: driver.buffer_group().unwrap(),
            flags: 0,
        };
        let op = driver
            .start_multishot(recv, Arrivals::bytes(1 << 20))
            .unwrap();
        sender.write_all(b"hel").unwrap();
        driver.poll().unwrap();
        sender.write_all(b"lo").unwrap();
        drop(sender);
        while driver.multishot(op).unwrap().ended.is_none() {
            driver.sleep(None).unwrap();
            driver.reap();
        }
        let Arrivals::Bytes { bytes, .. } = &driver.multishot(op).unwrap().arrivals else {
            unreachable!()
        };
        assert_eq!(bytes.as_slice(), b"hello");
    }
}
