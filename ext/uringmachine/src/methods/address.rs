//! The addresses that a method's arguments name.

use crate::machine::caller::Caller;
use crate::off_thread::resolver;
use crate::os::socket_address::{family, fit, parse, unresolved, Address};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{string, Raise, NIL};

/// The addresses that arguments (host, port) mean for a socket, at least one: a path for a UNIX socket; an
/// address, or a name to be looked up, for others.
pub fn read(
    caller: &Caller,
    fd: i32,
    arguments: &Arguments,
    place: usize,
) -> Result<Vec<Address>, Raise> {
    let host = arguments::string(arguments.get(place), "host")?;
    let family = family(fd)?;
    if family == libc::AF_UNIX {
        return Ok(vec![Address::unix(&string::copy(host))?]);
    }
    let port = match arguments.optional(place + 1) {
        None => return Err(arguments::wrong_type(NIL, "port", "an Integer")),
        Some(port) => arguments::long(port, "port")?,
    };
    let port = u16::try_from(port).map_err(|_| arguments::out_of_range("port", port))?;
    let name = arguments.c_string(place, "host")?;
    let text = name.to_str().unwrap_or_default();
    let addresses = match parse(text, port) {
        Some(address) => vec![address],
        None => resolver::resolve(caller.machine, caller.me, name.clone())?
            .iter()
            .filter_map(|address| parse(address, port))
            .collect(),
    };
    if addresses.is_empty() {
        return Err(unresolved(text));
    }
    let fitting: Vec<Address> = addresses
        .iter()
        .filter_map(|address| fit(*address, family))
        .map(Address::inet)
        .collect();
    if fitting.is_empty() {
        return Err(Raise::argument(&format!(
            "host {text} has no address of the socket's family"
        )));
    }
    Ok(fitting)
}
