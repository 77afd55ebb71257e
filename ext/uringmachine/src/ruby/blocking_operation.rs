//! Ruby 4.0's C API for blocking operations, looked up at run time since 3.4 lacks it.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use rb_sys::VALUE;

use super::{may_raise_for, version, Raise, Value};

/// The struct behind `rb_fiber_scheduler_blocking_operation_extract` (Ruby 4.0); opaque.
#[repr(C)]
pub struct BlockingOperation {
    _opaque: [u8; 0],
}

/// An operation that a fiber of Ruby's waits for: it lies on that fiber's stack, until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation(pub(crate) *mut BlockingOperation);

// SAFETY: Ruby runs it on any of its threads.
unsafe impl Send for Operation {}

/// The functions.
#[derive(Clone, Copy)]
struct Api {
    extract: unsafe extern "C" fn(VALUE) -> *mut BlockingOperation,
    execute: unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
    cancel: unsafe extern "C" fn(*mut BlockingOperation) -> c_int,
}

fn api() -> Option<&'static Api> {
    static FOUND: OnceLock<Option<Api>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<Api> {
    type Extract = unsafe extern "C" fn(VALUE) -> *mut BlockingOperation;
    type Call = unsafe extern "C" fn(*mut BlockingOperation) -> c_int;
    let extract = version::symbol(c"rb_fiber_scheduler_blocking_operation_extract")?;
    let execute = version::symbol(c"rb_fiber_scheduler_blocking_operation_execute")?;
    let cancel = version::symbol(c"rb_fiber_scheduler_blocking_operation_cancel")?;
    // SAFETY: each symbol has the signature of include/ruby/fiber/scheduler.h.
    unsafe {
        Some(Api {
            extract: std::mem::transmute::<*mut c_void, Extract>(extract),
            execute: std::mem::transmute::<*mut c_void, Call>(execute),
            cancel: std::mem::transmute::<*mut c_void, Call>(cancel),
        })
    }
}

/// Whether this Ruby hands over operations; else it hands over Procs.
pub fn is_there() -> bool {
    api().is_some()
}

/// The operation of a Fiber::Scheduler::BlockingOperation.
///
/// # Errors
/// ArgumentError for one that is over; TypeError.
pub fn extract(object: Value) -> Result<Operation, Raise> {
    let api = api().ok_or_else(|| Raise::misuse("this Ruby has no blocking operations"))?;
    // SAFETY: Ruby looks whether it is one.
    may_raise_for(|| unsafe { (api.extract)(object.raw()) }).map(Operation)
}

/// Runs an operation; says whether it has run: not if it was cancelled.
///
/// # Safety
/// The fiber that it is of waits for it. Called on a thread of Ruby's.
pub unsafe fn execute(operation: Operation) -> bool {
    // SAFETY: the caller's promise.
    api().is_some_and(|api| unsafe { (api.execute)(operation.0) == 0 })
}

/// Has an operation end early, or not begin.
///
/// # Safety
/// The fiber that it is of waits for it.
pub unsafe fn cancel(operation: Operation) {
    if let Some(api) = api() {
        // SAFETY: the caller's promise.
        unsafe { (api.cancel)(operation.0) };
    }
}

/// `struct rb_fiber_scheduler_blocking_operation` of scheduler.c, as far as it is read: Ruby 4.0 only.
#[repr(C)]
struct Layout {
    function: usize,
    data: *const Opening,
    unblock: usize,
    unblock_data: usize,
    flags: i32,
    state: *mut State,
}

/// `struct rb_fiber_scheduler_blocking_operation_state` (include/ruby/fiber/scheduler.h).
#[repr(C)]
struct State {
    result: isize,
    errno: i32,
}

/// What an operation opens: `struct sysopen_struct` of io.c.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Opening {
    /// A String that ends with NUL.
    pub path: Value,
    /// Of open(2).
    pub flags: i32,
}

/// No descriptor.
const NOTHING: isize = -1;

/// The address of the function that an operation calls.
///
/// # Safety
/// The fiber that it is of waits for it. This Ruby's structs are as above.
pub unsafe fn function_of(operation: Operation) -> usize {
    // SAFETY: the caller's promise.
    unsafe { (*operation.0.cast::<Layout>()).function }
}

/// What an operation opens.
///
/// # Safety
/// As [`function_of`], and it is one that opens a file.
pub unsafe fn opening_of(operation: Operation) -> Opening {
    // SAFETY: the caller's promise; it lies on the frame of the fiber that waits.
    unsafe { *(*operation.0.cast::<Layout>()).data }
}

/// As [`execute`], of an operation that opens a file: what one has opened that was cancelled nobody is told of, so it is
/// closed.
///
/// # Safety
/// As [`execute`] and [`opening_of`].
pub unsafe fn execute_opening(operation: Operation) -> bool {
    // SAFETY: the caller's promise. The state is on the frame of the fiber that waits, and is written to by this thread
    // alone; the result of an open(2) that did not fail is a new descriptor.
    unsafe {
        let Some(state) = (*operation.0.cast::<Layout>()).state.as_mut() else {
            return execute(operation);
        };
        state.result = NOTHING;
        let done = execute(operation);
        if !done {
            let fd = std::mem::replace(&mut state.result, NOTHING) as i32;
            if fd >= 0 {
                libc::close(fd);
            }
        }
        done
    }
}
