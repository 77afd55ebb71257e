//! The functions of the OpenSSL that Ruby's openssl extension uses, and the SSL of an SSLSocket.
//!
//! The gem is not linked against OpenSSL. A program that has an SSLSocket has loaded the extension, so
//! its file is open in this process: a symbol looked up from there is found in the extension's own
//! libraries, whichever of several OpenSSLs they are.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void, CStr};
use std::ops::Deref;
use std::ptr::{null_mut, NonNull};
use std::sync::OnceLock;

use uringmachine_runtime::memory::{Memory, MemoryMut};

use super::bio::{self, Kind};
use super::no_ssl_socket;
use crate::os::library::{self, Library};
use crate::os::Errno;
use crate::ruby::foreign::{self, Foreign, NoData};
use crate::ruby::{self, classes, is_a, Raise, Value, NIL};

/// Opaque structs of OpenSSL.
pub enum RawSsl {}
pub enum RawBio {}
pub enum BioMethod {}

/// Answers of SSL_get_error (openssl/ssl.h).
pub const ERROR_WANT_READ: c_int = 2;
pub const ERROR_WANT_WRITE: c_int = 3;
pub const ERROR_SYSCALL: c_int = 5;
pub const ERROR_ZERO_RETURN: c_int = 6;

/// SSL_OP_ENABLE_KTLS, an option of SSL_set_options.
const KERNEL_TLS: u64 = 1 << 3;
/// SSL_KEY_UPDATE_NONE, an answer of SSL_get_key_update_type.
const NO_KEY_UPDATE: c_int = -1;
/// Bits of SSL_get_shutdown.
const SENT_SHUTDOWN: c_int = 1;
const RECEIVED_SHUTDOWN: c_int = 2;

pub type Transfer = unsafe extern "C" fn(*mut RawBio, *mut c_char, c_int) -> c_int;
pub type Control = unsafe extern "C" fn(*mut RawBio, c_int, c_long, *mut c_void) -> c_long;
pub type Life = unsafe extern "C" fn(*mut RawBio) -> c_int;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// What was looked up.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Looks everything up; `Err` is the name of what is missing.
            fn find(library: Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0").as_bytes();
                        let name = CStr::from_bytes_with_nul(name).unwrap_or_default();
                        // SAFETY: the function has the signature that OpenSSL 3 documents.
                        unsafe { library.function(name) }.ok_or(stringify!($name))?
                    },)*
                })
            }
        }
    };
}

functions! {
    OpenSSL_version_num() -> c_ulong;
    SSL_read(*mut RawSsl, *mut c_void, c_int) -> c_int;
    SSL_write(*mut RawSsl, *const c_void, c_int) -> c_int;
    SSL_get_error(*const RawSsl, c_int) -> c_int;
    SSL_get_rbio(*const RawSsl) -> *mut RawBio;
    SSL_get_wbio(*const RawSsl) -> *mut RawBio;
    SSL_is_init_finished(*const RawSsl) -> c_int;
    SSL_has_pending(*const RawSsl) -> c_int;
    SSL_get_shutdown(*const RawSsl) -> c_int;
    SSL_get_key_update_type(*const RawSsl) -> c_int;
    SSL_get_options(*const RawSsl) -> u64;
    SSL_set_options(*mut RawSsl, u64) -> u64;
    SSL_set_bio(*mut RawSsl, *mut RawBio, *mut RawBio);
    BIO_get_new_index() -> c_int;
    BIO_meth_new(c_int, *const c_char) -> *mut BioMethod;
    BIO_meth_set_read(*mut BioMethod, Transfer) -> c_int;
    BIO_meth_set_write(*mut BioMethod, Transfer) -> c_int;
    BIO_meth_set_ctrl(*mut BioMethod, Control) -> c_int;
    BIO_meth_set_destroy(*mut BioMethod, Life) -> c_int;
    BIO_new(*const BioMethod) -> *mut RawBio;
    BIO_ctrl(*mut RawBio, c_int, c_long, *mut c_void) -> c_long;
    BIO_method_type(*const RawBio) -> c_int;
    BIO_set_data(*mut RawBio, *mut c_void);
    BIO_get_data(*mut RawBio) -> *mut c_void;
    BIO_set_init(*mut RawBio, c_int);
    BIO_get_shutdown(*mut RawBio) -> c_int;
    BIO_set_shutdown(*mut RawBio, c_int);
    BIO_set_flags(*mut RawBio, c_int);
    BIO_clear_flags(*mut RawBio, c_int);
    ERR_clear_error();
    ERR_peek_error() -> c_ulong;
    ERR_peek_last_error_all(
        *mut *const c_char, *mut c_int, *mut *const c_char, *mut *const c_char, *mut c_int
    ) -> c_ulong;
    ERR_reason_error_string(c_ulong) -> *const c_char;
}

