//! The functions of the OpenSSL that Ruby's openssl extension uses.
//!
//! The gem is not linked against OpenSSL. A program that has an SSLSocket has loaded the extension, so
//! its file is open in this process: a symbol looked up from there is found in the extension's own
//! libraries, whichever of several OpenSSLs they are.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void, CStr, CString};
use std::sync::OnceLock;

use super::bio;
use crate::ruby::{self, Raise, NIL, VALUE};

/// Opaque structs of OpenSSL.
pub enum Ssl {}
pub enum Bio {}
pub enum BioMethod {}

/// Answers of SSL_get_error (openssl/ssl.h).
pub const ERROR_WANT_READ: c_int = 2;
pub const ERROR_WANT_WRITE: c_int = 3;
pub const ERROR_SYSCALL: c_int = 5;
pub const ERROR_ZERO_RETURN: c_int = 6;

/// SSL_OP_ENABLE_KTLS, an option of SSL_set_options.
pub const KERNEL_TLS: u64 = 1 << 3;
/// SSL_KEY_UPDATE_NONE, an answer of SSL_get_key_update_type.
pub const NO_KEY_UPDATE: c_int = -1;
/// Bits of SSL_get_shutdown.
pub const SENT_SHUTDOWN: c_int = 1;
pub const RECEIVED_SHUTDOWN: c_int = 2;

pub type Transfer = unsafe extern "C" fn(*mut Bio, *mut c_char, c_int) -> c_int;
pub type Control = unsafe extern "C" fn(*mut Bio, c_int, c_long, *mut c_void) -> c_long;
pub type Life = unsafe extern "C" fn(*mut Bio) -> c_int;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// What was looked up, and what is made once with it.
        pub struct OpenSsl {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// The type number of our BIOs.
            pub bio_type: c_int,
            pub bio_method: *mut BioMethod,
        }

        impl OpenSsl {
            /// Looks everything up; `Err` is the name of what is missing.
            unsafe fn find(library: *mut c_void) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the name ends with a zero byte.
                        let symbol = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
                        if symbol.is_null() {
                            return Err(stringify!($name));
                        }
                        // SAFETY: the function has the signature that OpenSSL 3 documents.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(symbol)
                        }
                    },)*
                    bio_type: 0,
                    bio_method: std::ptr::null_mut(),
                })
            }
        }
    };
}

functions! {
    OpenSSL_version_num() -> c_ulong;
    SSL_read(*mut Ssl, *mut c_void, c_int) -> c_int;
    SSL_write(*mut Ssl, *const c_void, c_int) -> c_int;
    SSL_get_error(*const Ssl, c_int) -> c_int;
    SSL_get_rbio(*const Ssl) -> *mut Bio;
    SSL_get_wbio(*const Ssl) -> *mut Bio;
    SSL_is_init_finished(*const Ssl) -> c_int;
    SSL_has_pending(*const Ssl) -> c_int;
    SSL_get_shutdown(*const Ssl) -> c_int;
    SSL_get_key_update_type(*const Ssl) -> c_int;
    SSL_get_options(*const Ssl) -> u64;
    SSL_set_options(*mut Ssl, u64) -> u64;
    SSL_set_bio(*mut Ssl, *mut Bio, *mut Bio);
    BIO_get_new_index() -> c_int;
    BIO_meth_new(c_int, *const c_char) -> *mut BioMethod;
    BIO_meth_set_read(*mut BioMethod, Transfer) -> c_int;
    BIO_meth_set_write(*mut BioMethod, Transfer) -> c_int;
    BIO_meth_set_ctrl(*mut BioMethod, Control) -> c_int;
    BIO_meth_set_destroy(*mut BioMethod, Life) -> c_int;
    BIO_new(*const BioMethod) -> *mut Bio;
    BIO_ctrl(*mut Bio, c_int, c_long, *mut c_void) -> c_long;
    BIO_method_type(*const Bio) -> c_int;
    BIO_set_data(*mut Bio, *mut c_void);
    BIO_get_data(*mut Bio) -> *mut c_void;
    BIO_set_init(*mut Bio, c_int);
    BIO_get_shutdown(*mut Bio) -> c_int;
    BIO_set_shutdown(*mut Bio, c_int);
    BIO_set_flags(*mut Bio, c_int);
    BIO_clear_flags(*mut Bio, c_int);
    ERR_clear_error();
    ERR_peek_error() -> c_ulong;
    ERR_peek_last_error_all(
        *mut *const c_char, *mut c_int, *mut *const c_char, *mut *const c_char, *mut c_int
    ) -> c_ulong;
    ERR_reason_error_string(c_ulong) -> *const c_char;
}

