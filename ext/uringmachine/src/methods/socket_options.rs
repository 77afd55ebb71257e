//! getsockopt, setsockopt.

use magnus::{Error, RClass};

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::os::socket;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, number, string};

/// @method UringMachine#getsockopt(fd, level, option)
/// @param fd [Integer] file descriptor
/// @param level [Integer] UM::SOL_SOCKET, UM::IPPROTO_TCP …
/// @param option [Integer] UM::SO_REUSEADDR …
/// @return [Integer]
/// @raise [SystemCallError] as getsockopt(2)
/// @example
///   machine.getsockopt(fd, UM::SOL_SOCKET, UM::SO_ERROR) #=> 0
fn getsockopt(_: Caller, arguments: Arguments) -> Answer {
    let (level, option) = (arguments.int(1, "level")?, arguments.int(2, "option")?);
    let value = socket::option(arguments.fd(0, "fd")?, level, option)?;
    Ok(number(value))
}

/// @method UringMachine#setsockopt(fd, level, option, value)
/// @param fd [Integer] file descriptor
/// @param level [Integer] UM::SOL_SOCKET, UM::IPPROTO_TCP …
/// @param option [Integer] UM::SO_REUSEADDR …
/// @param value [Integer, Boolean, String] a String holds the struct the option takes
/// @return [Integer] 0
/// @raise [SystemCallError] as setsockopt(2)
/// @example
///   machine.setsockopt(fd, UM::SOL_SOCKET, UM::SO_REUSEADDR, true)
fn setsockopt(_: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let (level, option) = (arguments.int(1, "level")?, arguments.int(2, "option")?);
    let value = arguments.get(3);
    if ruby::is_string(value) {
        string::with_bytes(value, |bytes| socket::set_option(fd, level, option, bytes))?;
    } else {
        let number = match value {
            ruby::TRUE => 1,
            ruby::FALSE => 0,
            value => arguments::int(value, "value")?,
        };
        socket::set_option(fd, level, option, &number.to_ne_bytes())?;
    }
    Ok(number(0))
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "getsockopt", 3..=3, getsockopt);
    machine_method!(class, "setsockopt", 4..=4, setsockopt);
    Ok(())
}
