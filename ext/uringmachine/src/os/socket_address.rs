//! Socket addresses: from what a method is given to what the kernel takes, and back.

use std::ffi::CString;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use libc::{sa_family_t, sockaddr_in, sockaddr_in6, sockaddr_storage, sockaddr_un, socklen_t};
use nix::net::if_::if_nametoindex;

use super::socket;
use crate::ruby::{self, classes, fixnum, string, Outcome, Raise, NIL};

/// The most bytes of an address.
const ROOM: usize = size_of::<sockaddr_storage>();

/// Where the path of a UNIX socket's address begins, and how long it may be.
const PATH: usize = offset_of!(sockaddr_un, sun_path);
const MOST: usize = size_of::<sockaddr_un>() - PATH;

/// An address as the kernel takes it: the bytes of a struct sockaddr.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Address {
    bytes: [u8; ROOM],
    length: socklen_t,
}

/// What an address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A host and a port.
    Inet(String, u16),
    /// The path of a UNIX socket; empty, if it has none; with a zero byte first it is an abstract name.
    Unix(Vec<u8>),
    /// Nothing that is known.
    Nothing,
}

impl Address {
    /// Room for an address that the kernel fills in.
    pub fn empty() -> Self {
        Self {
            bytes: [0; ROOM],
            length: ROOM as socklen_t,
        }
    }

    /// Room for an address, for an operation to own: see [`Address::told`].
    pub fn room() -> Box<[u8]> {
        Box::new([0; ROOM])
    }

    /// The address that the kernel has put into such room: so many bytes, of which there may have been room for some.
    pub fn told(room: &[u8], length: usize) -> Self {
        let bytes = &room[..length.min(room.len()).min(ROOM)];
        Self::family(0).with(0, bytes).of_length(bytes.len())
    }

    fn family(family: i32) -> Self {
        Self::empty().with(0, &(family as sa_family_t).to_ne_bytes())
    }

    fn with(mut self, place: usize, bytes: &[u8]) -> Self {
        self.bytes[place..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn of_length(mut self, length: usize) -> Self {
        self.length = length as socklen_t;
        self
    }

    /// An Internet address (ip(7), ipv6(7)).
    pub fn inet(address: SocketAddr) -> Self {
        let port = address.port().to_be_bytes();
        match address {
            SocketAddr::V4(address) => Self::family(libc::AF_INET)
                .with(offset_of!(sockaddr_in, sin_port), &port)
                .with(offset_of!(sockaddr_in, sin_addr), &address.ip().octets())
                .of_length(size_of::<sockaddr_in>()),
            SocketAddr::V6(address) => Self::family(libc::AF_INET6)
                .with(offset_of!(sockaddr_in6, sin6_port), &port)
                .with(offset_of!(sockaddr_in6, sin6_addr), &address.ip().octets())
                .with(
                    offset_of!(sockaddr_in6, sin6_scope_id),
                    &address.scope_id().to_ne_bytes(),
                )
                .of_length(size_of::<sockaddr_in6>()),
        }
    }

    /// A path of a UNIX socket; one that begins with a zero byte is an abstract name (unix(7)).
    pub fn unix(path: &[u8]) -> Result<Self, Raise> {
        Self::of_path(path).map_err(|text| Raise::argument(&text))
    }

    fn of_path(path: &[u8]) -> Result<Self, String> {
        // A path is ended by a zero byte; a name is not.
        let ends = usize::from(path.first() != Some(&0));
        let most = MOST - ends;
        if path.is_empty() || path.len() > most {
            return Err(format!(
                "host: a UNIX socket's path has 1 to {most} bytes, not {}",
                path.len()
            ));
        }
        if path[0] != 0 && path.contains(&0) {
            return Err("host contains null byte".into());
        }
        Ok(Self::family(libc::AF_UNIX)
            .with(PATH, path)
            .of_length(PATH + path.len() + ends))
    }

    /// The bytes of the address.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..(self.length as usize).min(ROOM)]
    }

    /// The bytes of the address, for an operation to own.
    pub fn into_memory(self) -> Box<[u8]> {
        self.bytes().into()
    }

    /// So many bytes of the address, from a place on.
    fn part<const N: usize>(&self, place: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.bytes[place..][..N]);
        part
    }

