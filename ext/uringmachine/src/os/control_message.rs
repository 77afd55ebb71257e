//! Control messages: what goes along with a message's bytes (cmsg(3)), in the kernel's own form (linux/socket.h).

use std::mem::{offset_of, size_of};
use std::os::fd::RawFd;

/// The length of the whole, the level and the type.
const HEADER: usize = size_of::<libc::cmsghdr>();
const LEVEL: usize = offset_of!(libc::cmsghdr, cmsg_level);
const KIND: usize = offset_of!(libc::cmsghdr, cmsg_type);

/// The most that one of [`Small`] tells: a descriptor.
const MOST: usize = size_of::<RawFd>();

/// One control message of a few bytes, aligned as the next would be (CMSG_SPACE).
pub type Small = [u8; HEADER + size_of::<usize>()];

/// Room for one message with a descriptor, and for no second: that would be nobody's (CMSG_LEN).
pub const ROOM_FOR_DESCRIPTOR: usize = HEADER + size_of::<RawFd>();

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMessage<'a> {
    /// SOL_*.
    pub level: i32,
    /// What it is, of that level.
    pub kind: i32,
    /// What it tells.
    pub data: &'a [u8],
}

/// A control message with up to four bytes; what is more is left out.
pub fn small(level: i32, kind: i32, data: &[u8]) -> Small {
    let data = &data[..data.len().min(MOST)];
    let mut message = Small::default();
    message[..size_of::<usize>()].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
    message[LEVEL..][..4].copy_from_slice(&level.to_ne_bytes());
    message[KIND..][..4].copy_from_slice(&kind.to_ne_bytes());
    message[HEADER..][..data.len()].copy_from_slice(data);
    message
}

/// The first control message of those that have come; `None` if none has, or not all of it.
pub fn first(bytes: &[u8]) -> Option<ControlMessage<'_>> {
    let length = usize::from_ne_bytes(bytes.get(..size_of::<usize>())?.try_into().ok()?);
    Some(ControlMessage {
        level: number(bytes, LEVEL)?,
        kind: number(bytes, KIND)?,
        data: bytes.get(HEADER..length)?,
    })
}

/// What passes a descriptor along (unix(7), SCM_RIGHTS).
pub fn with_descriptor(fd: RawFd) -> Small {
    small(libc::SOL_SOCKET, libc::SCM_RIGHTS, &fd.to_ne_bytes())
}

/// The descriptor that has come along: a new one, which is for whoever asks to close.
pub fn descriptor(bytes: &[u8]) -> Option<RawFd> {
    match first(bytes)? {
        ControlMessage {
            level: libc::SOL_SOCKET,
            kind: libc::SCM_RIGHTS,
            data,
        } => number(data, 0),
        _ => None,
    }
}

fn number(bytes: &[u8], place: usize) -> Option<i32> {
    let bytes = bytes.get(place..place.checked_add(4)?)?;
    Some(i32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::super::{fd, transfer};
    use super::*;

    #[test]
    fn a_descriptor_goes_along() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let (reader, writer) = fd::pipe().unwrap();
        let control = with_descriptor(writer.as_raw_fd());
        let sent = transfer::sendmsg(sender.as_raw_fd(), &&b"x"[..], &control, 0);
        assert_eq!(sent, Ok(1));
        let (mut byte, mut room) = ([0; 1], [0; ROOM_FOR_DESCRIPTOR]);
        let flags = libc::MSG_CMSG_CLOEXEC;
        let received =
            transfer::recvmsg(receiver.as_raw_fd(), &mut &mut byte[..], &mut room, flags).unwrap();
        assert_eq!((received.count, received.flags & libc::MSG_CTRUNC), (1, 0));
        let copy = descriptor(&room[..received.control]).unwrap();
        assert_ne!(copy, writer.as_raw_fd());
        // SAFETY: the descriptor is new, and nobody else's.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        assert_eq!(transfer::write(copy.as_raw_fd(), &&b"y"[..]), Ok(1));
        let read = transfer::read(reader.as_raw_fd(), &mut &mut byte[..]);
        assert_eq!((read, &byte), (Ok(1), b"y"));
    }

    #[test]
    fn what_is_short_or_of_another_kind_is_no_descriptor() {
        let message = small(libc::SOL_TLS, 2, &[23]);
        let expected = ControlMessage {
            level: libc::SOL_TLS,
            kind: 2,
            data: &[23],
        };
        assert_eq!(first(&message), Some(expected));
        assert_eq!(descriptor(&message), None);
        let message = with_descriptor(7);
        assert_eq!(descriptor(&message), Some(7));
        assert_eq!(descriptor(&message[..ROOM_FOR_DESCRIPTOR]), Some(7));
        for length in 0..ROOM_FOR_DESCRIPTOR {
            assert_eq!(descriptor(&message[..length]), None);
        }
        assert_eq!(first(&[0xff; 24]), None);
        assert_eq!(first(&[0; 24]), None);
    }
}
