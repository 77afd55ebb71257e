//! UM::IO: a buffered stream over a descriptor or a TLS connection.
//!
//! Bytes come by multishot read or receive into the machine's provided buffers, and from there into a queue that all
//! reads of the descriptor share ([`crate::machine::inflow`]). A stream whose bytes are not consumed is stopped (see
//! [`crate::methods::streams`]), so a fast peer fills no memory.

mod reading;
mod resp;

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::RangeInclusive;
use std::sync::Arc;

use magnus::error::IntoError;
use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::value::StaticSymbol;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData, Value};
use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::{opcode, types};

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::inflow::{self, Flow, Inflow};
use crate::machine::multishot::{Running, NOT_POLLABLE};
use crate::machine::switch::Failure;
use crate::machine::write_all::{write_all, Sink};
use crate::machine::{Discarded, Discards};
use crate::ruby::arguments::{self, Arguments, CURRENT};
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, VALUE};
use crate::tls;

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
    machine: Cell<VALUE>,
    mode: Cell<Mode>,
    fd: Cell<i32>,
    /// The SSLSocket of mode `Ssl`.
    ssl: Cell<VALUE>,
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
        // SAFETY: with the GVL.
        let reads = unsafe { (*self.inflow()).op.is_some() };
        if let (true, Some(discards)) = (reads, self.discards.get()) {
            discards.add(Discarded::Flow(self.flow.into_inner()));
        }
    }

    fn mark(&self, marker: &Marker) {
        marker.mark(as_value(self.machine.get()));
        marker.mark(as_value(self.ssl.get()));
    }
}

impl Io {
    /// The machine it belongs to; UM::Error before it is initialized.
    fn machine(&self) -> Result<VALUE, Raise> {
        match self.machine.get() {
            NIL => Err(Raise::misuse("uninitialized UM::IO")),
            machine => Ok(machine),
        }
    }

    /// The fiber that runs, on that machine.
    fn caller(&self) -> Result<Caller, Raise> {
        // SAFETY: the UM is marked by the IO, the receiver of the method that runs.
        unsafe { Caller::new(self.machine()?) }
    }

    /// What its flow holds, for as long as it has that.
    fn inflow(&self) -> *mut Inflow {
        self.flow.borrow().get()
    }

    /// Has a share in what comes from its descriptor. One that is closed is an error of the methods that use it.
    fn share(&self, caller: &Caller) {
        if self.shares.get() || self.mode.get() == Mode::Ssl {
            return;
        }
        // SAFETY: with the GVL; whoever reads has the flow's memory until it is busy no more.
        if unsafe { (*self.inflow()).busy } {
            return;
        }
        // SAFETY: the core is alive while one of its fibers runs a method.
        if let Ok(flow) = unsafe { caller.flow(self.fd.get()) } {
            self.flow.replace(flow);
            self.shares.set(true);
        }
    }
}

/// The stream of a method that reads: one fiber at a time.
struct Reader<'a> {
    io: &'a Io,
    /// The IO has it for as long as it is busy.
    flow: &'a Flow,
    caller: Caller,
}

/// How a read went on: whether there are more bytes than before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Bytes,
    End,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // SAFETY: as `bytes`.
        unsafe { (*self.inflow()).busy = false };
    }
}

impl<'a> Reader<'a> {
    fn new(io: &'a Io) -> Result<Self, Raise> {
        let caller = io.caller()?;
        io.share(&caller);
        // SAFETY: the IO has its flow for as long as that is busy: see `share` and `leave`.
        let flow = unsafe { &*Arc::as_ptr(&io.flow.borrow()) };
        // SAFETY: with the GVL.
        if std::mem::replace(unsafe { &mut (*flow.get()).busy }, true) {
            return Err(Raise::misuse("another fiber is reading from this UM::IO"));
        }
        Ok(Self { io, flow, caller })
    }

    fn inflow(&self) -> *mut Inflow {
        self.flow.get()
    }

    fn bytes(&self) -> &Bytes {
        // SAFETY: a fiber reads alone; no reference is held across a wait, or while the bytes are changed.
        unsafe { &(*self.inflow()).bytes }
    }

    /// Takes the oldest bytes away.
    fn consume(&self, count: usize) {
        // SAFETY: as `bytes`.
        unsafe { (*self.inflow()).consume(count) };
        self.count(count);
    }

