//! Every raw call into Ruby's C API that magnus lacks, in one place.
//!
//! Functions that may raise do so by longjmp: callers hold nothing that needs dropping across them,
//! or go through [`protect`].

pub mod arguments;
pub mod duration;
pub mod errors;
pub mod io_buffer;
pub mod method;
pub mod this;
pub mod typed_data;
pub mod version;

use std::ffi::{c_char, c_int, c_long, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

pub use rb_sys::{Qfalse, Qnil, Qtrue, Qundef, ID, VALUE};

/// `Qnil` and its kin as plain values.
pub const NIL: VALUE = Qnil as VALUE;
pub const TRUE: VALUE = Qtrue as VALUE;
pub const FALSE: VALUE = Qfalse as VALUE;
pub const UNDEF: VALUE = Qundef as VALUE;

/// The event of a thread's end, after all of its program (include/ruby/internal/event.h).
pub const EVENT_THREAD_END: u32 = 0x0800;

/// Flags of `rb_nogvl` (include/ruby/thread.h).
pub const NOGVL_INTR_FAIL: c_int = 0x1;
pub const NOGVL_UBF_ASYNC_SAFE: c_int = 0x2;

/// Flags of an IO::Buffer that is a read-only view of memory it does not own: EXTERNAL and READONLY
/// (include/ruby/io/buffer.h).
pub const IO_BUFFER_VIEW: c_int = 1 | 128;

/// Flag of an IO::Buffer of memory it does not own: EXTERNAL.
pub const IO_BUFFER_EXTERNAL: c_int = 1;

/// Flag of an IO::Buffer with memory that it has allocated.
pub const IO_BUFFER_INTERNAL: c_int = 2;

/// Flags of an IO::Buffer with memory of its own, or of a String's: EXTERNAL, INTERNAL, MAPPED. A slice has
/// none of them.
pub const IO_BUFFER_OWNER: c_int = 1 | 2 | 4;

/// Flag of an IO::Buffer that is locked.
pub const IO_BUFFER_LOCKED: c_int = 32;

pub type BlockFn = unsafe extern "C" fn(VALUE, VALUE, c_int, *const VALUE, VALUE) -> VALUE;
pub type UnblockFn = unsafe extern "C" fn(*mut c_void);
pub type EventHookFn = unsafe extern "C" fn(u32, VALUE, VALUE, ID, VALUE);
pub type NogvlFn = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// `struct rb_ractor_local_storage_type` (include/ruby/ractor.h).
#[repr(C)]
pub struct RactorLocalStorageType {
    pub mark: Option<unsafe extern "C" fn(*mut c_void)>,
    pub free: Option<unsafe extern "C" fn(*mut c_void)>,
}

extern "C" {
    pub fn rb_fiber_current() -> VALUE;
    pub fn rb_fiber_alive_p(fiber: VALUE) -> VALUE;
    pub fn rb_fiber_new(func: BlockFn, object: VALUE) -> VALUE;
    fn rb_fiber_transfer(fiber: VALUE, argc: c_int, argv: *const VALUE) -> VALUE;
    fn rb_fiber_raise(fiber: VALUE, argc: c_int, argv: *const VALUE) -> VALUE;
    pub fn rb_obj_is_fiber(object: VALUE) -> VALUE;
    pub fn rb_fiber_scheduler_get() -> VALUE;
    /// The scheduler of the current fiber, `NIL` in one that blocks.
    pub fn rb_fiber_scheduler_current() -> VALUE;
    /// Ends the process as the end of the main program does, with what `rb_protect` stopped.
    pub fn ruby_stop(state: c_int) -> !;
    pub fn rb_fiber_scheduler_set(scheduler: VALUE) -> VALUE;

    pub fn rb_thread_current() -> VALUE;
    static rb_cRactor: VALUE;
    pub fn rb_thread_check_ints();
    pub fn rb_thread_interrupted(thread: VALUE) -> c_int;
    pub fn rb_thread_create(
        func: unsafe extern "C" fn(*mut c_void) -> VALUE,
        data: *mut c_void,
    ) -> VALUE;
    /// Interrupts a thread as a signal does; nil if it has ended.
    pub fn rb_thread_wakeup_alive(thread: VALUE) -> VALUE;
    /// Gives the thread a native thread of its own, for good (include/ruby/thread.h).
    pub fn rb_thread_lock_native_thread() -> bool;
    pub fn rb_thread_add_event_hook(thread: VALUE, func: EventHookFn, events: u32, data: VALUE);
    pub fn rb_thread_remove_event_hook(thread: VALUE, func: EventHookFn) -> c_int;
    pub fn rb_nogvl(
        func: NogvlFn,
        data: *mut c_void,
        unblock: Option<UnblockFn>,
        unblock_data: *mut c_void,
        flags: c_int,
    ) -> *mut c_void;

    pub fn rb_ractor_local_storage_ptr_newkey(kind: *const RactorLocalStorageType) -> *mut c_void;
    pub fn rb_ractor_local_storage_ptr(key: *mut c_void) -> *mut c_void;
    pub fn rb_ractor_local_storage_ptr_set(key: *mut c_void, value: *mut c_void);

    pub fn rb_io_descriptor(io: VALUE) -> c_int;
    pub fn rb_io_timeout(io: VALUE) -> VALUE;
    pub fn rb_io_buffer_get_bytes(buffer: VALUE, base: *mut *mut c_void, size: *mut usize)
        -> c_int;
    pub fn rb_io_buffer_get_bytes_for_reading(
        buffer: VALUE,
        base: *mut *const c_void,
        size: *mut usize,
    );
    pub fn rb_io_buffer_get_bytes_for_writing(
        buffer: VALUE,
        base: *mut *mut c_void,
        size: *mut usize,
    );
    pub fn rb_io_buffer_new(base: *mut c_void, size: usize, flags: c_int) -> VALUE;
    pub fn rb_io_buffer_free(buffer: VALUE) -> VALUE;
    pub fn rb_io_buffer_resize(buffer: VALUE, size: usize);
    pub fn rb_io_buffer_lock(buffer: VALUE) -> VALUE;
    pub fn rb_io_buffer_unlock(buffer: VALUE) -> VALUE;

    pub fn rb_process_status_wait(pid: libc::pid_t, flags: c_int) -> VALUE;
    pub fn rb_time_interval(duration: VALUE) -> libc::timeval;
    pub fn rb_make_exception(argc: c_int, argv: *const VALUE) -> VALUE;
    pub fn rb_syserr_new(errno: c_int, message: *const c_char) -> VALUE;

    fn rb_profile_frames(
        start: c_int,
        limit: c_int,
        frames: *mut VALUE,
        lines: *mut c_int,
    ) -> c_int;
    fn rb_profile_frame_method_name(frame: VALUE) -> VALUE;
    fn rb_profile_frame_qualified_method_name(frame: VALUE) -> VALUE;
    fn rb_protect(
        func: unsafe extern "C" fn(VALUE) -> VALUE,
        argument: VALUE,
        state: *mut c_int,
    ) -> VALUE;
    fn rb_errinfo() -> VALUE;
    fn rb_set_errinfo(error: VALUE);
    fn rb_jump_tag(state: c_int) -> !;
    fn rb_exc_raise(exception: VALUE) -> !;
    fn rb_exc_new(class: VALUE, text: *const c_char, length: c_long) -> VALUE;
    fn rb_intern2(name: *const c_char, length: c_long) -> ID;
}

/// How a hook ends when it does not return: by an exception, or by going on with an unwinding that
/// [`protect`] stopped (a raise, a throw, a kill).
#[derive(Debug)]
pub enum Raise {
    Exception(VALUE),
    /// The Errno of this number, made when it is raised.
    Errno(i32),
    /// The fiber is to end: its ensure blocks run, and no rescue stops it. Once: Ruby's own Fiber#kill kills anew
    /// whenever the fiber is switched to, in the middle of an ensure block too.
    Unwind,
    Jump(c_int),
}

pub type Outcome = Result<VALUE, Raise>;

impl Raise {
    /// An exception of `class` with `text`.
    pub fn new(class: VALUE, text: &str) -> Self {
        // SAFETY: `text` is copied.
        Self::Exception(unsafe { rb_exc_new(class, text.as_ptr().cast(), text.len() as c_long) })
    }

    /// The Errno for `errno`.
    pub fn errno(errno: i32) -> Self {
        Self::Errno(errno)
    }

    /// The Errno for `errno`, with words of ours.
    pub fn errno_with(errno: i32, text: &str) -> Self {
        let text = std::ffi::CString::new(text).unwrap_or_default();
        // SAFETY: the message is copied.
        Self::Exception(unsafe { rb_syserr_new(errno, text.as_ptr()) })
    }

    /// A UM::Error with `text`.
    pub fn misuse(text: &str) -> Self {
        Self::new(crate::ruby::errors::error_class(), text)
    }

    pub fn argument(text: &str) -> Self {
        // SAFETY: the class is set once Ruby runs.
        Self::new(unsafe { rb_sys::rb_eArgError }, text)
    }

    /// Leaves Rust. Nothing droppable may be alive in the frames below.
    pub unsafe fn leave(self) -> ! {
        // SAFETY: called from the outermost frame of a method, as the caller promises.
        unsafe {
            match self {
                Self::Exception(exception) => rb_exc_raise(exception),
                // A NULL message is allowed (error.c).
                Self::Errno(errno) => rb_exc_raise(rb_syserr_new(errno, std::ptr::null())),
                Self::Unwind => rb_sys::rb_throw_obj(tag(), NIL),
                Self::Jump(state) => rb_jump_tag(state),
            }
        }
    }
}

/// Switches to a fiber, with what its own switch away returns. May longjmp.
///
/// When control comes back, Ruby looks at the fiber that was switched to, to give its stack back if it has ended
/// (cont.c, fiber_switch): it may have been collected by then, unless this frame keeps it.
#[inline]
pub unsafe fn transfer(fiber: VALUE, arguments: &[VALUE]) -> VALUE {
    // SAFETY: the slice is valid for the call; the fiber stays on this frame until it is over.
    unsafe {
        let value = rb_fiber_transfer(fiber, arguments.len() as c_int, arguments.as_ptr());
        std::hint::black_box(fiber);
        value
    }
}

/// Fiber#raise. May longjmp. Keeps the fiber, as [`transfer`].
pub unsafe fn raise_in(fiber: VALUE, arguments: &[VALUE]) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe {
        let value = rb_fiber_raise(fiber, arguments.len() as c_int, arguments.as_ptr());
        std::hint::black_box(fiber);
        value
    }
}

