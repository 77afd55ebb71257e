//! TLS of Ruby's SSLSockets over the ring.
//!
//! OpenSSL works on memory ([`bio`]): it is called, returns at once, and what it wants is done by the ring
//! afterwards ([`transport`]). Whatever ends a wait (a timeout, an exception), the connection goes on
//! where it was: bytes that have come stay in its inbound queue, and bytes that OpenSSL has made stay in
//! its outbound queue and go out with the next call ([`wire`]).

mod bio;
mod connection;
mod held;
mod kernel;
mod openssl;
mod receive;
mod send;
mod transport;
mod wire;

use std::os::fd::RawFd;

use magnus::Ruby;
use uringmachine_runtime::memory::MemoryMut;

pub use connection::{Connection, Wait};
pub use held::{is_any_held, is_held};

use crate::machine::caller::Caller;
use crate::machine::operate::Failure;
use crate::machine::owner::{self, Um};
use crate::machine::registry;
use crate::os::Errno;
use crate::ruby::this::This;
use crate::ruby::{self, arguments, classes, is_a, Name, Raise, Shared, Value, NIL, TRUE};
use kernel::Kernel;
use wire::{Keeper, Wire};

/// Whether what was tried may be tried again.
fn is_transient(errno: Errno) -> bool {
    matches!(errno.0, libc::EAGAIN | libc::EINTR)
}

/// Reads what there is from a TLS connection, at most as much as there is room for, waiting until there is something;
/// 0 at its end, that is, once the peer has sent its close_notify.
///
/// Errors: OpenSSL::SSL::SSLError for those of the protocol, an end without close_notify among them;
/// the Errno for those of the descriptor; TypeError for what is no SSLSocket. An exception that ends the
/// wait loses nothing.
pub fn read(caller: &Caller, object: Value, memory: &mut impl MemoryMut) -> Result<usize, Failure> {
    caller.machine.take_turns(caller.me)?;
    Connection::find(object)?.read(caller, memory, Wait::Forever)
}

/// Writes every byte of every String and IO::Buffer to a TLS connection, and returns how many once the
/// kernel has them all. Small ones share records. Writes of other fibers come before or after. What the fiber is to
/// raise when OpenSSL has taken some ends it with their count: see [`keep_for_later`].
///
/// Errors as [`read`], and UM::Error for what is no buffer.
pub fn write_all(caller: &Caller, object: Value, buffers: &[Value]) -> Result<u64, Failure> {
    let connection = Connection::find(object)?;
    write_counted(caller, &connection, buffers, None, Wait::Forever)
}

/// As [`write_all`], the first `length` bytes of each buffer.
pub fn write_counted(
    caller: &Caller,
    connection: &Connection,
    buffers: &[Value],
    length: Option<usize>,
    wait: Wait,
) -> Result<u64, Failure> {
    let mut accepted = 0;
    match write_some(caller, connection, buffers, length, wait, &mut accepted) {
        Err(failure) if accepted > 0 => keep_for_later(caller, connection, failure)?,
        result => result?,
    }
    Ok(accepted)
}

/// Keeps what ended a write of which OpenSSL has taken some bytes: those go out with the next call, so their count is
/// the answer, or the program would send them again. What the fiber is to raise is raised at its next wait; the end of
/// `io.timeout` shows in the next call. An error of the connection is raised: nothing goes out any more.
fn keep_for_later(
    caller: &Caller,
    connection: &Connection,
    failure: Failure,
) -> Result<(), Failure> {
    let raise = match failure {
        Failure::Timeout | Failure::Scheduled(_) => return Ok(()),
        Failure::Raise(raise) => raise,
    };
    match &raise {
        Raise::Exception(error) if is_a(*error, classes::io_timeout_error()) => return Ok(()),
        Raise::Exception(error)
            if !connection.ssl.openssl.is_error(*error) && connection.descriptor().is_ok() => {}
        Raise::Unwind => {}
        _ => return Err(raise.into()),
    }
    let me = caller.machine.current_task();
    let kept = caller.machine.parts().keep_raise(me, raise);
    Ok(kept?)
}

