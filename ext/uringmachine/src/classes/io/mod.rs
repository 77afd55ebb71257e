//! UM::IO: a buffered stream over a descriptor or a TLS connection.
//!
//! Bytes come by multishot read or receive into the machine's provided buffers, and from there into a queue that all
//! reads of the descriptor share ([`crate::machine::inflow`]). A stream whose bytes are not consumed is stopped (see
//! [`crate::methods::streams`]), so a fast peer fills no memory.

mod reader;
mod reading;
mod resp;

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};
use uringmachine_runtime::multishot::Arrivals;

use crate::machine::caller::{answer, Caller};
use crate::machine::discards::{Discarded, Discards};
use crate::machine::inflow::Flow;
use crate::machine::multishot::Running;
use crate::machine::operate::Failure;
use crate::machine::owner::{self, Um};
use crate::machine::write_all::{write_all, Sink};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::this::This;
use crate::ruby::{classes, fixnum, is_a, symbol, values, Outcome, Raise, Value, NIL};
use crate::tls;

use reader::reading;

/// What is read from, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// read and write.
    Fd,
    /// recv and send.
    Socket,
    /// The machine's TLS.
    Ssl,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Fd => "fd",
            Self::Socket => "socket",
            Self::Ssl => "ssl",
        }
    }
}

/// What a UM::IO holds. Nothing that runs Ruby, or allocates, is called while any of it is borrowed.
#[derive(TypedData)]
#[magnus(class = "UringMachine::IO", mark, size)]
pub struct Io {
    /// The UM it belongs to; `NIL` before it is initialized.
    machine: Cell<Value>,
    mode: Cell<Mode>,
    fd: Cell<i32>,
    /// The SSLSocket of mode `Ssl`.
    ssl: Cell<Value>,
    /// What has been read and not consumed, and the multishot operation that reads, while there is one. It stays the
    /// same while it is busy.
    flow: RefCell<Arc<Flow>>,
    /// That is what all reads of the descriptor share.
    shares: Cell<bool>,
    /// Where it goes when nobody will stop that.
    discards: OnceCell<Discards>,
    ended: Cell<bool>,
    /// Multishot reads are refused on it.
    single: Cell<bool>,
    consumed: Cell<u64>,
}

impl Default for Io {
    fn default() -> Self {
        Self {
            machine: Cell::new(NIL),
            mode: Cell::new(Mode::Fd),
            fd: Cell::new(-1),
            ssl: Cell::new(NIL),
            flow: RefCell::new(Flow::new()),
            shares: Cell::new(false),
            discards: OnceCell::new(),
            ended: Cell::new(false),
            single: Cell::new(false),
            consumed: Cell::new(0),
        }
    }
}

impl DataTypeFunctions for Io {
    /// A flow may have descriptors to close, which enters the kernel, so this is not done in the middle of a collection.
    fn free(self: Box<Self>) {
        // Any thread may collect it; only the machine's own may stop the operation.
        let reads = self.flow().get().op.is_some();
        if let (true, Some(discards)) = (reads, self.discards.get()) {
            discards.add(Discarded::Flow(self.flow.into_inner()));
        }
    }

    fn mark(&self, marker: &Marker) {
        marker.mark(self.machine.get().to_magnus());
        marker.mark(self.ssl.get().to_magnus());
    }
}

impl Io {
    /// The UM it belongs to; UM::Error before it is initialized.
    fn um(&self) -> Result<This<Um>, Raise> {
        match self.machine.get() {
            NIL => Err(Raise::misuse("uninitialized UM::IO")),
            machine => owner::find(machine),
        }
    }

    /// What has come of its descriptor, for as long as it has that.
    fn flow(&self) -> Arc<Flow> {
        Arc::clone(&self.flow.borrow())
    }

    /// Has a share in what comes from its descriptor. One that is closed is an error of the methods that use it.
    fn share(&self, caller: &Caller) {
        if self.shares.get() || self.mode.get() == Mode::Ssl || self.flow().get().busy {
            return;
        }
        if let Ok(flow) = caller.flow(self.fd.get()) {
            self.flow.replace(flow);
            self.shares.set(true);
        }
    }
}