/// Runs the body of a method: a panic becomes a `fatal`-like RuntimeError, an `Err` leaves by longjmp
/// only after the body's frame is gone.
pub unsafe fn method(body: impl FnOnce() -> Outcome) -> VALUE {
    let raise = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(raise)) => raise,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            // SAFETY: the class is set once Ruby runs.
            let raise = Raise::new(
                unsafe { rb_sys::rb_eRuntimeError },
                &format!("uringmachine panicked: {text}"),
            );
            drop(panic);
            raise
        }
    };
    // SAFETY: the body's frame is gone, and this one holds plain values only.
    unsafe { raise.leave() }
}

/// Calls `body`, which may longjmp, and stops the unwinding here.
///
/// `body` itself must hold nothing droppable across a call that may longjmp.
#[inline]
pub unsafe fn protect<F: FnOnce() -> VALUE>(body: F) -> Result<VALUE, c_int> {
    unsafe extern "C" fn call<F: FnOnce() -> VALUE>(argument: VALUE) -> VALUE {
        // SAFETY: `argument` is the address of the Option below, which outlives the call.
        let body = unsafe { &mut *(argument as *mut Option<F>) };
        match body.take() {
            Some(body) => body(),
            None => NIL,
        }
    }
    let mut body = Some(body);
    let mut state = 0;
    // SAFETY: `call::<F>` gets the address of a live `Option<F>`.
    let value = unsafe { rb_protect(call::<F>, (&raw mut body) as VALUE, &mut state) };
    if state == 0 {
        Ok(value)
    } else {
        Err(state)
    }
}