    /// What it names.
    pub fn name(&self) -> Name {
        match i32::from(sa_family_t::from_ne_bytes(self.part(0))) {
            libc::AF_INET => {
                let host = Ipv4Addr::from(self.part::<4>(offset_of!(sockaddr_in, sin_addr)));
                let port = self.part(offset_of!(sockaddr_in, sin_port));
                Name::Inet(host.to_string(), u16::from_be_bytes(port))
            }
            libc::AF_INET6 => {
                let host = Ipv6Addr::from(self.part::<16>(offset_of!(sockaddr_in6, sin6_addr)));
                let port = self.part(offset_of!(sockaddr_in6, sin6_port));
                let zone = self.part(offset_of!(sockaddr_in6, sin6_scope_id));
                let host = match u32::from_ne_bytes(zone) {
                    0 => host.to_string(),
                    zone => format!("{host}%{zone}"),
                };
                Name::Inet(host, u16::from_be_bytes(port))
            }
            libc::AF_UNIX => {
                let path = self.bytes().get(PATH..).unwrap_or_default();
                let end = match path.iter().position(|byte| *byte == 0) {
                    Some(0) | None => path.len(),
                    Some(end) => end,
                };
                Name::Unix(path[..end].to_vec())
            }
            _ => Name::Nothing,
        }
    }

    /// As a method returns it: `[host, port]`, a path, or nil if there is none.
    pub fn to_ruby(self) -> Outcome {
        match self.name() {
            Name::Inet(host, port) => ruby::array_of(&[string::utf8(&host)?, fixnum(port.into())]),
            Name::Unix(path) => string::binary(&path),
            Name::Nothing => Ok(NIL),
        }
    }
}

/// The address family of a socket.
pub fn family(fd: i32) -> Result<i32, Raise> {
    option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

/// An option of a socket that is an int.
pub fn option(fd: i32, level: i32, name: i32) -> Result<i32, Raise> {
    Ok(socket::option(fd, level, name)?)
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
            let name = CString::new(zone).ok()?;
            if_nametoindex(name.as_c_str()).unwrap_or(0)
        }
    };
    Some(SocketAddr::V6(SocketAddrV6::new(host, port, 0, zone)))
}

/// Socket::ResolutionError for a name that has no address.
pub fn unresolved(name: &str) -> Raise {
    let text = format!("getaddrinfo(3): host {name:?}: name or service not known");
    // lib/uringmachine.rb requires "socket", which defines the class.
    match classes::at("Socket::ResolutionError") {
        Ok(class) => Raise::new(class, &text),
        Err(raise) => raise,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;

    use super::*;

    fn inet(text: &str, port: u16) -> Name {
        Name::Inet(text.into(), port)
    }

    #[test]
    fn what_was_made_of_a_name_names_it() {
        for text in ["127.0.0.1", "::1", "fe80::1%7"] {
            let address = Address::inet(parse(text, 4711).unwrap());
            assert_eq!(address.name(), inet(text, 4711));
            let memory = address.into_memory();
            let length = [16, 28][usize::from(text.contains(':'))];
            assert_eq!(memory.len(), length);
            assert_eq!(Address::told(&memory, length).name(), inet(text, 4711));
        }
        assert_eq!(Address::empty().name(), Name::Nothing);
    }

    #[test]
    fn a_path_ends_by_a_zero_byte_and_a_name_does_not() {
        for (path, length) in [(&b"/tmp/x"[..], 9), (b"\0x\0y", 6)] {
            let address = Address::of_path(path).unwrap();
            assert_eq!(address.bytes().len(), length);
            assert_eq!(address.name(), Name::Unix(path.to_vec()));
        }
        for (most, first) in [(MOST - 1, b'x'), (MOST, 0)] {
            let mut path = vec![b'x'; most];
            path[0] = first;
            let address = Address::of_path(&path).unwrap();
            assert_eq!(address.bytes().len(), size_of::<sockaddr_un>());
            assert_eq!(address.name(), Name::Unix(path.clone()));
            path.push(b'x');
            assert!(Address::of_path(&path).is_err());
        }
        assert!(Address::of_path(b"").is_err() && Address::of_path(b"x\0y").is_err());
        let unnamed = Address::told(&(libc::AF_UNIX as sa_family_t).to_ne_bytes(), 2);
        assert_eq!(unnamed.name(), Name::Unix(Vec::new()));
    }

    #[test]
    fn the_kernel_understands_an_address_and_tells_one() {
        for text in ["127.0.0.1", "::1"] {
            let Ok(listener) = TcpListener::bind((text, 0)) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let told = socket::own_name(listener.as_raw_fd()).unwrap();
            assert_eq!(told.name(), inet(text, port));
            let made = Address::inet(listener.local_addr().unwrap());
            assert_eq!(made.bytes(), told.bytes());
        }
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let fd = socket::socket(libc::AF_INET, kind, 0).unwrap();
        let any = Address::inet(parse("127.0.0.1", 0).unwrap());
        assert_eq!(socket::bind(fd, &any), Ok(()));
        assert!(matches!(
            socket::own_name(fd).unwrap().name(),
            Name::Inet(_, 1..)
        ));
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = socket::peer_name(unconnected.as_raw_fd()).err();
        assert_eq!(error, Some(crate::os::Errno(libc::ENOTCONN)));
        assert_eq!(crate::os::fd::Fd(fd).close(), Ok(()));
    }
}
