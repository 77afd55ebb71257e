//! IO objects.

use std::ffi::c_int;
use std::os::fd::RawFd;

use super::{is_file, may_raise, may_raise_for, Outcome, Raise, Value, NIL};

/// The descriptor of an IO.
///
/// # Errors
/// IOError for one that is closed; TypeError.
#[inline]
pub fn descriptor(io: Value) -> Result<RawFd, Raise> {
    match open_descriptor(io) {
        Some(fd) => Ok(fd),
        None => ask_for_descriptor(io),
    }
}

#[cold]
fn ask_for_descriptor(io: Value) -> Result<RawFd, Raise> {
    // SAFETY: Ruby looks whether it is an IO.
    may_raise_for(|| unsafe { super::rb_io_descriptor(io.raw()) })
}

/// The descriptor of what is an open IO: of that the functions below raise nothing.
#[inline]
fn open_descriptor(io: Value) -> Option<RawFd> {
    if !is_file(io) {
        return None;
    }
    // SAFETY: an IO.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        (!file.is_null() && (*file).fd >= 0).then(|| (*file).fd)
    }
}

/// `io.timeout`, or nil; that of the IO that an object stands for (`to_io`), as a Tempfile does.
///
/// # Errors
/// As [`descriptor`].
#[inline]
pub fn timeout(io: Value) -> Outcome {
    match open_descriptor(io) {
        // SAFETY: an open IO.
        Some(_) => Ok(Value::of(unsafe { super::rb_io_timeout(io.raw()) })),
        None => timeout_of_other(io),
    }
}

#[cold]
fn timeout_of_other(object: Value) -> Outcome {
    may_raise(|| {
        // SAFETY: Ruby looks what the object is, and rb_io_timeout whether the IO is open, but not whether it is one.
        unsafe {
            let io = rb_sys::rb_io_check_io(object.raw());
            if is_file(Value::of(io)) {
                super::rb_io_timeout(io)
            } else {
                NIL.raw()
            }
        }
    })
}

/// The descriptor of an IO and `io.timeout`.
///
/// # Errors
/// As [`descriptor`].
#[inline]
pub fn descriptor_and_timeout(io: Value) -> Result<(RawFd, Value), Raise> {
    Ok((descriptor(io)?, timeout(io)?))
}

/// What a value is as an IO (`to_io`).
///
/// # Errors
/// TypeError.
pub fn from(value: Value) -> Outcome {
    // SAFETY: a value of Ruby's.
    may_raise(|| unsafe { rb_sys::rb_io_get_io(value.raw()) })
}

/// The IO that an IO writes by, where each direction has a descriptor of its own; else itself.
pub fn writer(io: Value) -> Value {
    if !is_file(io) {
        return io;
    }
    // SAFETY: an IO; a plain accessor.
    Value::of(unsafe { rb_sys::rb_io_get_write_io(io.raw()) })
}

/// What a value is as an IO that is open for reading; what it has to write goes out.
///
/// # Errors
/// TypeError; IOError if it is closed, or not open for that.
pub fn open_for_reading(value: Value) -> Outcome {
    // SAFETY: Ruby looks at each.
    may_raise(|| unsafe {
        let io = Value::of(rb_sys::rb_io_get_io(value.raw()));
        rb_sys::rb_io_check_byte_readable(open_file(io));
        io.raw()
    })
}

/// What a value is as an IO that is open for writing.
///
/// # Errors
/// As [`open_for_reading`].
pub fn open_for_writing(value: Value) -> Outcome {
    // SAFETY: as above.
    may_raise(|| unsafe {
        let io = Value::of(rb_sys::rb_io_get_write_io(rb_sys::rb_io_get_io(
            value.raw(),
        )));
        rb_sys::rb_io_check_writable(open_file(io));
        io.raw()
    })
}

/// What Ruby keeps of an IO (RB_IO_POINTER). May raise: TypeError if it is none, IOError if it is closed.
pub(super) unsafe fn open_file(io: Value) -> *mut rb_sys::rb_io_t {
    // SAFETY: the type is checked; one that is not initialized has NULL, which Ruby refuses.
    unsafe {
        rb_sys::rb_check_type(io.raw(), rb_sys::ruby_value_type::RUBY_T_FILE as c_int);
        let pointer = (*(io.raw() as *const rb_sys::RFile)).fptr;
        rb_sys::rb_io_check_closed(pointer);
        pointer
    }
}

/// The descriptor that a close of the IO would close: `None` if it is closed, was never open, or closes none
/// (`autoclose`).
pub fn closes(io: Value) -> Option<RawFd> {
    if !is_file(io) {
        return None;
    }
    // SAFETY: an IO.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        let external = rb_sys::FMODE_EXTERNAL as c_int;
        if file.is_null() || (*file).fd < 0 || (*file).mode as c_int & external != 0 {
            return None;
        }
        Some((*file).fd)
    }
}

/// Whether an IO was ever open, and is not closed.
pub fn is_open(io: Value) -> bool {
    // SAFETY: an IO.
    is_file(io) && unsafe { !(*(io.raw() as *const rb_sys::RFile)).fptr.is_null() }
}

/// `$stderr`
pub fn standard_error() -> Outcome {
    // SAFETY: a global variable, which may be a program's own.
    may_raise(|| unsafe { rb_sys::rb_gv_get(c"$stderr".as_ptr()) })
}

type Function = unsafe extern "C" fn(rb_sys::VALUE) -> rb_sys::VALUE;
type Operation = unsafe extern "C" fn(rb_sys::VALUE, Function, rb_sys::VALUE) -> rb_sys::VALUE;

/// Whether Ruby keeps account of what is done with an IO: see [`during`].
pub fn keeps_account() -> bool {
    operation().is_some()
}

/// Runs `body` so that the fiber raises IOError when the IO is closed meanwhile, where Ruby keeps account of that (from
/// 4.0 on): `body` then ends by what `fiber_interrupt` has it raise.
///
/// # Errors
/// What the end of the account raises.
pub fn during(io: Value, body: &mut dyn FnMut()) -> Result<(), Raise> {
    unsafe extern "C" fn call(body: rb_sys::VALUE) -> rb_sys::VALUE {
        // SAFETY: the address of the body below, which outlives the call.
        unsafe { (*(body as *mut &mut dyn FnMut()))() };
        NIL.raw()
    }
    let Some(operation) = operation() else {
        body();
        return Ok(());
    };
    let mut body = body;
    let argument = &raw mut body as rb_sys::VALUE;
    // SAFETY: an IO, kept by this frame; `call` is given the address of a live body.
    let ended = may_raise(|| unsafe { operation(io.raw(), call, argument) });
    super::keep_until_here(io);
    ended.map(drop)
}

/// rb_thread_io_blocking_operation (internal/thread.h): what the scheduler's hooks run in, from Ruby 4.0 on. It
/// is exported, and in no header, so it is looked up.
fn operation() -> Option<Operation> {
    static FOUND: std::sync::OnceLock<Option<Operation>> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = super::version::symbol(c"rb_thread_io_blocking_operation")?;
        // SAFETY: the function has had this signature since it was made.
        Some(unsafe { std::mem::transmute::<*mut std::ffi::c_void, Operation>(found) })
    })
}
