//! Descriptors that come in pairs, and those that are registered with the ring.

use std::ffi::c_int;

use crate::machine::caller::{method, number};
use crate::os::direct;
use crate::ruby::{self, arguments, define_all, define_all_singleton, Outcome, Raise, VALUE};

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
unsafe extern "C" fn pipe(argc: c_int, argv: *const VALUE, _class: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the call fills the array.
    unsafe {
        arguments::with(argc, argv, 0..=0, |_| {
            let mut fds = [0; 2];
            direct(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
            pair(fds)
        })
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
unsafe extern "C" fn socketpair(argc: c_int, argv: *const VALUE, _class: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the call fills the array.
    unsafe {
        arguments::with(argc, argv, 3..=3, |arguments| {
            let domain = arguments.int(0, "domain")?;
            let kind = arguments.int(1, "type")? | libc::SOCK_CLOEXEC;
            let protocol = arguments.int(2, "protocol")?;
            let mut fds = [0; 2];
            direct(libc::socketpair(domain, kind, protocol, fds.as_mut_ptr()))?;
            pair(fds)
        })
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
unsafe extern "C" fn register_file(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the block may raise, stopped here.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
            let fd = arguments.fd(0, "fd")?;
            let core = caller.core;
            if let Err(error) = (*core).machine.register_file(fd) {
                return Err(Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)).into());
            }
            if rb_sys::rb_block_given_p() == 0 {
                return Ok(arguments.get(0));
            }
            let result = ruby::protect(|| rb_sys::rb_yield(arguments.get(0)));
            (*core).machine.unregister_file(fd);
            Ok(result.map_err(Raise::Jump)?)
        })
    }
}

/// Takes a file out of the ring that `register_file` has put there.
///
/// @method UringMachine#unregister_file(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] whether it was registered
/// @example
///   machine.unregister_file(fd) #=> true
unsafe extern "C" fn unregister_file(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
            let fd = arguments.fd(0, "fd")?;
            Ok(ruby::boolean((*caller.core).machine.unregister_file(fd)))
        })
    }
}

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods.
    unsafe {
        define_all_singleton(class, &[(c"pipe", pipe), (c"socketpair", socketpair)]);
        define_all(
            class,
            &[
                (c"register_file", register_file),
                (c"unregister_file", unregister_file),
            ],
        );
    }
}