/// Takes the exception that [`protect`] stopped, so that it is pending no more. `None` for an
/// unwinding that carries no exception (a kill, a throw): that one must be continued.
pub unsafe fn take_exception() -> Option<VALUE> {
    // SAFETY: plain accessors of the execution context.
    unsafe {
        let error = rb_errinfo();
        // That of a throw is an object without a class.
        if !is_a(error, rb_sys::rb_eException) {
            return None;
        }
        rb_set_errinfo(NIL);
        Some(error)
    }
}

/// The exception that is being unwound, or `NIL`; a small integer while the thread is killed.
pub unsafe fn current_error() -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_errinfo() }
}

/// Has an exception be the one that is being unwound again; anything else is left as it is.
pub unsafe fn put_error_back(error: VALUE) {
    // SAFETY: an exception, or nil.
    unsafe {
        if error == NIL || is_a(error, rb_sys::rb_eException) {
            rb_set_errinfo(error);
        }
    }
}

/// Whether any frame of the fiber that runs is one of these methods, each with its name and its full name.
pub unsafe fn runs_within(methods: &[(&[u8], &[u8])]) -> bool {
    const DEPTH: usize = 1024;
    let mut frames = [NIL; DEPTH];
    let mut lines = [0; DEPTH];
    // SAFETY: both arrays hold DEPTH entries; frame values are valid while nothing returns.
    unsafe {
        let count = rb_profile_frames(0, DEPTH as c_int, frames.as_mut_ptr(), lines.as_mut_ptr());
        frames[..count as usize].iter().any(|frame| {
            let name = rb_profile_frame_method_name(*frame);
            // The full name is a new String.
            name != NIL
                && methods.iter().any(|(short, full)| {
                    string_bytes(&name) == *short
                        && string_bytes(&rb_profile_frame_qualified_method_name(*frame)) == *full
                })
        })
    }
}