// SAFETY: the table is never written to after it is made, and neither is the BIO_METHOD.
unsafe impl Send for OpenSsl {}
// SAFETY: as above.
unsafe impl Sync for OpenSsl {}

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
    let path =
        extension().ok_or("TLS needs Ruby's openssl extension: require \"openssl\" first")?;
    let shown = path.to_string_lossy();
    // SAFETY: the path ends with a zero byte; nothing is loaded that is not there already.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
        if library.is_null() {
            return Err(format!(
                "TLS needs Ruby's openssl extension, and {shown} is not loaded"
            ));
        }
        let mut table = OpenSsl::find(library)
            .map_err(|name| format!("TLS needs OpenSSL 3, and that of {shown} has no {name}"))?;
        let version = (table.OpenSSL_version_num)();
        // LibreSSL says 0x20000000 for good.
        if version < 0x3000_0000 {
            return Err(format!(
                "TLS needs OpenSSL 3, and that of {shown} has the version {version:#x}"
            ));
        }
        bio::make_method(&mut table).ok_or("OpenSSL refuses a type of BIO")?;
        Ok(table)
    }
}

/// The file of the openssl extension, if it is loaded. Not by $LOADED_FEATURES, which only the main Ractor may
/// read.
fn extension() -> Option<CString> {
    unsafe extern "C" fn look(
        object: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes an object with its name, and what `extension` has given it.
        unsafe {
            let name = (*object).dlpi_name;
            if name.is_null() || !CStr::from_ptr(name).to_bytes().ends_with(b"/openssl.so") {
                return 0;
            }
            *found.cast::<Option<CString>>() = Some(CStr::from_ptr(name).to_owned());
            1
        }
    }
    let mut found: Option<CString> = None;
    // SAFETY: the Option outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found
}

impl OpenSsl {
    /// Whether an exception is an OpenSSL::SSL::SSLError.
    pub unsafe fn is_error(&self, exception: VALUE) -> bool {
        // SAFETY: may raise, stopped here.
        unsafe {
            match ruby::protect(|| rb_sys::rb_path2class(c"OpenSSL::SSL::SSLError".as_ptr())) {
                Ok(class) => ruby::is_a(exception, class),
                Err(_) => {
                    ruby::take_exception();
                    false
                }
            }
        }
    }

    /// An OpenSSL::SSL::SSLError made of what is in OpenSSL's queue of errors, worded as the openssl gem
    /// words it; the queue is emptied.
    pub unsafe fn error(&self, function: &str) -> Raise {
        const TEXT_STRING: c_int = 2;
        // SAFETY: the strings are OpenSSL's, and copied before the queue is emptied.
        unsafe {
            let (mut data, mut flags) = (std::ptr::null(), 0);
            let code = (self.ERR_peek_last_error_all)(
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &mut data,
                &mut flags,
            );
            let mut text = function.to_owned();
            if code != 0 {
                text.push_str(": ");
                text.push_str(&copy((self.ERR_reason_error_string)(code)));
                if flags & TEXT_STRING != 0 && !data.is_null() && *data != 0 {
                    text.push_str(&format!(" ({})", copy(data)));
                }
            }
            let errors = ruby::protect(|| {
                let module = rb_sys::rb_path2class(c"OpenSSL".as_ptr());
                ruby::funcall(module, ruby::id("errors"), &[])
            });
            (self.ERR_clear_error)();
            let errors = match errors {
                Ok(errors) => errors,
                Err(_) => {
                    ruby::take_exception();
                    NIL
                }
            };
            match ruby::protect(|| rb_sys::rb_path2class(c"OpenSSL::SSL::SSLError".as_ptr())) {
                Ok(class) => {
                    let raise = Raise::new(class, &text);
                    if let Raise::Exception(exception) = raise {
                        rb_sys::rb_ivar_set(exception, ruby::id("@errors"), errors);
                    }
                    raise
                }
                Err(state) => Raise::Jump(state),
            }
        }
    }
}

unsafe fn copy(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: the caller has a C string.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
