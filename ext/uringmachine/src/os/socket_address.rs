//! Socket addresses: from what a method is given to what the kernel takes, and back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::ruby::{self, Raise, NIL, VALUE};

/// An address as the kernel takes it.
#[derive(Clone, Copy)]
pub struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Address {
    /// Room for an address that the kernel fills in.
    pub fn empty() -> Self {
        Self {
            // SAFETY: an all-zero address is one of no family.
            storage: unsafe { std::mem::zeroed() },
            length: std::mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t,
        }
    }

    fn of<T>(address: &T, length: usize) -> Self {
        let mut result = Self::empty();
        result.length = length as libc::socklen_t;
        // SAFETY: `address` is a sockaddr of some kind, none of which is larger than the storage.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(address).cast::<u8>(),
                (&raw mut result.storage).cast::<u8>(),
                std::mem::size_of::<T>(),
            );
        }
        result
    }

    /// An Internet address.
    pub fn inet(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => {
                let inet = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                Self::of(&inet, std::mem::size_of_val(&inet))
            }
            SocketAddr::V6(address) => {
                let inet = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: address.scope_id(),
                };
                Self::of(&inet, std::mem::size_of_val(&inet))
            }
        }
    }

    /// A path of a UNIX socket; one that begins with a zero byte is an abstract name.
    pub fn unix(path: &[u8]) -> Result<Self, Raise> {
        // SAFETY: an all-zero address is valid.
        let mut unix: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        unix.sun_family = libc::AF_UNIX as libc::sa_family_t;
        // A path is ended by a zero byte; a name is not.
        let most = unix.sun_path.len() - usize::from(path.first() != Some(&0));
        if path.is_empty() || path.len() > most {
            return Err(Raise::argument(&format!(
                "host: a UNIX socket's path has 1 to {most} bytes, not {}",
                path.len()
            )));
        }
        if path[0] != 0 && path.contains(&0) {
            return Err(Raise::argument("host contains null byte"));
        }
        for (place, byte) in unix.sun_path.iter_mut().zip(path) {
            *place = *byte as libc::c_char;
        }
        let ends = usize::from(path[0] != 0);
        let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len() + ends;
        Ok(Self::of(&unix, length))
    }

    /// For calls that read the address.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// For calls that fill the address in.
    pub fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// The length of the address.
    pub fn length(&self) -> libc::socklen_t {
        self.length
    }

    /// Where the kernel puts the length.
    pub fn length_mut(&mut self) -> &mut libc::socklen_t {
        &mut self.length
    }

    /// As a method returns it: `[host, port]`, a path, or nil if there is none.
    pub unsafe fn to_ruby(self) -> VALUE {
        // SAFETY: the family says which kind of address the storage holds; text is copied.
        unsafe {
            match i32::from(self.storage.ss_family) {
                libc::AF_INET => {
                    let inet = &*self.as_ptr().cast::<libc::sockaddr_in>();
                    let host = IpAddr::from(inet.sin_addr.s_addr.to_ne_bytes());
                    host_and_port(&host.to_string(), u16::from_be(inet.sin_port))
                }
                libc::AF_INET6 => {
                    let inet = &*self.as_ptr().cast::<libc::sockaddr_in6>();
                    let mut host = Ipv6Addr::from(inet.sin6_addr.s6_addr).to_string();
                    if inet.sin6_scope_id != 0 {
                        host = format!("{host}%{}", inet.sin6_scope_id);
                    }
                    host_and_port(&host, u16::from_be(inet.sin6_port))
                }
                libc::AF_UNIX => {
                    let start = std::mem::offset_of!(libc::sockaddr_un, sun_path);
                    let length = (self.length as usize).saturating_sub(start);
                    let path = self.as_ptr().cast::<u8>().add(start);
                    let mut path = std::slice::from_raw_parts(path, length);
                    if path.first().is_some_and(|byte| *byte != 0) {
                        let end = path.iter().position(|byte| *byte == 0);
                        path = &path[..end.unwrap_or(length)];
                    }
                    rb_sys::rb_str_new(path.as_ptr().cast(), path.len() as _)
                }
                _ => NIL,
            }
        }
    }
}

unsafe fn host_and_port(host: &str, port: u16) -> VALUE {
    // SAFETY: the text is copied; the array holds the new String at once.
    unsafe {
        let pair = rb_sys::rb_ary_new();
        rb_sys::rb_ary_push(
            pair,
            rb_sys::rb_utf8_str_new(host.as_ptr().cast(), host.len() as _),
        );
        rb_sys::rb_ary_push(pair, ruby::fixnum(i64::from(port)));
        pair
    }
}

/// The address family of a socket.
pub fn family(fd: i32) -> Result<i32, Raise> {
    option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

/// An option of a socket that is an int.
pub fn option(fd: i32, level: i32, name: i32) -> Result<i32, Raise> {
    let mut value = 0_i32;
    let mut length = std::mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value has the length given.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) };
    crate::os::direct(result)?;
    Ok(value)
}

/// An address for a socket of a family; an IPv4 address can be had through an IPv6 socket (RFC 4291).
pub fn fit(address: SocketAddr, family: i32) -> Option<SocketAddr> {
    match (address, family) {
        (SocketAddr::V4(_), libc::AF_INET) | (SocketAddr::V6(_), libc::AF_INET6) => Some(address),
        (SocketAddr::V4(v4), libc::AF_INET6) => {
            Some(SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())))
        }
        _ => None,
    }
}

/// A numeric address, with a zone if it has one: a number, or the name of an interface.
pub fn parse(text: &str, port: u16) -> Option<SocketAddr> {
    let Some((host, zone)) = text.split_once('%') else {
        return text
            .parse()
            .ok()
            .map(|ip: IpAddr| SocketAddr::new(ip, port));
    };
    let host: Ipv6Addr = host.parse().ok()?;
    let zone = match zone.parse() {
        Ok(number) => number,
        Err(_) => {
            let name = std::ffi::CString::new(zone).ok()?;
            // SAFETY: the name is a C string.
            unsafe { libc::if_nametoindex(name.as_ptr()) }
        }
    };
    Some(SocketAddr::V6(SocketAddrV6::new(host, port, 0, zone)))
}

/// Socket::ResolutionError for a name that has no address.
pub fn unresolved(name: &str) -> Raise {
    let text = format!("getaddrinfo(3): host {name:?}: name or service not known");
    // SAFETY: lib/uringmachine.rb requires "socket", which defines the class.
    Raise::new(unsafe { ruby::class(c"Socket::ResolutionError") }, &text)
}
