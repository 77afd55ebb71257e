//! Ruby's own classes, which are never collected.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{may_raise, Raise, Value};

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name() -> Value {
            // SAFETY: set once Ruby runs, and never written to again.
            Value::of(unsafe { rb_sys::$symbol })
        }
    )*};
}

classes! {
    /// Exception
    exception = rb_eException;
    /// ArgumentError
    argument_error = rb_eArgError;
    /// EOFError
    eof_error = rb_eEOFError;
    /// FrozenError
    frozen_error = rb_eFrozenError;
    /// IOError
    io_error = rb_eIOError;
    /// NoMemoryError
    no_memory_error = rb_eNoMemError;
    /// RangeError
    range_error = rb_eRangeError;
    /// RuntimeError
    runtime_error = rb_eRuntimeError;
    /// SignalException
    signal_exception = rb_eSignal;
    /// SystemExit
    system_exit = rb_eSystemExit;
    /// TypeError
    type_error = rb_eTypeError;
    /// Class
    class = rb_cClass;
    /// Hash
    hash = rb_cHash;
    /// Integer
    integer = rb_cInteger;
    /// IO
    io = rb_cIO;
    /// Module
    module = rb_cModule;
    /// Numeric
    numeric = rb_cNumeric;
    /// Object
    object = rb_cObject;
    /// Thread
    thread = rb_cThread;
}

/// IO::Buffer
#[inline]
pub fn io_buffer() -> Value {
    static CLASS: Constant = Constant::new();
    CLASS.get("IO::Buffer")
}

/// IO::TimeoutError
pub fn io_timeout_error() -> Value {
    static CLASS: Constant = Constant::new();
    CLASS.get("IO::TimeoutError")
}

/// Fiber
pub fn fiber() -> Value {
    static CLASS: Constant = Constant::new();
    CLASS.get("Fiber")
}

/// FiberError
pub fn fiber_error() -> Value {
    static CLASS: Constant = Constant::new();
    CLASS.get("FiberError")
}

/// Thread::Mutex
pub fn mutex() -> Value {
    static CLASS: Constant = Constant::new();
    CLASS.get("Thread::Mutex")
}

/// A class that Ruby defines before any extension is loaded, by its path, looked up once.
struct Constant(AtomicU64);

impl Constant {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    fn get(&self, path: &str) -> Value {
        match self.0.load(Ordering::Relaxed) {
            0 => self.find(path),
            found => Value::of(found),
        }
    }

    #[cold]
    fn find(&self, path: &str) -> Value {
        let class = at(path).unwrap_or_else(|_| panic!("Ruby has {path}"));
        super::keep_for_ever(class);
        self.0.store(class.raw(), Ordering::Relaxed);
        class
    }
}

/// The class or module of a path, as `"OpenSSL::SSL::SSLError"`.
///
/// # Errors
/// ArgumentError if there is none.
pub fn at(path: &str) -> Result<Value, Raise> {
    let path = std::ffi::CString::new(path).unwrap_or_default();
    // SAFETY: the path is a C string.
    may_raise(|| unsafe { rb_sys::rb_path2class(path.as_ptr()) })
}

/// A constant of a class or module, or of those that it inherits from; `None` if there is none. An autoload is begun.
///
/// # Errors
/// What an autoload raises.
pub fn constant(module: Value, name: &str) -> Result<Option<Value>, Raise> {
    let id = super::id(name);
    // SAFETY: the module is one.
    if unsafe { rb_sys::rb_const_defined(module.raw(), id) } == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    may_raise(|| unsafe { rb_sys::rb_const_get(module.raw(), id) }).map(Some)
}

/// As [`constant`], of the module alone.
///
/// # Errors
/// As [`constant`].
pub fn own_constant(module: Value, name: &str) -> Result<Option<Value>, Raise> {
    let id = super::id(name);
    // SAFETY: the module is one.
    if unsafe { rb_sys::rb_const_defined_at(module.raw(), id) } == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    may_raise(|| unsafe { rb_sys::rb_const_get_at(module.raw(), id) }).map(Some)
}

/// Extends an object with a module, whatever it has for an `extend` of its own.
///
/// # Errors
/// FrozenError.
pub fn extend(object: Value, module: Value) -> Result<(), Raise> {
    // SAFETY: Ruby looks whether it is a module.
    may_raise(|| unsafe {
        rb_sys::rb_extend_object(object.raw(), module.raw());
        super::NIL.raw()
    })
    .map(drop)
}

/// Timeout::Error, loaded if need be.
///
/// # Errors
/// What the loading raises.
pub fn timeout_error() -> Result<Value, Raise> {
    // SAFETY: the name is a C string.
    may_raise(|| unsafe { rb_sys::rb_require(c"timeout".as_ptr()) })?;
    at("Timeout::Error")
}