/// The ID of a method or constant name.
pub fn id(name: &str) -> ID {
    // SAFETY: the name is copied.
    unsafe { rb_intern2(name.as_ptr().cast(), name.len() as c_long) }
}

/// Ractor.current.
pub fn current_ractor() -> VALUE {
    // SAFETY: a method of Ruby's that does not raise.
    unsafe { funcall(rb_cRactor, id("current"), &[]) }
}

/// Calls a public or private method. May longjmp.
pub unsafe fn funcall(receiver: VALUE, method: ID, arguments: &[VALUE]) -> VALUE {
    // SAFETY: the slice is valid for the call.
    unsafe {
        rb_sys::rb_funcallv(
            receiver,
            method,
            arguments.len() as c_int,
            arguments.as_ptr(),
        )
    }
}

/// Whether the hook that runs was reached from a method of this name: the first frame above the
/// frames of `hook` itself (a subclass that calls super has one more).
pub unsafe fn called_from(hook: &[u8], method: &[u8]) -> bool {
    // SAFETY: the caller's promise.
    unsafe { called_from_any(hook, &[method]) }
}

/// As [`called_from`], of any of these.
pub unsafe fn called_from_any(hook: &[u8], methods: &[&[u8]]) -> bool {
    const DEPTH: usize = 6;
    let mut frames = [NIL; DEPTH];
    let mut lines = [0; DEPTH];
    // SAFETY: both arrays hold DEPTH entries; frame values are valid while nothing returns.
    unsafe {
        let count = rb_profile_frames(0, DEPTH as c_int, frames.as_mut_ptr(), lines.as_mut_ptr());
        for frame in &frames[..count as usize] {
            let name = rb_profile_frame_method_name(*frame);
            if name == NIL {
                return false;
            }
            let name = string_bytes(&name);
            if name != hook {
                return methods.contains(&name);
            }
        }
    }
    false
}

/// The bytes of a String, borrowed from the value: valid while no Ruby code runs.
pub unsafe fn string_bytes(string: &VALUE) -> &[u8] {
    // SAFETY: the caller holds a String; pointer and length belong together.
    unsafe {
        let pointer = rb_sys::RSTRING_PTR(*string).cast::<u8>();
        std::slice::from_raw_parts(pointer, rb_sys::RSTRING_LEN(*string) as usize)
    }
}

