//! What a descriptor is, in a few words.

use std::os::fd::RawFd;

use super::socket;
use super::socket_address::{Address, Name};

/// A file's path, a socket's addresses, or what else the kernel calls it (proc(5), /proc/pid/fd); `None` if it is closed.
pub fn describe(fd: RawFd) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let link = link.to_string_lossy();
    if !link.starts_with("socket:") {
        return Some(link.into_owned());
    }
    let option = |name| socket::option(fd, libc::SOL_SOCKET, name);
    let (Ok(family), Ok(kind)) = (option(libc::SO_DOMAIN), option(libc::SO_TYPE)) else {
        return Some(link.into_owned());
    };
    let protocol = match (family, kind) {
        (libc::AF_UNIX, _) => "UNIX socket",
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => "TCP",
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => "UDP",
        _ => return Some(link.into_owned()),
    };
    let own = socket::own_name(fd).ok().and_then(text);
    let peer = socket::peer_name(fd).ok().and_then(text);
    let listens = option(libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0);
    Some(match (own, peer) {
        (Some(own), _) if listens => format!("{protocol} {own}, listening"),
        (Some(own), Some(peer)) => format!("{protocol} {own} to {peer}"),
        (Some(own), None) => format!("{protocol} {own}"),
        (None, Some(peer)) => format!("{protocol} to {peer}"),
        (None, None) => format!("{protocol} {link}"),
    })
}

fn text(address: Address) -> Option<String> {
    match address.name() {
        Name::Inet(host, port) if host.contains(':') => Some(format!("[{host}]:{port}")),
        Name::Inet(host, port) => Some(format!("{host}:{port}")),
        Name::Unix(path) if path.is_empty() => None,
        // An abstract name begins with a zero byte, which is written as an @ (ss(8)).
        Name::Unix(path) => Some(String::from_utf8_lossy(&path).replace('\0', "@")),
        Name::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_told_by_their_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let own = stream.local_addr().unwrap();
        let told = describe(stream.as_raw_fd()).unwrap();
        assert_eq!(told, format!("TCP {own} to {address}"));
        let told = describe(listener.as_raw_fd()).unwrap();
        assert_eq!(told, format!("TCP {address}, listening"));
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = unconnected.local_addr().unwrap();
        let told = describe(unconnected.as_raw_fd()).unwrap();
        assert_eq!(told, format!("UDP {own}"));
        let (one, _other) = UnixStream::pair().unwrap();
        let told = describe(one.as_raw_fd()).unwrap();
        assert!(told.starts_with("UNIX socket socket:["), "{told}");
    }

    #[test]
    fn files_are_told_by_their_paths_and_closed_ones_not_at_all() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(describe(file.as_raw_fd()).unwrap(), "/dev/null");
        assert_eq!(describe(-1), None);
    }
}