/// Makes a stream over a descriptor or an SSLSocket.
///
/// @method UringMachine::IO.new(machine, target, mode = nil)
/// @param machine [UringMachine]
/// @param target [Integer, OpenSSL::SSL::SSLSocket] file descriptor, or TLS connection
/// @param mode [:fd, :socket, :ssl, nil] how it is read and written: by read and write, by recv and send, or by
///   TLS; nil is :fd for a descriptor, :ssl for an SSLSocket
/// @return [UringMachine::IO]
/// @raise [TypeError] if machine is no UringMachine, or target is neither
/// @raise [UringMachine::Error] if mode is none of these
/// @kernel 6.0
/// @example
///   io = UM::IO.new(machine, fd, :socket)
fn initialize(io: This<Io>, arguments: &[magnus::Value]) -> Result<(), Raise> {
    let arguments = Arguments::of(arguments, 2..=3)?;
    let machine = arguments.get(0);
    let um = owner::find(machine)?;
    let caller = Caller::new(&um)?;
    if io.machine.get() != NIL {
        return Err(Raise::misuse("already initialized"));
    }
    let target = arguments.get(1);
    let mode = match arguments.optional(2) {
        Some(mode) => read_mode(mode)?,
        None if is_a(target, classes::integer()) => Mode::Fd,
        None if is_ssl_socket(target)? => Mode::Ssl,
        None => {
            let wanted = "a descriptor or an SSLSocket";
            return Err(arguments::wrong_type(target, "target", wanted));
        }
    };
    io.mode.set(mode);
    match mode {
        Mode::Ssl if !is_ssl_socket(target)? => {
            return Err(arguments::wrong_type(target, "target", "an SSLSocket"))
        }
        Mode::Ssl => io.ssl.set(target),
        Mode::Fd | Mode::Socket => {
            io.fd.set(arguments::int(target, "target")?);
            io.share(&caller);
        }
    }
    io.machine.set(machine);
    io.discards
        .get_or_init(|| caller.machine.parts().discards.clone());
    if mode == Mode::Ssl {
        tls::set_bio(machine, target, false)?;
    }
    Ok(())
}

fn read_mode(mode: Value) -> Result<Mode, Raise> {
    [Mode::Fd, Mode::Socket, Mode::Ssl]
        .into_iter()
        .find(|known| symbol(known.name()) == mode)
        .ok_or_else(|| Raise::misuse("mode must be :fd, :socket or :ssl"))
}

/// Whether a value is an OpenSSL::SSL::SSLSocket, if OpenSSL is loaded.
fn is_ssl_socket(value: Value) -> Result<bool, Raise> {
    let mut module = classes::object();
    for name in ["OpenSSL", "SSL", "SSLSocket"] {
        match classes::constant(module, name)? {
            Some(found) => module = found,
            None => return Ok(false),
        }
    }
    Ok(is_a(value, module))
}

/// @method UringMachine::IO#mode
/// @return [Symbol] :fd, :socket or :ssl
/// @example
///   machine.io(fd).mode #=> :fd
fn mode(io: This<Io>) -> Outcome {
    io.um()?;
    Ok(symbol(io.mode.get().name()))
}

/// Writes all of the buffers, however long it takes. What ends it when some bytes are written (a time limit, an
/// exception, an error of the descriptor) ends it with their count: it is raised at the fiber's next wait, the error by
/// the next write. Those that TLS has taken and not sent yet go out with the next call.
///
/// @method UringMachine::IO#write(*buffers)
/// @param buffers [Array<String, IO::Buffer>]
/// @return [Integer] bytes written: all of them, unless it was ended
/// @raise [SystemCallError] as write(2), if nothing was written
/// @raise [UringMachine::Error] if a buffer is no buffer
/// @example
///   io.write("HTTP/1.1 204 No Content\r\n", "\r\n") #=> 29
fn write(io: This<Io>, buffers: &[magnus::Value]) -> Outcome {
    let um = io.um()?;
    let written = write_to(&Caller::new(&um)?, &io, values(buffers));
    io.keep();
    answer(written.map(|total| fixnum(total as i64)))
}