    /// Counts bytes that were taken away.
    fn count(&self, count: usize) {
        let consumed = &self.io.consumed;
        consumed.set(consumed.get() + count as u64);
    }

    /// Waits for more bytes.
    fn more(&self) -> Result<More, Failure> {
        if self.io.ended.get() {
            return Ok(More::End);
        }
        let more = match self.io.mode.get() {
            Mode::Ssl => self.more_of_ssl(),
            Mode::Fd | Mode::Socket => self.more_of_stream(),
        }?;
        if more == More::End {
            self.io.ended.set(true);
        }
        Ok(more)
    }

    fn more_of_stream(&self) -> Result<More, Failure> {
        let (io, inflow, fd) = (self.io, self.inflow(), self.io.fd.get());
        // SAFETY: as `bytes`; an operation that the flow holds is this machine's.
        unsafe {
            if (*inflow).closed {
                return Err(Raise::errno(libc::EBADF).into());
            }
            self.caller.told(fd)?;
            let had = (*inflow).bytes.len();
            loop {
                let caller = self.caller.again();
                // What loops have left comes first.
                caller.settle(self.flow)?;
                if (*inflow).bytes.len() > had {
                    return Ok(More::Bytes);
                }
                match (*inflow).ended.take() {
                    None => {}
                    Some(0) => return Ok(More::End),
                    Some(NOT_POLLABLE) if io.mode.get() == Mode::Fd => io.single.set(true),
                    Some(result) => return Err(Raise::errno(-result).into()),
                }
                if (*inflow).op.is_none() {
                    if (*caller.core).is_of_messages(fd) {
                        return self.more_by_message();
                    }
                    if io.single.get() {
                        return self.more_by_single_read();
                    }
                    let receive = (io.mode.get() == Mode::Socket).then_some(0);
                    match Running::bytes(&caller, fd, receive)? {
                        Some(running) => (*inflow).op = Some(running.op()),
                        None => io.single.set(true),
                    }
                }
                let Some(op) = (*inflow).op else { continue };
                let running = Running::of(op);
                let stream = running.state(&caller)?;
                let ended = stream.ended.is_some();
                (*inflow).take(&mut stream.arrivals);
                if ended {
                    // Its end, or its error, comes after the bytes.
                    (*inflow).leave_io(caller.core);
                } else if (*inflow).bytes.len() == had {
                    running.wait(&caller)?;
                    if (*inflow).closed {
                        return Err(Raise::errno(libc::ECANCELED).into());
                    }
                    continue;
                }
                if (*inflow).bytes.len() > had {
                    return Ok(More::Bytes);
                }
            }
        }
    }

    /// For what cannot be read by multishot: regular files, and older kernels.
    fn more_by_single_read(&self) -> Result<More, Failure> {
        const LENGTH: u32 = 64 << 10;
        let (inflow, fd) = (self.inflow(), types::Fd(self.io.fd.get()));
        // SAFETY: the room is the queue's own, which nobody else changes while this fiber reads, and
        // which lives as long as the IO: on the method's frame. `operate` returns when the kernel is
        // done with it.
        unsafe {
            let room = (*inflow).bytes.reserve(LENGTH as usize);
            let entry = opcode::Read::new(fd, room, LENGTH).offset(CURRENT).build();
            let count = self.caller.again().operate(entry)?;
            (*inflow).bytes.commit(count as usize);
            Ok(if count == 0 { More::End } else { More::Bytes })
        }
    }

    /// For a socket that keeps messages apart: the next one's bytes. An empty one has none, and is not the end.
    fn more_by_message(&self) -> Result<More, Failure> {
        const LENGTH: usize = 64 << 10;
        let (inflow, fd) = (self.inflow(), self.io.fd.get());
        // SAFETY: as `more_by_single_read`; the message is on this frame.
        unsafe {
            loop {
                let mut piece = libc::iovec {
                    iov_base: (*inflow).bytes.reserve(LENGTH).cast(),
                    iov_len: LENGTH,
                };
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = &raw mut piece;
                message.msg_iovlen = 1;
                let entry = opcode::RecvMsg::new(types::Fd(fd), &raw mut message).build();
                let count = self.caller.again().operate(entry)? as usize;
                if message.msg_flags & libc::MSG_TRUNC != 0 {
                    return Err(Raise::errno(libc::EMSGSIZE).into());
                }
                if count > 0 {
                    (*inflow).bytes.commit(count.min(LENGTH));
                    return Ok(More::Bytes);
                }
                if inflow::is_end(fd) {
                    return Ok(More::End);
                }
            }
        }
    }

