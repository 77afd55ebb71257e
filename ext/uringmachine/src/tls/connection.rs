//! One TLS connection: the calls of OpenSSL.

use std::ffi::{c_int, CStr};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::bio::{self, Wire};
use super::no_ssl_socket;
use super::openssl::{self, OpenSsl, Ssl};
use super::transport::Received;
use crate::machine::caller::Caller;
use crate::machine::switch::{self, Failure};
use crate::ruby::{self, duration, Raise, NIL, VALUE};

/// The most plaintext in a record.
const RECORD: usize = 16 << 10;
/// How much is encrypted before it is sent.
const BATCH: usize = 128 << 10;

/// How long to wait for the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Forever,
    /// As long as `io.timeout` says, then IO::TimeoutError.
    Timeout,
}

/// An SSLSocket.
#[derive(Clone, Copy)]
pub struct Connection {
    pub openssl: &'static OpenSsl,
    pub object: VALUE,
    pub ssl: *mut Ssl,
    /// NULL if it has not been put on the ring: OpenSSL calls the kernel itself, and the ring waits for
    /// readiness.
    pub wire: *mut Wire,
}

/// What a call of OpenSSL came to.
enum Step {
    Done(usize),
    Ended,
    WantsRead,
    WantsWrite,
}

impl Connection {
    /// The connection of an SSLSocket.
    pub unsafe fn find(object: VALUE) -> Result<Self, Raise> {
        // SAFETY: the type is checked before the data are used.
        unsafe {
            let ssl = ssl_of(object)?;
            let openssl = openssl::table()?;
            let wire = bio::wire_of(openssl, (openssl.SSL_get_rbio)(ssl));
            Ok(Self {
                openssl,
                object,
                ssl,
                wire,
            })
        }
    }

    /// The IO below.
    unsafe fn io(&self) -> VALUE {
        // SAFETY: a plain accessor.
        unsafe { rb_sys::rb_attr_get(self.object, ruby::id("@io")) }
    }

    /// The descriptor below; IOError if it is closed.
    pub unsafe fn descriptor(&self) -> Result<c_int, Raise> {
        // SAFETY: called right after the unwinding was stopped.
        unsafe { ruby::descriptor(self.io()).map_err(|state| switch::unwinding(state)) }
    }

    /// Whether the descriptor below is a socket's.
    pub unsafe fn is_socket(&self) -> Result<bool, Raise> {
        // SAFETY: an all-zero stat is valid, and fstat fills it.
        unsafe {
            let mut status: libc::stat = std::mem::zeroed();
            if libc::fstat(self.descriptor()?, &mut status) != 0 {
                return Err(Raise::errno(Errno::last_raw()));
            }
            Ok(status.st_mode & libc::S_IFMT == libc::S_IFSOCK)
        }
    }

    pub(super) unsafe fn deadline(&self, wait: Wait) -> Result<Option<u64>, Raise> {
        if wait == Wait::Forever {
            return Ok(None);
        }
        // SAFETY: `@io` is an IO.
        match unsafe { ruby::rb_io_timeout(self.io()) } {
            NIL => Ok(None),
            timeout => duration::deadline(timeout),
        }
    }

    /// Calls OpenSSL. Ruby code may run, in callbacks.
    unsafe fn call(&self, name: &str, call: impl Fn() -> c_int) -> Result<Step, Raise> {
        // SAFETY: the SSL lives as long as the object; nothing droppable is here if a callback raises.
        unsafe {
            self.claim()?;
            let mut result = 0;
            let slot = &raw mut result;
            (self.openssl.ERR_clear_error)();
            Errno::set_raw(0);
            let called = ruby::protect(|| {
                *slot = call();
                NIL
            });
            let system = Errno::last_raw();
            let code = (self.openssl.SSL_get_error)(self.ssl, result);
            self.unclaim();
            let failed = match called {
                Err(state) => Some(switch::unwinding(state)),
                Ok(_) => self.callback_error(),
            };
            if let Some(raise) = failed {
                (self.openssl.ERR_clear_error)();
                return Err(raise);
            }
            if result > 0 {
                return Ok(Step::Done(result as usize));
            }
            match code {
                openssl::ERROR_ZERO_RETURN => Ok(Step::Ended),
                openssl::ERROR_WANT_READ => Ok(Step::WantsRead),
                openssl::ERROR_WANT_WRITE => Ok(Step::WantsWrite),
                openssl::ERROR_SYSCALL if system != 0 && (self.openssl.ERR_peek_error)() == 0 => {
                    Err(Raise::errno(system))
                }
                // The socket has ended, and OpenSSL has said so before.
                openssl::ERROR_SYSCALL if (self.openssl.ERR_peek_error)() == 0 => Ok(Step::Ended),
                _ => Err(self.openssl.error(name)),
            }
        }
    }

