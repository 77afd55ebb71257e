//! ssl_read and its kin, and what UM::TLS::Socket in lib/uringmachine/tls.rb is made of.

#![forbid(unsafe_code)]

use magnus::value::ReprValue;
use magnus::{Error, Module, RClass};

use super::transfer;
use crate::machine::caller::{answer, machine_method, Answer, Caller};
use crate::machine::operate::Failure;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::function;
use crate::ruby::{self, string, symbol, Outcome, Raise, Value, NIL};
use crate::tls::{self, Connection, Wait};

/// Puts an SSLSocket on the ring: its own methods (connect, accept, read, gets, write, close and so on)
/// then let other fibers run where they wait. A second call for the same socket makes it another machine's.
///
/// Called before `connect` or `accept`, or after; not while a handshake is half-way. On another thread than
/// the machine's, the socket's methods go through that thread's own machine.
///
/// @method UringMachine#ssl_set_bio(ssl_socket, kernel: false)
/// @param ssl_socket [OpenSSL::SSL::SSLSocket]
/// @param kernel [Boolean] whether the kernel is to encrypt and decrypt, where it offers that: see
///   UM::SSL.accelerate
/// @return [UringMachine] self
/// @raise [TypeError] if it is no SSLSocket
/// @raise [IOError] if it is closed
/// @raise [UringMachine::Error] if Ruby's openssl extension uses something other than OpenSSL 3
/// @kernel 5.6
/// @example
///   machine.ssl_set_bio(ssl_socket)
///   ssl_socket.connect
fn ssl_set_bio(caller: Caller, arguments: Arguments) -> Answer {
    let kernel = match arguments.optional(1) {
        None => None,
        Some(options) if ruby::is_hash(options) => arguments::keywords(options, ["kernel"])?[0],
        Some(other) => return Err(arguments::wrong_type(other, "kernel", "a keyword").into()),
    };
    let this = caller.machine.object();
    tls::set_bio(this, arguments.get(0), kernel.is_some_and(ruby::truthy))?;
    Ok(this)
}

/// Reads from a TLS connection into a buffer: it returns as soon as there is something. Any number of
/// fibers may read and write the same connection if it was given to `ssl_set_bio`; without that, one may
/// read and one may write.
///
/// @method UringMachine#ssl_read(ssl_socket, buffer, maxlen = nil)
/// @param ssl_socket [OpenSSL::SSL::SSLSocket]
/// @param buffer [String, IO::Buffer] where the bytes go. A String is cut to end with them; an IO::Buffer
///   that is too small is resized. It can't be modified while the operation runs
/// @param maxlen [Integer, nil] the most bytes to read; nil is the size of an IO::Buffer, and 16 KiB for a
///   String
/// @return [Integer] bytes read; 0 once the peer has closed the connection by a close_notify
/// @raise [OpenSSL::SSL::SSLError] with OpenSSL's reason, if the protocol is broken; so it is by an end
///   without close_notify, unless the context has OP_IGNORE_UNEXPECTED_EOF
/// @raise [SystemCallError] as recv(2)
/// @raise [TypeError] if ssl_socket is no SSLSocket
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.6
/// @example
///   buffer = +""
///   machine.ssl_read(ssl_socket, buffer, 8192) #=> 5
fn ssl_read(caller: Caller, arguments: Arguments) -> Answer {
    let connection = Connection::find(arguments.get(0))?;
    let maxlen = transfer::length(&arguments, 2, "maxlen")?;
    let buffer = arguments.get(1);
    let count = read_into(&caller, &connection, buffer, maxlen, Wait::Forever)?;
    Ok(ruby::fixnum(count as i64))
}

fn read_into(
    caller: &Caller,
    connection: &Connection,
    buffer: Value,
    maxlen: Option<usize>,
    wait: Wait,
) -> Result<usize, Failure> {
    let mut room = caller.room(buffer, maxlen, 0, "buffer")?;
    let count = connection.read(caller, &mut room, wait)?;
    room.finish(count)?;
    Ok(count)
}