/// A small Integer: counts and negated errnos, always a Fixnum.
#[inline]
pub fn fixnum(number: i64) -> VALUE {
    ((number << 1) | 1) as VALUE
}

/// The value of a Fixnum, if it is one.
#[inline]
pub fn as_fixnum(value: VALUE) -> Option<i64> {
    (value & 1 == 1).then_some(value as i64 >> 1)
}

/// true or false.
#[inline]
pub fn boolean(answer: bool) -> VALUE {
    if answer {
        TRUE
    } else {
        FALSE
    }
}

#[inline]
pub fn truthy(value: VALUE) -> bool {
    value & !NIL != 0
}

/// A function of any number of arguments, as Ruby takes it.
unsafe fn erased(function: *const ()) -> unsafe extern "C" fn() -> VALUE {
    // SAFETY: the caller has a function, and says to Ruby how many arguments it takes.
    unsafe { std::mem::transmute(function) }
}

/// Registers a method. The number of arguments must be what the function takes.
pub unsafe fn define_method(
    class: VALUE,
    name: &std::ffi::CStr,
    function: *const (),
    arity: c_int,
) {
    // SAFETY: Ruby calls the function with the arguments its arity says; the caller matches them.
    unsafe {
        rb_sys::rb_define_method(class, name.as_ptr(), Some(erased(function)), arity);
    }
}

/// As [`define_method`], of a method whose name is known as an ID.
pub unsafe fn define_method_id(class: VALUE, name: ID, function: *const (), arity: c_int) {
    // SAFETY: as `define_method`.
    unsafe {
        rb_sys::rb_define_method_id(class, name, Some(erased(function)), arity);
    }
}

/// Registers a singleton method.
pub unsafe fn define_singleton_method(
    object: VALUE,
    name: &std::ffi::CStr,
    function: *const (),
    arity: c_int,
) {
    // SAFETY: as in `define_method`.
    unsafe {
        rb_sys::rb_define_singleton_method(object, name.as_ptr(), Some(erased(function)), arity);
    }
}

/// The struct behind `rb_fiber_scheduler_blocking_operation_extract` (Ruby 4.0); opaque.
#[repr(C)]
pub struct BlockingOperation {
    _opaque: [u8; 0],
}

/// Ruby 4.0's C API for blocking operations, looked up at run time since 3.4 lacks it.
#[derive(Clone, Copy)]
pub struct BlockingOperations {
    pub extract: unsafe extern "C" fn(VALUE) -> *mut BlockingOperation,
    pub execute: unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
    pub cancel: unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
}

impl BlockingOperations {
    pub fn find() -> Option<Self> {
        // SAFETY: each symbol, if there, has the signature of include/ruby/fiber/scheduler.h.
        unsafe {
            let find = |name: &std::ffi::CStr| {
                let symbol = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
                (!symbol.is_null()).then_some(symbol)
            };
            Some(Self {
                extract: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(VALUE) -> *mut BlockingOperation,
                >(find(c"rb_fiber_scheduler_blocking_operation_extract")?),
                execute: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
                >(find(c"rb_fiber_scheduler_blocking_operation_execute")?),
                cancel: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
                >(find(c"rb_fiber_scheduler_blocking_operation_cancel")?),
            })
        }
    }
}

/// Whether a value is a Float.
#[inline]
pub unsafe fn is_float(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { rb_sys::RB_FLOAT_TYPE_P(value) }
}

/// Timeout::Error, loaded if need be.
pub unsafe fn timeout_error() -> Result<VALUE, Raise> {
    // SAFETY: may raise, stopped here.
    unsafe {
        protect(|| {
            rb_sys::rb_require(c"timeout".as_ptr());
            let module = rb_sys::rb_const_get(rb_sys::rb_cObject, id("Timeout"));
            rb_sys::rb_const_get(module, id("Error"))
        })
        .map_err(Raise::Jump)
    }
}

/// Whether a value is a String.
#[inline]
pub fn is_string(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { rb_sys::RB_TYPE_P(value, rb_sys::ruby_value_type::RUBY_T_STRING) }
}

/// Whether a value is an Array.
pub unsafe fn is_array(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { rb_sys::RB_TYPE_P(value, rb_sys::ruby_value_type::RUBY_T_ARRAY) }
}