    fn more_of_ssl(&self) -> Result<More, Failure> {
        // A record's worth (RFC 8446, 5.1).
        const LENGTH: usize = 16 << 10;
        let (inflow, ssl) = (self.inflow(), self.io.ssl.get());
        // SAFETY: as `more_by_single_read`; the socket is marked by the IO.
        unsafe {
            let room = (*inflow).bytes.reserve(LENGTH);
            let count = tls::read(&self.caller.again(), ssl, room, LENGTH)?;
            (*inflow).bytes.commit(count);
            Ok(if count == 0 { More::End } else { More::Bytes })
        }
    }
}

/// Runs a method that reads.
fn reading(
    ruby: &Ruby,
    io: This<Io>,
    arguments: &[Value],
    expected: RangeInclusive<usize>,
    body: impl FnOnce(&Reader, Arguments) -> Answer,
) -> Result<Value, Error> {
    settle(ruby, || {
        let arguments = Arguments::of(raw(arguments), expected)?;
        let reader = Reader::new(&io)?;
        let result = body(&reader, arguments);
        drop(reader);
        io.keep();
        answer(result)
    })
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
fn initialize(ruby: &Ruby, io: This<Io>, arguments: &[Value]) -> Result<Value, Error> {
    settle(ruby, || {
        let arguments = Arguments::of(raw(arguments), 2..=3)?;
        let machine = arguments.get(0);
        // SAFETY: the argument is on the method's frame; its type is checked.
        let caller = unsafe { Caller::new(machine) }?;
        if io.machine.get() != NIL {
            return Err(Raise::misuse("already initialized"));
        }
        let target = arguments.get(1);
        let mode = match arguments.optional(2) {
            Some(mode) => read_mode(ruby, mode)?,
            None if as_value(target).is_kind_of(ruby.class_integer()) => Mode::Fd,
            None if is_ssl_socket(ruby, target)? => Mode::Ssl,
            None => {
                let wanted = "a descriptor or an SSLSocket";
                return Err(arguments::wrong_type(target, "target", wanted));
            }
        };
        io.mode.set(mode);
        match mode {
            Mode::Ssl if !is_ssl_socket(ruby, target)? => {
                return Err(arguments::wrong_type(target, "target", "an SSLSocket"))
            }
            Mode::Ssl => io.ssl.set(target),
            Mode::Fd | Mode::Socket => {
                io.fd.set(arguments::int(target, "target")?);
                io.share(&caller);
            }
        }
        io.machine.set(machine);
        // SAFETY: the core is alive while one of its fibers runs a method.
        io.discards
            .get_or_init(|| unsafe { (*caller.core).discards.clone() });
        if mode == Mode::Ssl {
            // SAFETY: both are on the method's frame.
            unsafe { tls::set_bio(machine, target, false) }?;
        }
        Ok(io.value())
    })
}

fn read_mode(ruby: &Ruby, mode: VALUE) -> Result<Mode, Raise> {
    [Mode::Fd, Mode::Socket, Mode::Ssl]
        .into_iter()
        .find(|known| ruby.sym_new(known.name()).as_raw() == mode)
        .ok_or_else(|| Raise::misuse("mode must be :fd, :socket or :ssl"))
}

/// Whether a value is an OpenSSL::SSL::SSLSocket, if OpenSSL is loaded.
fn is_ssl_socket(ruby: &Ruby, value: VALUE) -> Result<bool, Raise> {
    let mut module = ruby.class_object().as_raw();
    for name in ["OpenSSL", "SSL", "SSLSocket"] {
        let name = ruby::id(name);
        // SAFETY: a constant is looked up where it is defined; what loading it raises is stopped.
        unsafe {
            if rb_sys::rb_const_defined(module, name) == 0 {
                return Ok(false);
            }
            module = ruby::protect(|| rb_sys::rb_const_get(module, name)).map_err(Raise::Jump)?;
        }
    }
    Ok(ruby::is_a(value, module))
}

/// @method UringMachine::IO#mode
/// @return [Symbol] :fd, :socket or :ssl
/// @example
///   machine.io(fd).mode #=> :fd
fn mode(ruby: &Ruby, io: This<Io>) -> Result<StaticSymbol, Error> {
    io.machine().map_err(|raise| raise.into_error(ruby))?;
    Ok(ruby.sym_new(io.mode.get().name()))
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
fn write(ruby: &Ruby, io: This<Io>, buffers: &[Value]) -> Result<Value, Error> {
    settle(ruby, || {
        let caller = io.caller()?;
        let written = write_to(&caller, &io, raw(buffers));
        io.keep();
        answer(written.map(|total| ruby::fixnum(total as i64)))
    })
}

/// Writes buffers, which are on a frame of the method that runs.
fn write_to(caller: &Caller, io: &Io, buffers: &[VALUE]) -> Result<u64, Failure> {
    let sink = match io.mode.get() {
        Mode::Fd => Sink::Write(None),
        Mode::Socket => Sink::Send(libc::MSG_NOSIGNAL | libc::MSG_WAITALL),
        // SAFETY: the caller's promise; the socket is marked by the IO.
        Mode::Ssl => return unsafe { tls::write_all(caller, io.ssl.get(), buffers) },
    };
    // SAFETY: the caller's promise.
    unsafe { write_all(caller, io.fd.get(), buffers, sink) }
}

/// Whether the end has been reached: it has come, and everything before it has been consumed. Does not wait.
///
/// @method UringMachine::IO#eof?
/// @return [Boolean]
/// @example
///   io.eof? #=> false
fn is_eof(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    settle(ruby, || {
        io.machine()?;
        let inflow = io.inflow();
        // SAFETY: with the GVL, and no wait; the operation is this machine's.
        unsafe {
            let mut ended = io.ended.get() || (*inflow).ended == Some(0);
            if let (false, Some(op)) = (ended, (*inflow).op) {
                let caller = io.caller()?;
                let _ = (*caller.core).driver.poll();
                if let Ok(stream) = Running::of(op).state(&caller) {
                    ended = stream.ended == Some(0) && arrived(&stream.arrivals) == 0;
                }
            }
            Ok(ruby::boolean(ended && (*inflow).bytes.is_empty()))
        }
    })
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
fn consumed(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    settle(ruby, || {
        io.machine()?;
        Ok(ruby::fixnum(io.consumed.get() as i64))
    })
}

/// @method UringMachine::IO#pending
/// @return [Integer] bytes that have come and are not consumed
/// @example
///   io.pending #=> 0
fn pending(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    settle(ruby, || {
        io.machine()?;
        let inflow = io.inflow();
        // SAFETY: with the GVL, and no wait; the operation is this machine's.
        unsafe {
            let mut count = (*inflow).bytes.len();
            if let Some(op) = (*inflow).op {
                let caller = io.caller()?;
                if let Ok(stream) = Running::of(op).state(&caller) {
                    count += arrived(&stream.arrivals);
                }
            }
            Ok(ruby::fixnum(count as i64))
        }
    })
}

/// Throws away what has come and is not consumed, and stops reading; the next method that reads starts anew, also
/// after the end: of a file that grows it gives what was appended since.
///
/// @method UringMachine::IO#clear
/// @return [UringMachine::IO] self
/// @raise [UringMachine::Error] if another fiber is reading
/// @example
///   io.clear
fn clear(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    reading(ruby, io, &[], 0..=0, |reader, _| {
        // SAFETY: as `Reader::bytes`.
        unsafe { (*reader.inflow()).clear(reader.caller.core) };
        io.ended.set(false);
        Ok(io.value())
    })
}

/// Stops reading; what has come and is not consumed is for whoever reads the descriptor next.
fn leave(ruby: &Ruby, io: This<Io>) -> Result<Value, Error> {
    settle(ruby, || {
        let caller = io.caller()?;
        let inflow = io.inflow();
        // SAFETY: with the GVL; no reference to the flow is left when the IO lets go of it.
        unsafe {
            if (*inflow).busy {
                return Err(Raise::misuse("another fiber is reading from this UM::IO"));
            }
            // What TLS has deciphered is nobody else's to read.
            if io.mode.get() != Mode::Ssl {
                (*inflow).leave_io(caller.core);
                io.flow.replace(Flow::new());
                io.shares.set(false);
            }
        }
        Ok(io.value())
    })
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
