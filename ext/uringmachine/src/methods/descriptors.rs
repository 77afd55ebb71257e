//! Descriptors that come in pairs, and those that are registered with the ring.

use std::ffi::c_int;

use magnus::{Error, RClass};

use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::os::direct;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::function;
use crate::ruby::{self, Outcome, Raise};

/// Two descriptors as a method returns them.
unsafe fn pair(fds: [c_int; 2]) -> Outcome {
    // SAFETY: two small numbers, copied.
    Ok(unsafe { rb_sys::rb_assoc_new(number(fds[0]), number(fds[1])) })
}

/// Makes a pipe. Both ends are close-on-exec.
///
/// @method UringMachine.pipe
/// @return [Array(Integer, Integer)] the descriptor to read from, and the one to write to
/// @raise [SystemCallError] as pipe(2)
/// @example
///   reader, writer = UM.pipe
fn pipe(_: Arguments) -> Outcome {
    // SAFETY: the call fills the array.
    unsafe {
        let mut fds = [0; 2];
        direct(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        pair(fds)
    }
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
    // SAFETY: the call fills the array.
    unsafe {
        let domain = arguments.int(0, "domain")?;
        let kind = arguments.int(1, "type")? | libc::SOCK_CLOEXEC;
        let protocol = arguments.int(2, "protocol")?;
        let mut fds = [0; 2];
        direct(libc::socketpair(domain, kind, protocol, fds.as_mut_ptr()))?;
        pair(fds)
    }
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
/// @yield [fd]
/// @return [Integer, Object] fd, or what the block returns
/// @raise [SystemCallError] Errno::EBADF if it is closed, Errno::ENOBUFS if 1,024 files are registered
/// @kernel 5.19
/// @example
///   machine.register_file(fd) { |fd| machine.write(fd, "tick\n") while machine.sleep(1) }
fn register_file(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the block may raise, stopped here.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let core = caller.core;
        if let Err(error) = (*core).driver.register_file(fd) {
            return Err(Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)).into());
        }
        if rb_sys::rb_block_given_p() == 0 {
            return Ok(arguments.get(0));
        }
        let result = ruby::protect(|| rb_sys::rb_yield(arguments.get(0)));
        (*core).driver.unregister_file(fd);
        Ok(result.map_err(Raise::Jump)?)
    }
}

/// Takes a file out of the ring that `register_file` has put there.
///
/// @method UringMachine#unregister_file(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] whether it was registered
/// @example
///   machine.unregister_file(fd) #=> true
fn unregister_file(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        Ok(ruby::boolean((*caller.core).driver.unregister_file(fd)))
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    function!(class, "pipe", 0..=0, pipe);
    function!(class, "socketpair", 3..=3, socketpair);
    machine_method!(class, "register_file", 1..=1, register_file);
    machine_method!(class, "unregister_file", 1..=1, unregister_file);
    Ok(())
}
