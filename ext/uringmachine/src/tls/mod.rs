//! TLS of Ruby's SSLSockets over the ring.
//!
//! OpenSSL works on memory ([`bio`]): it is called, returns at once, and what it wants is done by the ring
//! afterwards ([`transport`]). Whatever ends a wait (a timeout, an exception), the connection goes on
//! where it was: bytes that have come stay in its inbound queue, and bytes that OpenSSL has made stay in
//! its outbound queue and go out with the next call.

pub mod bio;
mod connection;
mod kernel;
pub mod openssl;
mod transport;

use std::sync::atomic::{AtomicU64, Ordering};

pub use bio::{forget, is_any_held, is_held};
pub use connection::{Connection, Wait};

use crate::lending::Source;
use crate::machine::caller::Caller;
use crate::machine::switch::{self, Failure};
use crate::machine::{owner, registry};
use crate::ruby::{self, arguments, Raise, NIL, TRUE, VALUE};
use std::os::fd::RawFd;

/// Reads what there is from a TLS connection, at most `length` bytes, waiting until there is something;
/// 0 at its end, that is, once the peer has sent its close_notify.
///
/// Errors: OpenSSL::SSL::SSLError for those of the protocol, an end without close_notify among them;
/// the Errno for those of the descriptor; TypeError for what is no SSLSocket. An exception that ends the
/// wait loses nothing.
///
/// # Safety
/// `pointer` has room for `length` bytes until this returns, though Ruby runs meanwhile. `object` is on
/// the caller's frame or marked by other means.
pub unsafe fn read(
    caller: &Caller,
    object: VALUE,
    pointer: *mut u8,
    length: usize,
) -> Result<usize, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        switch::take_turns(caller.core, caller.me)?;
        Connection::find(object)?.read(caller, pointer, length, None, Wait::Forever)
    }
}

/// Writes every byte of every String and IO::Buffer to a TLS connection, and returns how many once the
/// kernel has them all. Small ones share records. Writes of other fibers come before or after. What the fiber is to
/// raise when OpenSSL has taken some ends it with their count: see [`keep_for_later`].
///
/// Errors as [`read`], and UM::Error for what is no buffer.
///
/// # Safety
/// `object` and the buffers are on the caller's frame or marked by other means.
pub unsafe fn write_all(caller: &Caller, object: VALUE, buffers: &[VALUE]) -> Result<u64, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let connection = Connection::find(object)?;
        let wait = Wait::Forever;
        write_counted(caller, &connection, buffers, None, wait)
    }
}

/// As [`write_all`], the first `length` bytes of each buffer.
///
/// # Safety
/// As [`write_all`].
pub unsafe fn write_counted(
    caller: &Caller,
    connection: &Connection,
    buffers: &[VALUE],
    length: Option<usize>,
    wait: Wait,
) -> Result<u64, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut accepted = 0;
        match write_some(caller, connection, buffers, length, wait, &mut accepted) {
            Err(failure) if accepted > 0 => keep_for_later(caller, connection, failure)?,
            result => result?,
        }
        Ok(accepted)
    }
}

/// Keeps what ended a write of which OpenSSL has taken some bytes: those go out with the next call, so their count is
/// the answer, or the program would send them again. What the fiber is to raise is raised at its next wait; the end of
/// `io.timeout` shows in the next call. An error of the connection is raised: nothing goes out any more.
unsafe fn keep_for_later(
    caller: &Caller,
    connection: &Connection,
    failure: Failure,
) -> Result<(), Failure> {
    // SAFETY: the core is alive while one of its fibers runs a method.
    unsafe {
        match failure {
            Failure::Timeout | Failure::Scheduled(_) => Ok(()),
            Failure::Raise(Raise::Exception(error)) => {
                if ruby::is_a(error, ruby::io_timeout_error()) {
                    return Ok(());
                }
                let raise = Raise::Exception(error);
                if connection.openssl.is_error(error) || connection.descriptor().is_err() {
                    return Err(raise.into());
                }
                let me = (*caller.core).current_task();
                Ok((*caller.core).keep_raise(me, raise)?)
            }
            Failure::Raise(Raise::Unwind) => {
                let me = (*caller.core).current_task();
                Ok((*caller.core).keep_raise(me, Raise::Unwind)?)
            }
            failure => Err(failure),
        }
    }
}

