//! Descriptors that come in pairs.

use std::ffi::c_int;

use super::{define_all_singleton, direct, number};
use crate::arguments;
use crate::sys::{Outcome, VALUE};

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

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods.
    unsafe {
        define_all_singleton(class, &[(c"pipe", pipe), (c"socketpair", socketpair)]);
    }
}
