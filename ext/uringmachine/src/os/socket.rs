//! Sockets, by a program's own numbers.

use std::mem::size_of_val;
use std::os::fd::RawFd;

use libc::{c_int, sockaddr, socklen_t};
use nix::sys::socket::sockopt::Linger;

use super::fd::Fd;
use super::socket_address::Address;
use super::{checked, Result};

/// socket(2): a new descriptor.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<RawFd> {
    // SAFETY: numbers only.
    checked(unsafe { libc::socket(domain, kind, protocol) })
}

/// socketpair(2): two new descriptors.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Result<[RawFd; 2]> {
    let mut fds = [-1; 2];
    // SAFETY: the call fills the array, or fails.
    checked(unsafe { libc::socketpair(domain, kind, protocol, fds.as_mut_ptr()) })?;
    Ok(fds)
}

/// bind(2).
pub fn bind(fd: RawFd, address: &Address) -> Result<()> {
    let bytes = address.bytes();
    // SAFETY: the pointer and the length are the slice's.
    checked(unsafe { libc::bind(fd, bytes.as_ptr().cast(), bytes.len() as socklen_t) }).map(drop)
}

/// listen(2).
pub fn listen(fd: RawFd, backlog: i32) -> Result<()> {
    // SAFETY: numbers only.
    checked(unsafe { libc::listen(fd, backlog) }).map(drop)
}

/// shutdown(2).
pub fn shutdown(fd: RawFd, how: i32) -> Result<()> {
    // SAFETY: numbers only.
    checked(unsafe { libc::shutdown(fd, how) }).map(drop)
}

/// An option that is an int (getsockopt(2)).
pub fn option(fd: RawFd, level: i32, name: i32) -> Result<i32> {
    let mut value: c_int = 0;
    let mut length = size_of_val(&value) as socklen_t;
    // SAFETY: the value has the length given.
    checked(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) })?;
    Ok(value)
}

/// setsockopt(2) with the bytes that the option takes.
pub fn set_option(fd: RawFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let (start, length) = (value.as_ptr().cast(), value.len() as socklen_t);
    // SAFETY: the pointer and the length are the slice's.
    checked(unsafe { libc::setsockopt(fd, level, name, start, length) }).map(drop)
}

/// Whether closing a socket waits until what was written has been sent (socket(7), SO_LINGER). What is no socket does not.
pub fn lingers(fd: RawFd) -> bool {
    let fd = Fd(fd);
    let linger = fd
        .borrow()
        .map(|fd| nix::sys::socket::getsockopt(&fd, Linger));
    matches!(linger, Ok(Ok(linger)) if linger.l_onoff != 0 && linger.l_linger > 0)
}

/// A socket's own address (getsockname(2)).
pub fn own_name(fd: RawFd) -> Result<Address> {
    name(fd, libc::getsockname)
}

/// The peer's address (getpeername(2)).
pub fn peer_name(fd: RawFd) -> Result<Address> {
    name(fd, libc::getpeername)
}

type GetName = unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int;

fn name(fd: RawFd, get: GetName) -> Result<Address> {
    let mut room = Address::room();
    let mut length = room.len() as socklen_t;
    // SAFETY: the room has the length given; both functions write no more.
    checked(unsafe { get(fd, room.as_mut_ptr().cast(), &mut length) })?;
    Ok(Address::told(&room, length as usize))
}