/// As [`write_all`], the first `length` bytes of each buffer. `accepted` is how many OpenSSL has taken,
/// also when it fails: those are not to be written again.
pub fn write_some(
    caller: &Caller,
    connection: &Connection,
    buffers: &[Value],
    length: Option<usize>,
    wait: Wait,
    accepted: &mut u64,
) -> Result<(), Failure> {
    caller.machine.take_turns(caller.me)?;
    let mut sources = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        sources.push(caller.source(*buffer, length, "buffer")?);
    }
    match &sources[..] {
        [only] if connection.kernel_sends() => connection.send(caller, only, wait, accepted),
        _ => connection.write(caller, &sources, wait, accepted),
    }
}

/// UM::TLS::Socket, which makes an SSLSocket's own methods go through the ring.
static SOCKET: Shared = Shared::new();

/// Notes the module, which is a constant.
pub fn set_socket_module(module: Value) {
    SOCKET.set(module);
}

/// What an SSLSocket keeps of us, in instance variables that Ruby code does not see.
static KEEPER: Name = Name::new("__um_wire");
static MACHINE: Name = Name::new("__um_machine");

/// Puts an SSLSocket on the ring of the UM `machine`: gives it a BIO of ours, once, and extends it with
/// UM::TLS::Socket. Its own methods go through that machine when they are called on the machine's thread.
/// With `kernel`, or if its context has OP_ENABLE_KTLS, it uses kernel TLS where that is offered.
pub fn set_bio(machine: Value, object: Value, kernel: bool) -> Result<(), Raise> {
    let connection = Connection::find(object)?;
    if ruby::is_frozen(object) {
        return Err(Raise::argument("ssl_socket is frozen"));
    }
    if !connection.is_on_ring() {
        let ssl = &connection.ssl;
        let (fd, is_socket) = (connection.descriptor()?, connection.is_socket()?);
        let mut offer = Kernel::default();
        if kernel || ssl.enables_kernel() {
            offer = Kernel::of(fd);
            if offer.offered {
                ssl.enable_kernel();
                // A handshake that is over may have given the keys to the kernel.
                (offer.sends, offer.receives) = bio::kernel_of(ssl);
            }
        }
        let wire = Wire::new(fd, is_socket, offer);
        let keeper = Keeper::of(&Ruby::get_with(object.to_magnus()), wire.clone());
        ruby::set_variable(object, KEEPER.id(), keeper)?;
        if bio::give(ssl, wire).is_none() {
            return Err(ssl.openssl.error("BIO_new"));
        }
        ruby::set_variable(object, ruby::id("@__um_bio__"), TRUE)?;
        classes::extend(object, SOCKET.get())?;
    }
    ruby::set_variable(object, MACHINE.id(), machine)
}

/// The UM whose ring an SSLSocket's own methods go through on this thread: the one that it was put on if
/// that is this thread's, else the thread's own.
pub fn machine_of(object: Value) -> Result<This<Um>, Raise> {
    let machine = ruby::variable(object, MACHINE.id());
    if machine != NIL {
        let machine = owner::find(machine)?;
        if machine.machine()?.is_own() {
            return Ok(machine);
        }
    }
    let module = classes::at("UringMachine::TLS")?;
    owner::find(ruby::call(module, "machine", &[])?)
}

/// The error for an argument that is no SSLSocket.
fn no_ssl_socket(value: Value) -> Raise {
    arguments::wrong_type(value, "ssl_socket", "an OpenSSL::SSL::SSLSocket")
}

/// Before a descriptor is closed, or becomes another file's: as [`registry::end_waits`], with what TLS has of it.
pub fn end_waits(fd: RawFd) -> registry::EndedWaits {
    held::forget(fd);
    registry::end_waits(fd)
}
