//! Names, by the system's resolver: /etc/hosts, DNS and whatever nsswitch.conf(5) names. It waits.

use std::ffi::CStr;
use std::net::{SocketAddr, SocketAddrV6, ToSocketAddrs};

use nix::net::if_::if_indextoname;

/// The addresses of a host, numeric, in the order of getaddrinfo(3), each once.
pub fn look_up(name: &CStr) -> Vec<String> {
    let found = (name.to_str().ok()).and_then(|name| (name, 0).to_socket_addrs().ok());
    let mut addresses = Vec::new();
    for address in found.into_iter().flatten() {
        let address = match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => numeric(&address),
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// An address as text, with its zone if it has one, as getnameinfo(3) writes it: an interface's name, where that is what
/// it means.
fn numeric(address: &SocketAddrV6) -> String {
    let (ip, zone) = (address.ip(), address.scope_id());
    let text = match (ip.segments(), ip.to_ipv4()) {
        // An IPv4 address in the old form (RFC 4291, 2.5.5.1): inet_ntop(3) writes it so.
        ([0, 0, 0, 0, 0, 0, high, _], Some(ipv4)) if high != 0 => format!("::{ipv4}"),
        _ => ip.to_string(),
    };
    if zone == 0 {
        return text;
    }
    // Multicast, of the link's scope (RFC 4291, 2.7).
    let is_multicast = matches!(ip.octets(), [0xff, second, ..] if second & 0xf == 2);
    let is_local = is_multicast || ip.is_unicast_link_local();
    let name = if_indextoname(zone).unwrap_or_default();
    match name.to_str() {
        // nix has an empty name for what has none.
        Ok(name) if is_local && !name.is_empty() => format!("{text}%{name}"),
        _ => format!("{text}%{zone}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str, zone: u32) -> String {
        numeric(&SocketAddrV6::new(address.parse().unwrap(), 0, 0, zone))
    }

    #[test]
    fn an_address_is_written_as_getnameinfo_does() {
        assert_eq!(text("::1", 0), "::1");
        assert_eq!(text("::", 0), "::");
        assert_eq!(text("::1.2.3.4", 0), "::1.2.3.4");
        assert_eq!(text("::ffff:1.2.3.4", 0), "::ffff:1.2.3.4");
        assert_eq!(text("fe80::1", 1), "fe80::1%lo");
        assert_eq!(text("ff02::1", 1), "ff02::1%lo");
        assert_eq!(text("2001:db8::1", 1), "2001:db8::1%1");
        assert_eq!(text("fe80::1", 4_000_000), "fe80::1%4000000");
    }

    #[test]
    fn a_numeric_host_is_its_own_address_once() {
        assert_eq!(look_up(c"127.0.0.1"), ["127.0.0.1"]);
        assert_eq!(look_up(c"::1"), ["::1"]);
        assert!(look_up(c"\xff").is_empty());
    }
}