/// As [`write_all`], the first `length` bytes of each buffer. `accepted` is how many OpenSSL has taken,
/// also when it fails: those are not to be written again.
///
/// # Safety
/// As [`write_all`].
pub unsafe fn write_some(
    caller: &Caller,
    connection: &Connection,
    buffers: &[VALUE],
    length: Option<usize>,
    wait: Wait,
    accepted: &mut u64,
) -> Result<(), Failure> {
    // SAFETY: the sources keep the memory in place until they are released, and their objects are held
    // by the core meanwhile; waits are protected, so this frame's vectors are dropped.
    unsafe {
        let core = caller.core;
        switch::take_turns(core, caller.me)?;
        let mut sources = Vec::with_capacity(buffers.len());
        let mut result = Ok(());
        for buffer in buffers {
            match Source::new(core, *buffer, length, "buffer") {
                Ok(source) => sources.push(source),
                Err(raise) => {
                    result = Err(Failure::Raise(raise));
                    break;
                }
            }
        }
        if result.is_ok() {
            let held = sources.iter().map(Source::held).collect();
            let hold = (*core).lending.holds.insert(held);
            let pieces: Vec<&[u8]> = sources
                .iter()
                .map(|source| std::slice::from_raw_parts(source.pointer, source.length))
                .collect();
            result = match &sources[..] {
                [only] if connection.kernel_sends() => {
                    connection.send(caller, pieces[0], only.fixed, wait, accepted)
                }
                _ => connection.write(caller, &pieces, wait, accepted),
            };
            (*core).lending.holds.remove(hold);
        }
        for source in sources {
            source.release(core);
        }
        result
    }
}

/// UM::TLS::Socket, which makes an SSLSocket's own methods go through the ring.
static SOCKET: AtomicU64 = AtomicU64::new(0);

/// Notes the module.
pub fn set_socket_module(module: VALUE) {
    SOCKET.store(module, Ordering::Relaxed);
}

/// What an SSLSocket keeps of us, in instance variables that Ruby code does not see.
fn keeper_variable() -> ruby::ID {
    ruby::id("__um_wire")
}

fn machine_variable() -> ruby::ID {
    ruby::id("__um_machine")
}

/// Puts an SSLSocket on the ring of the UM `machine`: gives it a BIO of ours, once, and extends it with
/// UM::TLS::Socket. Its own methods go through that machine when they are called on the machine's thread.
/// With `kernel`, or if its context has OP_ENABLE_KTLS, it uses kernel TLS where that is offered.
///
/// # Safety
/// `object` is on the caller's frame or marked by other means.
pub unsafe fn set_bio(machine: VALUE, object: VALUE, kernel: bool) -> Result<(), Raise> {
    // SAFETY: what may raise is protected; the SSL takes the BIO.
    unsafe {
        let connection = Connection::find(object)?;
        if ruby::is_frozen(object) {
            return Err(Raise::argument("ssl_socket is frozen"));
        }
        if connection.wire.is_null() {
            let fd = connection.descriptor()?;
            let (openssl, ssl) = (connection.openssl, connection.ssl);
            let mut wire = bio::Wire::default();
            wire.fd = fd;
            wire.is_socket = connection.is_socket()?;
            if kernel || (openssl.SSL_get_options)(ssl) & openssl::KERNEL_TLS != 0 {
                wire.kernel = kernel::Kernel::of(fd);
                if wire.kernel.offered {
                    (openssl.SSL_set_options)(ssl, openssl::KERNEL_TLS);
                    // A handshake that is over may have given the keys to the kernel.
                    let (sends, receives) = bio::kernel_of(openssl, ssl);
                    wire.kernel.sends = sends;
                    wire.kernel.receives = receives;
                }
            }
            let Some((bio, keeper)) = bio::make(connection.openssl, wire) else {
                return Err(connection.openssl.error("BIO_new"));
            };
            (connection.openssl.SSL_set_bio)(connection.ssl, bio, bio);
            rb_sys::rb_ivar_set(object, keeper_variable(), keeper);
            rb_sys::rb_ivar_set(object, ruby::id("@__um_bio__"), TRUE);
            ruby::protect(|| {
                rb_sys::rb_extend_object(object, SOCKET.load(Ordering::Relaxed));
                NIL
            })
            .map_err(Raise::Jump)?;
        }
        rb_sys::rb_ivar_set(object, machine_variable(), machine);
        Ok(())
    }
}

/// The UM whose ring an SSLSocket's own methods go through on this thread: the one that it was put on if
/// that is this thread's, else the thread's own.
///
/// # Safety
/// `object` is an SSLSocket.
pub unsafe fn machine_of(object: VALUE) -> Result<VALUE, Raise> {
    // SAFETY: what may raise is protected.
    unsafe {
        let machine = rb_sys::rb_attr_get(object, machine_variable());
        if machine != NIL {
            let core = owner::core(machine)?;
            if (*core).thread() == ruby::rb_thread_current() && !(*core).is_forked() {
                return Ok(machine);
            }
        }
        ruby::protect(|| {
            let module = rb_sys::rb_path2class(c"UringMachine::TLS".as_ptr());
            ruby::funcall(module, ruby::id("machine"), &[])
        })
        .map_err(Raise::Jump)
    }
}

/// The error for an argument that is no SSLSocket.
fn no_ssl_socket(value: VALUE) -> Raise {
    arguments::wrong_type(value, "ssl_socket", "an OpenSSL::SSL::SSLSocket")
}

/// Before a descriptor is closed, or becomes another file's: as [`registry::end_waits`], with what TLS has of it.
///
/// # Safety
/// As [`registry::end_waits`].
pub unsafe fn end_waits(fd: RawFd) -> registry::EndedWaits {
    forget(fd);
    // SAFETY: the caller's promise.
    unsafe { registry::end_waits(fd) }
}
