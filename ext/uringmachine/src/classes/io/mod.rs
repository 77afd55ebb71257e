//! UM::IO: a buffered stream over a descriptor or a TLS connection.
//!
//! Bytes come by multishot read or receive into the machine's provided buffers, and from there into a queue that all
//! reads of the descriptor share ([`crate::machine::inflow`]). A stream whose bytes are not consumed is stopped (see
//! [`crate::methods::streams`]), so a fast peer fills no memory.

mod reading;
mod resp;

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use uringmachine_runtime::stream::{Arrivals, Bytes};
use uringmachine_runtime::{opcode, types};

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::inflow::{self, Flow, Inflow};
use crate::machine::multishot::{Running, NOT_POLLABLE};
use crate::machine::switch::Failure;
use crate::machine::write_all::{write_all, Sink};
use crate::machine::{Discarded, Discards};
use crate::ruby::arguments::{self, Arguments, CURRENT};
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, define_all, Method, Raise, NIL, VALUE};
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

/// What a UM::IO holds.
struct Io {
    /// The UM it belongs to; `NIL` before it is initialized.
    machine: VALUE,
    mode: Mode,
    fd: i32,
    /// The SSLSocket of mode `Ssl`.
    ssl: VALUE,
    /// What has been read and not consumed, and the multishot operation that reads, while there is one.
    flow: Arc<Flow>,
    /// That is what all reads of the descriptor share.
    shares: bool,
    /// Where it goes when nobody will stop that.
    discards: Option<Discards>,
    ended: bool,
    /// Multishot reads are refused on it.
    single: bool,
    consumed: u64,
}

static TYPE: DataType = DataType::new::<Io>(c"UM::IO", mark, free);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        let io = data.cast::<Io>();
        rb_sys::rb_gc_mark((*io).machine);
        rb_sys::rb_gc_mark((*io).ssl);
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead.
    let io = unsafe { Box::from_raw(data.cast::<Io>()) };
    // Any thread may collect it; only the machine's own may stop the operation.
    // SAFETY: with the GVL.
    let reads = unsafe { (*io.flow.get()).op.is_some() };
    if let (true, Some(discards)) = (reads, &io.discards) {
        discards.add(Discarded::Flow(Arc::clone(&io.flow)));
    }
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let io = Box::new(Io {
        machine: NIL,
        mode: Mode::Fd,
        fd: -1,
        ssl: NIL,
        flow: Flow::new(),
        shares: false,
        discards: None,
        ended: false,
        single: false,
        consumed: 0,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(io).cast()) }
}

/// The data of a UM::IO, which does not move while the object lives.
unsafe fn get(value: VALUE) -> Result<*mut Io, Raise> {
    // SAFETY: the type is checked.
    unsafe {
        let io = TYPE.get(value).cast::<Io>();
        if (*io).machine == NIL {
            return Err(Raise::misuse("uninitialized UM::IO"));
        }
        Ok(io)
    }
}

/// The stream of a method that reads: one fiber at a time.
struct Reader {
    io: *mut Io,
    inflow: *mut Inflow,
    caller: Caller,
}

/// How a read went on: whether there are more bytes than before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Bytes,
    End,
}

impl Reader {
    fn bytes(&self) -> &Bytes {
        // SAFETY: the object is on the method's frame, and a fiber reads alone; no reference is held
        // across a wait, or while the bytes are changed.
        unsafe { &(*self.inflow).bytes }
    }

    /// Takes the oldest bytes away.
    fn consume(&self, count: usize) {
        // SAFETY: as `bytes`.
        unsafe {
            (*self.inflow).consume(count);
            (*self.io).consumed += count as u64;
        }
    }

    /// Waits for more bytes.
    fn more(&self) -> Result<More, Failure> {
        // SAFETY: as `bytes`.
        unsafe {
            if (*self.io).ended {
                return Ok(More::End);
            }
            let more = match (*self.io).mode {
                Mode::Ssl => self.more_of_ssl(),
                Mode::Fd | Mode::Socket => self.more_of_stream(),
            }?;
            if more == More::End {
                (*self.io).ended = true;
            }
            Ok(more)
        }
    }