    /// What a callback has raised: the openssl extension notes it and goes on.
    unsafe fn callback_error(&self) -> Option<Raise> {
        // SAFETY: plain accessors; the exception is still that of this fiber.
        unsafe {
            let variable = ruby::id("callback_state");
            let state = ruby::as_fixnum(rb_sys::rb_attr_get(self.object, variable))?;
            rb_sys::rb_ivar_set(self.object, variable, NIL);
            Some(switch::unwinding(state as c_int))
        }
    }

    /// Notes that OpenSSL is at work on the connection, which it is not made for doing twice at once.
    pub unsafe fn claim(&self) -> Result<(), Raise> {
        // SAFETY: the wire lives as long as the SSL.
        unsafe {
            if self.wire.is_null() {
                return Ok(());
            }
            if (*self.wire).busy {
                return Err(Raise::misuse(
                    "ssl_socket is in use: one of its callbacks has not returned",
                ));
            }
            (*self.wire).busy = true;
            Ok(())
        }
    }

    pub unsafe fn unclaim(&self) {
        // SAFETY: as above.
        unsafe {
            if !self.wire.is_null() {
                (*self.wire).busy = false;
                (*self.wire).note_held();
            }
        }
    }

    /// See [`super::read`]. `fixed` is the place of the memory among the registered buffers.
    pub unsafe fn read(
        &self,
        caller: &Caller,
        pointer: *mut u8,
        length: usize,
        fixed: Option<u16>,
        wait: Wait,
    ) -> Result<usize, Failure> {
        if length == 0 {
            return Ok(0);
        }
        let room = length.min(c_int::MAX as usize) as c_int;
        // SAFETY: the caller keeps the memory.
        unsafe {
            self.descriptor()?;
            while self.kernel_receives() && !self.holds_bytes() {
                match self.receive_into(caller, pointer, room as u32, fixed, wait)? {
                    Received::Bytes(count) => return Ok(count),
                    Received::Nothing => {}
                    Received::ForOpenSsl => break,
                }
            }
            loop {
                let step = self.call("SSL_read", || {
                    (self.openssl.SSL_read)(self.ssl, pointer.cast(), room)
                });
                match step {
                    // An answer that a read made (to a KeyUpdate, say) need not be waited for: what the
                    // kernel does not take now goes out before anything else does.
                    Ok(Step::Done(count)) => {
                        self.send_now();
                        return Ok(count);
                    }
                    Ok(Step::Ended) => {
                        self.send_now();
                        return Ok(0);
                    }
                    Ok(Step::WantsRead) => self.exchange(caller, wait)?,
                    Ok(Step::WantsWrite) => self.make_room(caller, wait)?,
                    Err(raise) => {
                        self.send_now();
                        return Err(raise.into());
                    }
                }
            }
        }
    }

    /// Encrypts all of the pieces and sends them. `accepted` counts what OpenSSL has taken.
    pub unsafe fn write(
        &self,
        caller: &Caller,
        pieces: &[&[u8]],
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        // SAFETY: the wire lives as long as the SSL, which the caller keeps.
        unsafe {
            self.descriptor()?;
            if self.wire.is_null() {
                return self.encrypt(caller, pieces, wait, accepted);
            }
            self.begin_write(caller, wait)?;
            // What an earlier call has left comes first: OpenSSL would take more for ever, and this call would never wait
            // before it has something to count.
            if let Err(failure) = self.flush(caller, wait) {
                self.end_write();
                return Err(failure);
            }
            let mut result = self.encrypt(caller, pieces, wait, accepted);
            match &result {
                Ok(()) => result = self.flush(caller, wait),
                // Tells the peer why.
                Err(_) => drop(self.send_now()),
            }
            self.end_write();
            result
        }
    }

    /// Waits until no other fiber is in the middle of a write.
    unsafe fn begin_write(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: the wire lives as long as the SSL.
        unsafe {
            loop {
                if !(*self.wire).writing {
                    (*self.wire).writing = true;
                    return Ok(());
                }
                self.stand_in(caller, |wire| &raw mut (*wire).writers, wait)?;
            }
        }
    }

    unsafe fn end_write(&self) {
        // SAFETY: as above.
        unsafe {
            (*self.wire).writing = false;
            (*self.wire).writers.wake_all();
        }
    }

    /// Whether the kernel encrypts what is sent, so that the program's bytes need not pass through OpenSSL.
    pub unsafe fn kernel_sends(&self) -> bool {
        // SAFETY: the wire and the SSL live as long as the object.
        unsafe {
            !self.wire.is_null()
                && (*self.wire).kernel.sends
                && !(*self.wire).kernel.stuck
                && (self.openssl.SSL_is_init_finished)(self.ssl) != 0
                && (self.openssl.SSL_get_shutdown)(self.ssl) & openssl::SENT_SHUTDOWN == 0
                && (self.openssl.SSL_get_key_update_type)(self.ssl) == openssl::NO_KEY_UPDATE
        }
    }