/// What was looked up, and what is made once with it.
pub struct OpenSsl {
    functions: Functions,
    /// Our BIOs.
    pub bio: Kind,
}

impl Deref for OpenSsl {
    type Target = Functions;

    #[inline]
    fn deref(&self) -> &Functions {
        &self.functions
    }
}

static OPENSSL: OnceLock<OpenSsl> = OnceLock::new();

/// The table, without a look whether it is there: for the callbacks of BIOs, which were made with it.
pub fn known() -> &'static OpenSsl {
    OPENSSL.get().expect("a BIO was made with the table")
}

/// The table; a UM::Error if the extension is not loaded, or uses something other than OpenSSL 3.
pub fn table() -> Result<&'static OpenSsl, Raise> {
    if let Some(table) = OPENSSL.get() {
        return Ok(table);
    }
    let table = load().map_err(|text| Raise::misuse(&text))?;
    Ok(OPENSSL.get_or_init(|| table))
}

fn load() -> Result<OpenSsl, String> {
    // Not by $LOADED_FEATURES, which only the main Ractor may read.
    let path = library::loaded_file(b"/openssl.so")
        .ok_or("TLS needs Ruby's openssl extension: require \"openssl\" first")?;
    let shown = path.to_string_lossy();
    let library = Library::loaded(&path)
        .ok_or_else(|| format!("TLS needs Ruby's openssl extension, and {shown} is not loaded"))?;
    let functions = Functions::find(library)
        .map_err(|name| format!("TLS needs OpenSSL 3, and that of {shown} has no {name}"))?;
    // SAFETY: it takes nothing, and answers a number.
    let version = unsafe { (functions.OpenSSL_version_num)() };
    // LibreSSL says 0x20000000 for good.
    if version < 0x3000_0000 {
        return Err(format!(
            "TLS needs OpenSSL 3, and that of {shown} has the version {version:#x}"
        ));
    }
    let bio = bio::make_kind(&functions).ok_or("OpenSSL refuses a type of BIO")?;
    Ok(OpenSsl { functions, bio })
}

impl OpenSsl {
    /// Whether an exception is an OpenSSL::SSL::SSLError.
    pub fn is_error(&self, exception: Value) -> bool {
        classes::at("OpenSSL::SSL::SSLError").is_ok_and(|class| is_a(exception, class))
    }

    /// Whether there is anything in this thread's queue of errors.
    pub fn has_errors(&self) -> bool {
        // SAFETY: a look at what belongs to the thread.
        unsafe { (self.ERR_peek_error)() != 0 }
    }

    /// Empties that.
    pub fn clear_errors(&self) {
        // SAFETY: nobody holds what is in it.
        unsafe { (self.ERR_clear_error)() }
    }

    /// An OpenSSL::SSL::SSLError made of what is in OpenSSL's queue of errors, worded as the openssl gem
    /// words it; the queue is emptied.
    pub fn error(&self, function: &str) -> Raise {
        let text = match self.last_error() {
            Some(reason) => format!("{function}: {reason}"),
            None => function.to_owned(),
        };
        let errors = classes::at("OpenSSL").and_then(|module| ruby::call(module, "errors", &[]));
        self.clear_errors();
        let raise = match classes::at("OpenSSL::SSL::SSLError") {
            Ok(class) => Raise::new(class, &text),
            Err(raise) => return raise,
        };
        if let Raise::Exception(exception) = raise {
            let errors = errors.unwrap_or(NIL);
            // The error is one without it, too.
            let _ = ruby::set_variable(exception, ruby::id("@errors"), errors);
        }
        raise
    }

    /// The words of the last error in the queue.
    fn last_error(&self) -> Option<String> {
        const TEXT_STRING: c_int = 2;
        let (mut data, mut flags) = (std::ptr::null(), 0);
        let none = null_mut();
        // SAFETY: the places are on this frame; those that are none are not filled. The strings are OpenSSL's, and
        // copied before the queue is changed.
        unsafe {
            let code =
                (self.ERR_peek_last_error_all)(null_mut(), null_mut(), none, &mut data, &mut flags);
            if code == 0 {
                return None;
            }
            let reason = copy((self.ERR_reason_error_string)(code));
            if flags & TEXT_STRING != 0 && !data.is_null() && *data != 0 {
                return Some(format!("{reason} ({})", copy(data)));
            }
            Some(reason)
        }
    }
}