/// Writes from a buffer to a TLS connection, all of it. Returns when the kernel has the bytes.
///
/// What the fiber is to raise when some bytes are taken (a time limit, an exception) ends it with their count, and is
/// raised at the fiber's next wait. Those that are not sent yet go out with the next call.
///
/// @method UringMachine#ssl_write(ssl_socket, buffer, len = nil)
/// @param ssl_socket [OpenSSL::SSL::SSLSocket]
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil, 0 and -1 are all
/// @return [Integer] bytes written: all of them, unless it was ended
/// @raise [OpenSSL::SSL::SSLError] with OpenSSL's reason, if the protocol is broken
/// @raise [SystemCallError] as send(2)
/// @raise [TypeError] if ssl_socket is no SSLSocket
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.6
/// @example
///   machine.ssl_write(ssl_socket, "Hello, world!\n") #=> 14
fn ssl_write(caller: Caller, arguments: Arguments) -> Answer {
    let connection = Connection::find(arguments.get(0))?;
    let len = transfer::length_or_all(&arguments, 2, "len")?.filter(|len| *len != 0);
    let buffers = &arguments.all()[1..2];
    let written = tls::write_counted(&caller, &connection, buffers, len, Wait::Forever)?;
    Ok(ruby::fixnum(written as i64))
}

/// Runs a function of UM::TLS with the machine for its first argument, an SSLSocket on the ring.
fn on_ring(
    arguments: Arguments,
    body: impl FnOnce(Caller, Connection, Arguments) -> Answer,
) -> Outcome {
    let connection = find(&arguments)?;
    let machine = tls::machine_of(arguments.get(0))?;
    let caller = Caller::new(&machine)?;
    let result = answer(body(caller, connection, arguments));
    machine.keep();
    result
}

fn find(arguments: &Arguments) -> Result<Connection, Raise> {
    let connection = Connection::find(arguments.get(0))?;
    if !connection.is_on_ring() {
        return Err(Raise::misuse(
            "ssl_socket is not on the ring: see ssl_set_bio",
        ));
    }
    Ok(connection)
}

/// UM::TLS.read(ssl_socket, buffer, length): the count, 0 at the end.
fn read(arguments: Arguments) -> Outcome {
    on_ring(arguments, |caller, connection, arguments| {
        let length = transfer::length(&arguments, 2, "length")?;
        let buffer = arguments.get(1);
        let count = read_into(&caller, &connection, buffer, length, Wait::Timeout)?;
        Ok(ruby::fixnum(count as i64))
    })
}

/// UM::TLS.write(ssl_socket, string): writes all of a String and takes off it what OpenSSL has accepted,
/// also when it raises: those bytes go out with the next call.
fn write(arguments: Arguments) -> Outcome {
    on_ring(arguments, |caller, connection, arguments| {
        let text = arguments::string(arguments.get(1), "string")?;
        let buffers = &arguments.all()[1..2];
        let wait = Wait::Timeout;
        let mut accepted = 0;
        let result = tls::write_some(&caller, &connection, buffers, None, wait, &mut accepted);
        let dropped = string::drop_first(text, accepted as usize);
        result?;
        dropped?;
        Ok(NIL)
    })
}

/// UM::TLS.write_counted(ssl_socket, string): writes all of a String; how much of it OpenSSL has accepted.
fn write_counted(arguments: Arguments) -> Outcome {
    on_ring(arguments, |caller, connection, arguments| {
        let buffers = &arguments.all()[1..2];
        let written = tls::write_counted(&caller, &connection, buffers, None, Wait::Timeout)?;
        Ok(ruby::fixnum(written as i64))
    })
}