    /// Whether bytes have come that the program has not read.
    pub unsafe fn holds_bytes(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            (self.openssl.SSL_has_pending)(self.ssl) != 0
                || (!self.wire.is_null() && !(*self.wire).inbound.is_empty())
        }
    }

    /// Whether the kernel decrypts what is received.
    pub unsafe fn kernel_receives(&self) -> bool {
        // SAFETY: as above.
        unsafe {
            !self.wire.is_null()
                && (*self.wire).kernel.receives
                && (*self.wire).kernel.failed == 0
                && !(*self.wire).ended
                && (self.openssl.SSL_is_init_finished)(self.ssl) != 0
                && (self.openssl.SSL_get_shutdown)(self.ssl) & openssl::RECEIVED_SHUTDOWN == 0
        }
    }

    /// Sends bytes that the kernel encrypts, where they are; after what OpenSSL has written.
    pub unsafe fn send(
        &self,
        caller: &Caller,
        bytes: &[u8],
        fixed: Option<u16>,
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        // SAFETY: as `write`.
        unsafe {
            self.descriptor()?;
            self.begin_write(caller, wait)?;
            let mut result = self.flush(caller, wait);
            if result.is_ok() {
                result = self.send_from(caller, bytes, fixed, wait, accepted);
            }
            self.end_write();
            result
        }
    }

    /// Small pieces share records.
    unsafe fn encrypt(
        &self,
        caller: &Caller,
        pieces: &[&[u8]],
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        let mut record = Vec::new();
        // SAFETY: as `write`.
        unsafe {
            for (place, piece) in pieces.iter().enumerate() {
                let is_last = place + 1 == pieces.len();
                if record.len() + piece.len() > RECORD || (is_last && record.is_empty()) {
                    self.encrypt_bytes(caller, &record, wait, accepted)?;
                    record.clear();
                }
                if piece.len() >= RECORD || (is_last && record.is_empty()) {
                    self.encrypt_bytes(caller, piece, wait, accepted)?;
                } else {
                    record.extend_from_slice(piece);
                }
            }
            self.encrypt_bytes(caller, &record, wait, accepted)
        }
    }

    unsafe fn encrypt_bytes(
        &self,
        caller: &Caller,
        mut bytes: &[u8],
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        // SAFETY: as `write`.
        unsafe {
            while !bytes.is_empty() {
                let count = bytes.len().min(RECORD) as c_int;
                let step = self.call("SSL_write", || {
                    (self.openssl.SSL_write)(self.ssl, bytes.as_ptr().cast(), count)
                })?;
                match step {
                    Step::Done(count) => {
                        bytes = &bytes[count..];
                        *accepted += count as u64;
                        if !self.wire.is_null() && (*self.wire).outbound.len() >= BATCH {
                            self.flush(caller, wait)?;
                        }
                    }
                    // The peer renegotiates.
                    Step::WantsRead => self.exchange(caller, wait)?,
                    Step::WantsWrite => self.make_room(caller, wait)?,
                    Step::Ended => return Err(self.openssl.error("SSL_write").into()),
                }
            }
            Ok(())
        }
    }
}

/// The SSL of an SSLSocket.
unsafe fn ssl_of(object: VALUE) -> Result<*mut Ssl, Raise> {
    static TYPE: AtomicU64 = AtomicU64::new(0);
    // SAFETY: only data of the openssl extension's own type are taken for an SSL.
    unsafe {
        let mut data_type = TYPE.load(Ordering::Relaxed) as *const rb_sys::rb_data_type_t;
        if data_type.is_null() {
            data_type = type_of(object)?;
            TYPE.store(data_type as u64, Ordering::Relaxed);
        }
        if rb_sys::rb_typeddata_is_kind_of(object, data_type) == 0 {
            return Err(no_ssl_socket(object));
        }
        let ssl = rb_sys::rb_check_typeddata(object, data_type);
        if ssl.is_null() {
            return Err(Raise::misuse("ssl_socket is uninitialized"));
        }
        Ok(ssl.cast())
    }
}

/// The data type of SSLSockets, found by the first.
#[allow(deprecated)]
unsafe fn type_of(object: VALUE) -> Result<*const rb_sys::rb_data_type_t, Raise> {
    const NAME: &CStr = c"OpenSSL/SSL";
    // SAFETY: what is a T_DATA and an SSLSocket has typed data. The lowest bits of the type are flags.
    unsafe {
        let class = ruby::protect(|| rb_sys::rb_path2class(c"OpenSSL::SSL::SSLSocket".as_ptr()));
        let Ok(class) = class else {
            ruby::take_exception();
            return Err(no_ssl_socket(object));
        };
        let is_data = rb_sys::RB_TYPE_P(object, rb_sys::ruby_value_type::RUBY_T_DATA);
        if !is_data || !ruby::is_a(object, class) {
            return Err(no_ssl_socket(object));
        }
        let data = object as *const rb_sys::RTypedData;
        let data_type = ((*data).type_ as usize & !3) as *const rb_sys::rb_data_type_t;
        if data_type.is_null() || CStr::from_ptr((*data_type).wrap_struct_name) != NAME {
            return Err(Raise::misuse(
                "this version of Ruby's openssl extension is not known: its SSLSocket has no SSL",
            ));
        }
        Ok(data_type)
    }
}