/// # Safety
/// There is a C string, or nothing.
unsafe fn copy(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// The SSL of an SSLSocket. It lives on frames of methods, where the collector sees the socket, which keeps it.
#[derive(Clone, Copy)]
pub struct Ssl {
    pub openssl: &'static OpenSsl,
    pub object: Value,
    pointer: NonNull<RawSsl>,
}

/// What a call of OpenSSL has come to.
#[derive(Clone, Copy)]
pub struct Called {
    /// What it returned.
    pub result: c_int,
    /// What SSL_get_error says of that.
    pub code: c_int,
    /// Why the system call failed that it may have made.
    pub errno: Errno,
}

impl Ssl {
    /// That of an object; TypeError if it is no SSLSocket.
    pub fn of(object: Value) -> Result<Self, Raise> {
        static SOCKETS: Foreign = Foreign::new("OpenSSL::SSL::SSLSocket", c"OpenSSL/SSL");
        let data = SOCKETS.data(object).map_err(|why| match why {
            NoData::Other => no_ssl_socket(object),
            NoData::Unknown => Raise::misuse(
                "this version of Ruby's openssl extension is not known: its SSLSocket has no SSL",
            ),
            NoData::Uninitialized => Raise::misuse("ssl_socket is uninitialized"),
        })?;
        Ok(Self {
            openssl: table()?,
            object,
            pointer: data.cast(),
        })
    }

    /// For a function of the table.
    pub fn pointer(&self) -> *mut RawSsl {
        self.pointer.as_ptr()
    }

    /// SSL_read: decrypts into memory.
    ///
    /// # Errors
    /// What a callback raises that the openssl extension does not stop.
    pub fn read(&self, memory: &mut impl MemoryMut) -> Result<Called, Raise> {
        let (room, length) = (memory.pointer_mut(), memory.length() as c_int);
        // SAFETY: the SSL is the socket's; the memory is borrowed alone, and promises to be there.
        self.call(|| unsafe { (self.openssl.SSL_read)(self.pointer(), room.cast(), length) })
    }

    /// SSL_write: encrypts what is in memory.
    ///
    /// # Errors
    /// As [`Ssl::read`].
    pub fn write(&self, memory: &impl Memory) -> Result<Called, Raise> {
        let (bytes, length) = (memory.pointer(), memory.length() as c_int);
        // SAFETY: the SSL is the socket's; the memory is borrowed, and OpenSSL only reads it.
        self.call(|| unsafe { (self.openssl.SSL_write)(self.pointer(), bytes.cast(), length) })
    }

    fn call(&self, function: impl FnOnce() -> c_int) -> Result<Called, Raise> {
        self.openssl.clear_errors();
        let call = || {
            Errno(0).set();
            let result = function();
            (result, Errno::last())
        };
        // SAFETY: the functions of `read` and `write` have nothing to drop. Callbacks run Ruby; those of our BIOs do not.
        let (result, errno) = unsafe { foreign::run(call) }?;
        // SAFETY: the SSL is the socket's, and the result is that of its last call.
        let code = unsafe { (self.openssl.SSL_get_error)(self.pointer(), result) };
        Ok(Called {
            result,
            code,
            errno,
        })
    }

    /// Asks the SSL by a function that takes nothing else.
    fn ask<T>(&self, function: unsafe extern "C" fn(*const RawSsl) -> T) -> T {
        // SAFETY: those of the table look at the SSL, which is the socket's, and change nothing.
        unsafe { function(self.pointer()) }
    }

    /// Whether the handshake is over.
    pub fn is_init_finished(&self) -> bool {
        self.ask(self.openssl.SSL_is_init_finished) != 0
    }

    /// Whether OpenSSL has read bytes that the program has not.
    pub fn has_pending(&self) -> bool {
        self.ask(self.openssl.SSL_has_pending) != 0
    }

    /// Whether the close_notify was sent.
    pub fn has_sent_shutdown(&self) -> bool {
        self.ask(self.openssl.SSL_get_shutdown) & SENT_SHUTDOWN != 0
    }

    /// Whether the peer's has come.
    pub fn has_received_shutdown(&self) -> bool {
        self.ask(self.openssl.SSL_get_shutdown) & RECEIVED_SHUTDOWN != 0
    }

    /// Whether the peer is to be told of a new key.
    pub fn has_key_update(&self) -> bool {
        self.ask(self.openssl.SSL_get_key_update_type) != NO_KEY_UPDATE
    }

    /// Whether the kernel is to encrypt and decrypt, where it offers that (SSL_OP_ENABLE_KTLS).
    pub fn enables_kernel(&self) -> bool {
        self.ask(self.openssl.SSL_get_options) & KERNEL_TLS != 0
    }

    /// The BIO it reads from, if it has one.
    pub fn reads_from(&self) -> Option<NonNull<RawBio>> {
        NonNull::new(self.ask(self.openssl.SSL_get_rbio))
    }

    /// The BIO it writes to, if it has one.
    pub fn writes_to(&self) -> Option<NonNull<RawBio>> {
        NonNull::new(self.ask(self.openssl.SSL_get_wbio))
    }

    /// Has the kernel encrypt and decrypt, where it offers that.
    pub fn enable_kernel(&self) {
        // SAFETY: the SSL is the socket's; the options are a number.
        unsafe { (self.openssl.SSL_set_options)(self.pointer(), KERNEL_TLS) };
    }
}