/// UM::TLS.drive(ssl_socket) { stock method that does not wait }: calls it until it wants nothing more, and
/// does what it wants by the ring. What it returns.
fn drive(arguments: Arguments) -> Outcome {
    on_ring(arguments, |caller, connection, _| loop {
        let wanted = step(&connection)?;
        if wanted == wait_readable() {
            connection.exchange(&caller, Wait::Timeout)?;
            continue;
        }
        if wanted == wait_writable() {
            connection.make_room(&caller, Wait::Timeout)?;
            continue;
        }
        connection.flush(&caller, Wait::Timeout)?;
        return Ok(wanted);
    })
}

/// UM::TLS.attempt(ssl_socket) { the same }: calls it until it wants what can't be done without waiting.
fn attempt(arguments: Arguments) -> Outcome {
    let connection = find(&arguments)?;
    loop {
        let wanted = step(&connection)?;
        connection.send_now();
        if wanted != wait_readable() || !connection.receive_now()? {
            return Ok(wanted);
        }
    }
}

fn step(connection: &Connection) -> Outcome {
    connection.claim()?;
    let result = ruby::run_block();
    connection.unclaim();
    if result.is_err() {
        // Tells the peer why.
        connection.send_now();
    }
    result
}

fn wait_readable() -> Value {
    symbol("wait_readable")
}

fn wait_writable() -> Value {
    symbol("wait_writable")
}

/// UM::TLS.takes_now?(ssl_socket): whether a write would not have to wait.
fn takes_now(arguments: Arguments) -> Outcome {
    Ok(ruby::boolean(find(&arguments)?.takes_now()?))
}

/// UM::TLS.kernel_sends?(ssl_socket): whether bytes that are written to its IO are encrypted by the kernel.
fn kernel_sends(arguments: Arguments) -> Outcome {
    let connection = Connection::find(arguments.get(0))?;
    Ok(ruby::boolean(connection.kernel_sends()))
}

/// UM::TLS.kernel_receives?(ssl_socket): whether bytes that are read from its IO come decrypted by the kernel.
fn kernel_receives(arguments: Arguments) -> Outcome {
    let connection = Connection::find(arguments.get(0))?;
    Ok(ruby::boolean(connection.kernel_receives()))
}

/// UM::TLS.holds_bytes?(ssl_socket): whether OpenSSL has bytes that came from the descriptor.
fn holds_bytes(arguments: Arguments) -> Outcome {
    Ok(ruby::boolean(find(&arguments)?.holds_bytes()))
}

/// UM::TLS.check_peer(ssl_socket): raises Errno::EPIPE if the peer has reset a connection that the kernel encrypts,
/// for what writes to the descriptor itself.
fn check_peer(arguments: Arguments) -> Outcome {
    let connection = find(&arguments)?;
    connection.check_peer(connection.descriptor()?)?;
    Ok(NIL)
}

/// UM::TLS.abandon(ssl_socket): has the fibers raise that wait for its descriptor.
fn abandon(arguments: Arguments) -> Outcome {
    find(&arguments)?.abandon();
    Ok(NIL)
}

/// Defines the methods, and the module behind UM::TLS::Socket.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "ssl_set_bio", 1..=2, ssl_set_bio);
    machine_method!(class, "ssl_read", 2..=3, ssl_read);
    machine_method!(class, "ssl_write", 2..=3, ssl_write);
    let module = class.define_module("TLS")?;
    function!(module, "read", 3..=3, read);
    function!(module, "write", 2..=2, write);
    function!(module, "write_counted", 2..=2, write_counted);
    function!(module, "drive", 1..=1, drive);
    function!(module, "attempt", 1..=1, attempt);
    function!(module, "takes_now?", 1..=1, takes_now);
    function!(module, "kernel_sends?", 1..=1, kernel_sends);
    function!(module, "kernel_receives?", 1..=1, kernel_receives);
    function!(module, "holds_bytes?", 1..=1, holds_bytes);
    function!(module, "check_peer", 1..=1, check_peer);
    function!(module, "abandon", 1..=1, abandon);
    let socket = module.define_module("Socket")?;
    tls::set_socket_module(socket.as_value().into());
    Ok(())
}