/// Whether a value is a Symbol.
pub fn is_symbol(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { rb_sys::RB_TYPE_P(value, rb_sys::ruby_value_type::RUBY_T_SYMBOL) }
}

/// Whether a value is a Hash.
pub fn is_hash(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { rb_sys::RB_TYPE_P(value, rb_sys::ruby_value_type::RUBY_T_HASH) }
}

/// Whether a value is an IO::Buffer.
pub fn is_io_buffer(value: VALUE) -> bool {
    static CLASS: AtomicU64 = AtomicU64::new(0);
    // SAFETY: the class is a constant of IO, which is never collected.
    unsafe {
        let mut class = CLASS.load(Ordering::Relaxed);
        if class == 0 {
            class = rb_sys::rb_const_get(rb_sys::rb_cIO, id("Buffer"));
            CLASS.store(class, Ordering::Relaxed);
        }
        is_a(value, class)
    }
}

/// Whether an object is frozen.
pub fn is_frozen(value: VALUE) -> bool {
    // SAFETY: a check of a flag.
    unsafe { rb_sys::rb_obj_frozen_p(value) == TRUE }
}

/// Whether a fiber is a blocking one, as the root fiber of a thread is.
pub unsafe fn is_blocking_fiber(fiber: VALUE) -> bool {
    // SAFETY: a method of Fiber that does not raise; protected in case a program replaced it.
    unsafe {
        if rb_obj_is_fiber(fiber) != TRUE {
            return false;
        }
        match protect(|| funcall(fiber, id("blocking?"), &[])) {
            Ok(answer) => truthy(answer),
            Err(_) => {
                take_exception();
                false
            }
        }
    }
}

/// Takes out the constant IO::TimeoutError.
pub unsafe fn io_timeout_error() -> VALUE {
    // SAFETY: IO::TimeoutError is defined since Ruby 3.2.
    unsafe { rb_sys::rb_const_get(rb_sys::rb_cIO, id("TimeoutError")) }
}

/// RUBY_UBF_IO: the unblock function that interrupts the thread's system call by a signal
/// (include/ruby/thread.h).
pub fn ubf_io() -> UnblockFn {
    // SAFETY: Ruby compares the pointer with -1 and never calls it.
    unsafe { std::mem::transmute::<usize, UnblockFn>(usize::MAX) }
}

/// A class of Ruby's that no variable of its C API names.
pub unsafe fn class(name: &std::ffi::CStr) -> VALUE {
    // SAFETY: the name is a class that Ruby defines.
    unsafe { rb_sys::rb_path2class(name.as_ptr()) }
}

/// Whether an object is of a class. Blockers may be objects that Ruby hides, which have none.
pub fn is_a(object: VALUE, class: VALUE) -> bool {
    // SAFETY: what is no immediate begins with an RBasic.
    unsafe {
        if !rb_sys::SPECIAL_CONST_P(object) && (*(object as *const rb_sys::RBasic)).klass == 0 {
            return false;
        }
        rb_sys::rb_obj_is_kind_of(object, class) == TRUE
    }
}

/// A binary String of bytes.
pub unsafe fn new_string(bytes: &[u8]) -> VALUE {
    // SAFETY: the bytes are copied.
    unsafe { rb_sys::rb_str_new(bytes.as_ptr().cast(), bytes.len() as _) }
}

/// What [`Raise::Unwind`] throws, and the body of every fiber that a machine starts catches.
pub static TAG: AtomicU64 = AtomicU64::new(0);

/// The tag of an unwinding.
pub fn tag() -> VALUE {
    TAG.load(Ordering::Relaxed)
}

/// The descriptor of an IO; what raises, for one that is closed, is stopped, as by [`protect`].
pub fn descriptor(io: VALUE) -> Result<c_int, c_int> {
    let mut fd = -1;
    let slot = &raw mut fd;
    // SAFETY: the closure holds plain values; `fd` outlives it.
    unsafe {
        protect(|| {
            *slot = rb_io_descriptor(io);
            NIL
        })?;
    }
    Ok(fd)
}