/// Writes buffers, which are on a frame of the method that runs.
fn write_to(caller: &Caller, io: &Io, buffers: &[Value]) -> Result<u64, Failure> {
    let sink = match io.mode.get() {
        Mode::Fd => Sink::Write(None),
        Mode::Socket => Sink::Send(libc::MSG_NOSIGNAL | libc::MSG_WAITALL),
        Mode::Ssl => return tls::write_all(caller, io.ssl.get(), buffers),
    };
    write_all(caller, io.fd.get(), buffers, sink)
}

/// Whether the end has been reached: it has come, and everything before it has been consumed. Does not wait.
///
/// @method UringMachine::IO#eof?
/// @return [Boolean]
/// @example
///   io.eof? #=> false
fn is_eof(io: This<Io>) -> Result<bool, Raise> {
    let um = io.um()?;
    let flow = io.flow();
    let (mut ended, op, is_empty) = {
        let inflow = flow.get();
        let ended = io.ended.get() || inflow.ended == Some(0);
        (ended, inflow.op, inflow.bytes.is_empty())
    };
    if let (false, Some(op)) = (ended, op) {
        let caller = Caller::new(&um)?;
        let _ = caller.machine.parts().driver.poll();
        if let Ok(multishot) = Running::of(op).state(&caller) {
            ended = multishot.ended == Some(0) && arrived(&multishot.arrivals) == 0;
        }
    }
    Ok(ended && is_empty)
}

fn arrived(arrivals: &Arrivals) -> usize {
    match arrivals {
        Arrivals::Bytes { bytes, .. } => bytes.len(),
        Arrivals::Descriptors(_) => 0,
    }
}

/// @method UringMachine::IO#consumed
/// @return [Integer] bytes that methods have returned or skipped since the start
/// @example
///   io.consumed #=> 0
fn consumed(io: This<Io>) -> Result<u64, Raise> {
    io.um()?;
    Ok(io.consumed.get())
}

/// @method UringMachine::IO#pending
/// @return [Integer] bytes that have come and are not consumed
/// @example
///   io.pending #=> 0
fn pending(io: This<Io>) -> Result<usize, Raise> {
    let um = io.um()?;
    let flow = io.flow();
    let (mut count, op) = {
        let inflow = flow.get();
        (inflow.bytes.len(), inflow.op)
    };
    if let Some(op) = op {
        let caller = Caller::new(&um)?;
        if let Ok(multishot) = Running::of(op).state(&caller) {
            count += arrived(&multishot.arrivals);
        }
    }
    Ok(count)
}

/// Throws away what has come and is not consumed, and stops reading; the next method that reads starts anew, also
/// after the end: of a file that grows it gives what was appended since.
///
/// @method UringMachine::IO#clear
/// @return [UringMachine::IO] self
/// @raise [UringMachine::Error] if another fiber is reading
/// @example
///   io.clear
fn clear(io: This<Io>) -> Outcome {
    reading(io, |reader| {
        reader.flow.clear(reader.caller.machine);
        io.ended.set(false);
        Ok(io.value())
    })
}

/// Stops reading; what has come and is not consumed is for whoever reads the descriptor next. Where that is the end, the
/// stream is at its end.
fn leave(io: This<Io>) -> Result<This<Io>, Raise> {
    let um = io.um()?;
    let caller = Caller::new(&um)?;
    let flow = io.flow();
    if flow.get().busy {
        return Err(Raise::misuse("another fiber is reading from this UM::IO"));
    }
    // What TLS has deciphered is nobody else's to read.
    if io.mode.get() != Mode::Ssl {
        io.ended.set(is_eof(io)?);
        flow.leave_io(caller.machine);
        io.flow.replace(Flow::new());
        io.shares.set(false);
    }
    Ok(io)
}

/// Defines the class.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("IO", ruby.class_object())?;
    class.define_alloc_func::<Io>();
    class.define_method("initialize", method!(initialize, -1))?;
    class.define_method("mode", method!(mode, 0))?;
    class.define_method("write", method!(write, -1))?;
    class.define_method("eof?", method!(is_eof, 0))?;
    class.define_method("consumed", method!(consumed, 0))?;
    class.define_method("pending", method!(pending, 0))?;
    class.define_method("clear", method!(clear, 0))?;
    class.define_private_method("leave", method!(leave, 0))?;
    reading::define(class)?;
    resp::define(ruby, class)
}