    unsafe fn more_of_stream(&self) -> Result<More, Failure> {
        let (io, inflow) = (self.io, self.inflow);
        // SAFETY: as `bytes`; an operation that the flow holds is this machine's.
        unsafe {
            if (*inflow).closed {
                return Err(Raise::errno(libc::EBADF).into());
            }
            self.caller.told((*io).fd)?;
            let had = (*inflow).bytes.len();
            loop {
                let caller = self.caller.again();
                // What loops have left comes first.
                caller.settle(&(*io).flow)?;
                if (*inflow).bytes.len() > had {
                    return Ok(More::Bytes);
                }
                match (*inflow).ended.take() {
                    None => {}
                    Some(0) => return Ok(More::End),
                    Some(NOT_POLLABLE) if (*io).mode == Mode::Fd => (*io).single = true,
                    Some(result) => return Err(Raise::errno(-result).into()),
                }
                if (*inflow).op.is_none() {
                    if (*caller.core).is_of_messages((*io).fd) {
                        return self.more_by_message();
                    }
                    if (*io).single {
                        return self.more_by_single_read();
                    }
                    let receive = ((*io).mode == Mode::Socket).then_some(0);
                    match Running::bytes(&caller, (*io).fd, receive)? {
                        Some(running) => (*inflow).op = Some(running.op()),
                        None => (*io).single = true,
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
    unsafe fn more_by_single_read(&self) -> Result<More, Failure> {
        const LENGTH: u32 = 64 << 10;
        // SAFETY: the room is the queue's own, which nobody else changes while this fiber reads, and
        // which lives as long as the IO: on the method's frame. `operate` returns when the kernel is
        // done with it.
        unsafe {
            let room = (*self.inflow).bytes.reserve(LENGTH as usize);
            let fd = types::Fd((*self.io).fd);
            let entry = opcode::Read::new(fd, room, LENGTH).offset(CURRENT).build();
            let count = self.caller.again().operate(entry)?;
            (*self.inflow).bytes.commit(count as usize);
            Ok(if count == 0 { More::End } else { More::Bytes })
        }
    }

    /// For a socket that keeps messages apart: the next one's bytes. An empty one has none, and is not the end.
    unsafe fn more_by_message(&self) -> Result<More, Failure> {
        const LENGTH: usize = 64 << 10;
        // SAFETY: as `more_by_single_read`; the message is on this frame.
        unsafe {
            loop {
                let fd = (*self.io).fd;
                let mut piece = libc::iovec {
                    iov_base: (*self.inflow).bytes.reserve(LENGTH).cast(),
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
                    (*self.inflow).bytes.commit(count.min(LENGTH));
                    return Ok(More::Bytes);
                }
                if inflow::is_end(fd) {
                    return Ok(More::End);
                }
            }
        }
    }

    unsafe fn more_of_ssl(&self) -> Result<More, Failure> {
        // A record's worth (RFC 8446, 5.1).
        const LENGTH: usize = 16 << 10;
        // SAFETY: as `more_by_single_read`; the socket is marked by the IO.
        unsafe {
            let room = (*self.inflow).bytes.reserve(LENGTH);
            let count = tls::read(&self.caller.again(), (*self.io).ssl, room, LENGTH)?;
            (*self.inflow).bytes.commit(count);
            Ok(if count == 0 { More::End } else { More::Bytes })
        }
    }
}

/// Runs a method that reads.
unsafe fn reading(
    argc: c_int,
    argv: *const VALUE,
    this: VALUE,
    expected: std::ops::RangeInclusive<usize>,
    body: impl FnOnce(&Reader, Arguments) -> Answer,
) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the object is on Ruby's frame of the call.
    unsafe {
        ruby::method(|| {
            let arguments = Arguments::new(argc, argv, expected)?;
            let io = get(this)?;
            let caller = Caller::new((*io).machine)?;
            share(io, &caller);
            // The IO has it for as long as it is busy: see `leave`.
            let inflow = (*io).flow.get();
            if std::mem::replace(&mut (*inflow).busy, true) {
                return Err(Raise::misuse("another fiber is reading from this UM::IO"));
            }
            let reader = Reader { io, inflow, caller };
            let result = body(&reader, arguments);
            (*inflow).busy = false;
            std::hint::black_box(this);
            answer(result)
        })
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
unsafe extern "C" fn initialize(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        ruby::method(|| {
            let arguments = Arguments::new(argc, argv, 2..=3)?;
            let machine = arguments.get(0);
            let caller = Caller::new(machine)?;
            let io = TYPE.get(this).cast::<Io>();
            if (*io).machine != NIL {
                return Err(Raise::misuse("already initialized"));
            }
            let target = arguments.get(1);
            let mode = match arguments.optional(2) {
                Some(mode) => read_mode(mode)?,
                None if ruby::is_a(target, rb_sys::rb_cInteger) => Mode::Fd,
                None if is_ssl_socket(target) => Mode::Ssl,
                None => {
                    let wanted = "a descriptor or an SSLSocket";
                    return Err(arguments::wrong_type(target, "target", wanted));
                }
            };
            (*io).mode = mode;
            match mode {
                Mode::Ssl if !is_ssl_socket(target) => {
                    return Err(arguments::wrong_type(target, "target", "an SSLSocket"))
                }
                Mode::Ssl => (*io).ssl = target,
                Mode::Fd | Mode::Socket => {
                    (*io).fd = arguments::int(target, "target")?;
                    share(io, &caller);
                }
            }
            (*io).machine = machine;
            (*io).discards = Some((*caller.core).discards.clone());
            if mode == Mode::Ssl {
                tls::set_bio(machine, target, false)?;
            }
            Ok(this)
        })
    }
}

/// Has a UM::IO share in what comes from its descriptor. One that is closed is an error of the methods that use it.
unsafe fn share(io: *mut Io, caller: &Caller) {
    // SAFETY: as `get`.
    unsafe {
        if !(*io).shares && (*io).mode != Mode::Ssl {
            if let Ok(flow) = caller.flow((*io).fd) {
                ((*io).flow, (*io).shares) = (flow, true);
            }
        }
    }
}

unsafe fn read_mode(mode: VALUE) -> Result<Mode, Raise> {
    // SAFETY: symbols are compared.
    unsafe {
        let modes = [
            ("fd", Mode::Fd),
            ("socket", Mode::Socket),
            ("ssl", Mode::Ssl),
        ];
        modes
            .into_iter()
            .find(|(name, _)| mode == rb_sys::rb_id2sym(ruby::id(name)))
            .map(|(_, mode)| mode)
            .ok_or_else(|| Raise::misuse("mode must be :fd, :socket or :ssl"))
    }
}

/// Whether a value is an OpenSSL::SSL::SSLSocket, if OpenSSL is loaded.
unsafe fn is_ssl_socket(value: VALUE) -> bool {
    // SAFETY: constants are looked up where they are defined.
    unsafe {
        let mut module = rb_sys::rb_cObject;
        for name in ["OpenSSL", "SSL", "SSLSocket"] {
            let name = ruby::id(name);
            if rb_sys::rb_const_defined(module, name) == 0 {
                return false;
            }
            module = rb_sys::rb_const_get(module, name);
        }
        ruby::is_a(value, module)
    }
}

/// @method UringMachine::IO#mode
/// @return [Symbol] :fd, :socket or :ssl
/// @example
///   machine.io(fd).mode #=> :fd
unsafe extern "C" fn mode(_argc: c_int, _argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let name = match (*get(this)?).mode {
                Mode::Fd => "fd",
                Mode::Socket => "socket",
                Mode::Ssl => "ssl",
            };
            Ok(rb_sys::rb_id2sym(ruby::id(name)))
        })
    }
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
unsafe extern "C" fn write(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the object is on Ruby's frame of the call.
    unsafe {
        ruby::method(|| {
            let arguments = Arguments::new(argc, argv, 0..=usize::MAX)?;
            let io = get(this)?;
            let caller = Caller::new((*io).machine)?;
            answer(write_to(&caller, io, arguments.all()).map(|total| ruby::fixnum(total as i64)))
        })
    }
}

unsafe fn write_to(caller: &Caller, io: *mut Io, buffers: &[VALUE]) -> Result<u64, Failure> {
    // SAFETY: as `write`.
    unsafe {
        let sink = match (*io).mode {
            Mode::Fd => Sink::Write(None),
            Mode::Socket => Sink::Send(libc::MSG_NOSIGNAL | libc::MSG_WAITALL),
            Mode::Ssl => return tls::write_all(caller, (*io).ssl, buffers),
        };
        write_all(caller, (*io).fd, buffers, sink)
    }
}

/// Whether the end has been reached: it has come, and everything before it has been consumed. Does not wait.
///
/// @method UringMachine::IO#eof?
/// @return [Boolean]
/// @example
///   io.eof? #=> false
unsafe extern "C" fn is_eof(_argc: c_int, _argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: the type is checked; the operation is this machine's.
    unsafe {
        ruby::method(|| {
            let io = get(this)?;
            let inflow = (*io).flow.get();
            let mut ended = (*io).ended || (*inflow).ended == Some(0);
            if let (false, Some(op)) = (ended, (*inflow).op) {
                let caller = Caller::new((*io).machine)?;
                let _ = (*caller.core).machine.poll();
                if let Ok(stream) = Running::of(op).state(&caller) {
                    ended = stream.ended == Some(0) && arrived(&stream.arrivals) == 0;
                }
            }
            Ok(ruby::boolean(ended && (*inflow).bytes.is_empty()))
        })
    }
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
unsafe extern "C" fn consumed(_argc: c_int, _argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::fixnum((*get(this)?).consumed as i64))) }
}

/// @method UringMachine::IO#pending
/// @return [Integer] bytes that have come and are not consumed
/// @example
///   io.pending #=> 0
unsafe extern "C" fn pending(_argc: c_int, _argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: the type is checked; the operation is this machine's.
    unsafe {
        ruby::method(|| {
            let io = get(this)?;
            let inflow = (*io).flow.get();
            let mut count = (*inflow).bytes.len();
            if let Some(op) = (*inflow).op {
                let caller = Caller::new((*io).machine)?;
                if let Ok(stream) = Running::of(op).state(&caller) {
                    count += arrived(&stream.arrivals);
                }
            }
            Ok(ruby::fixnum(count as i64))
        })
    }
}

/// Throws away what has come and is not consumed, and stops reading; the next method that reads starts anew, also
/// after the end: of a file that grows it gives what was appended since.
///
/// @method UringMachine::IO#clear
/// @return [UringMachine::IO] self
/// @raise [UringMachine::Error] if another fiber is reading
/// @example
///   io.clear
unsafe extern "C" fn clear(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `reading`.
    unsafe {
        reading(argc, argv, this, 0..=0, |reader, _| {
            (*reader.inflow).clear(reader.caller.core);
            (*reader.io).ended = false;
            Ok(this)
        })
    }
}

/// Stops reading; what has come and is not consumed is for whoever reads the descriptor next.
unsafe extern "C" fn leave(this: VALUE) -> VALUE {
    // SAFETY: as `reading`; no reference to the flow is left when the IO lets go of it.
    unsafe {
        ruby::method(|| {
            let io = get(this)?;
            let caller = Caller::new((*io).machine)?;
            let inflow = (*io).flow.get();
            if (*inflow).busy {
                return Err(Raise::misuse("another fiber is reading from this UM::IO"));
            }
            // What TLS has deciphered is nobody else's to read.
            if (*io).mode != Mode::Ssl {
                (*inflow).leave_io(caller.core);
                ((*io).flow, (*io).shares) = (Flow::new(), false);
            }
            Ok(this)
        })
    }
}

/// Defines the class.
pub unsafe fn define(module: VALUE) {
    // SAFETY: the functions are methods.
    unsafe {
        let class = rb_sys::rb_define_class_under(module, c"IO".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        let methods: &[(&std::ffi::CStr, Method)] = &[
            (c"initialize", initialize),
            (c"mode", mode),
            (c"write", write),
            (c"eof?", is_eof),
            (c"consumed", consumed),
            (c"pending", pending),
            (c"clear", clear),
        ];
        define_all(class, methods);
        let name = c"leave";
        ruby::define_private_method(class, name, leave as *const (), 0);
        reading::define(class);
        resp::define(class);
    }
}
