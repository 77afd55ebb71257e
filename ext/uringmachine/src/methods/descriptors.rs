//! Descriptors that come in pairs, and those that are registered with the ring.

use std::os::fd::{IntoRawFd, RawFd};

use magnus::{Error, RClass};

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::os::{fd, socket};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::function;
use crate::ruby::{self, number, Outcome, Raise};

/// Two descriptors as a method returns them.
fn pair(fds: [RawFd; 2]) -> Outcome {
    ruby::array_of(&fds.map(number))
}

/// Makes a pipe. Both ends are close-on-exec.
///
/// @method UringMachine.pipe
/// @return [Array(Integer, Integer)] the descriptor to read from, and the one to write to
/// @raise [SystemCallError] as pipe(2)
/// @example
///   reader, writer = UM.pipe
fn pipe(_: Arguments) -> Outcome {
    let (reader, writer) = fd::pipe()?;
    pair([reader.into_raw_fd(), writer.into_raw_fd()])
}

/// Makes two sockets that are connected to each other. Both are close-on-exec.
///
/// @method UringMachine.socketpair(domain, type, protocol)
/// @param domain [Integer] an address family, as UM::AF_UNIX
/// @param type [Integer] a type of socket, as UM::SOCK_STREAM
/// @param protocol [Integer] 0 for the type's own
/// @return [Array(Integer, Integer)] the descriptors
/// @raise [SystemCallError] as socketpair(2)
/// @example
///   left, right = UM.socketpair(UM::AF_UNIX, UM::SOCK_STREAM, 0)
fn socketpair(arguments: Arguments) -> Outcome {
    let domain = arguments.int(0, "domain")?;
    let kind = arguments.int(1, "type")? | libc::SOCK_CLOEXEC;
    let protocol = arguments.int(2, "protocol")?;
    pair(socket::pair(domain, kind, protocol)?)
}

/// Registers the file of a descriptor with the ring: operations on that descriptor need no look-up from now on,
/// which saves about 40 ns each. For one that lives long and is used much.
///
/// The ring holds the file open until `unregister_file`, the machine's `close`, or, under the machine's scheduler, the
/// IO's: a peer sees no end before, whatever else closes the descriptor. With a block the file is registered while
/// it runs. At most 1,024 are.
///
/// @method UringMachine#register_file(fd, &block)
/// @param fd [Integer] file descriptor
/// @yieldparam fd [Integer]
/// @return [Integer, Object] fd, or what the block returns
/// @raise [SystemCallError] Errno::EBADF if it is closed, Errno::ENOBUFS if 1,024 files are registered
/// @kernel 5.19
/// @example
///   machine.register_file(fd) { |fd| machine.write(fd, "tick\n") while machine.sleep(1) }
fn register_file(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let registered = caller.machine.parts().driver.register_file(fd);
    registered.map_err(|error| Raise::of(&error, libc::EINVAL))?;
    if !ruby::block_given() {
        return Ok(arguments.get(0));
    }
    let result = ruby::yield_(arguments.get(0));
    caller.machine.parts().driver.unregister_file(fd);
    Ok(result?)
}

/// Takes a file out of the ring that `register_file` has put there.
///
/// @method UringMachine#unregister_file(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] whether it was registered
/// @example
///   machine.unregister_file(fd) #=> true
fn unregister_file(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let was_registered = caller.machine.parts().driver.unregister_file(fd);
    Ok(ruby::boolean(was_registered))
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    function!(class, "pipe", 0..=0, pipe);
    function!(class, "socketpair", 3..=3, socketpair);
    machine_method!(class, "register_file", 1..=1, register_file);
    machine_method!(class, "unregister_file", 1..=1, unregister_file);
    Ok(())
}
