//! Whom the close of an IO concerns. From 4.0 on Ruby keeps account of the operations that go through its own
//! hooks, and calls `fiber_interrupt`; operations of ours it is told of ([`during`]). For 3.4, which does not, the
//! core keeps count of who waits for which descriptor (lib/uringmachine/closing.rb); from 4.0 on that costs
//! nothing.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use uringmachine_runtime::TaskId;

use crate::core::Core;
use crate::sys::{self, Raise, NIL, VALUE};

/// Waits by descriptor.
#[derive(Default)]
pub struct Waits {
    by_fd: Option<HashMap<RawFd, Vec<TaskId>>>,
}

impl Waits {
    /// Keeps count from now on.
    pub fn keep(&mut self) {
        self.by_fd.get_or_insert_default();
    }

    /// A task is about to wait for a descriptor.
    #[inline]
    pub fn begin(&mut self, fd: RawFd, task: TaskId) {
        if let Some(by_fd) = &mut self.by_fd {
            by_fd.entry(fd).or_default().push(task);
        }
    }

    /// It waits no more.
    #[inline]
    pub fn end(&mut self, fd: RawFd, task: TaskId) {
        let Some(by_fd) = &mut self.by_fd else { return };
        if let Some(tasks) = by_fd.get_mut(&fd) {
            // Once: it may wait for the same within a longer operation.
            if let Some(place) = tasks.iter().rposition(|waiting| *waiting == task) {
                tasks.remove(place);
            }
            if tasks.is_empty() {
                by_fd.remove(&fd);
            }
        }
    }

    /// The tasks that wait for a descriptor.
    pub fn on(&self, fd: RawFd) -> &[TaskId] {
        self.by_fd
            .as_ref()
            .and_then(|by_fd| by_fd.get(&fd))
            .map_or(&[], Vec::as_slice)
    }
}

/// Does something that waits for an IO, so that the fiber raises IOError when the IO is closed meanwhile.
///
/// # Safety
/// `io` is an IO, on the caller's frame or marked by other means; `body` raises nothing, and the core lives as
/// long as it runs.
pub unsafe fn during(
    core: *mut Core,
    me: TaskId,
    io: VALUE,
    fd: RawFd,
    body: &mut dyn FnMut(),
) -> Result<(), Raise> {
    // SAFETY: the caller's promise; what Ruby's function may raise is stopped here.
    unsafe {
        let Some(operation) = ruby_operation() else {
            (*core).waits.begin(fd, me);
            body();
            (*core).waits.end(fd, me);
            return Ok(());
        };
        let mut body = body;
        let argument = (&raw mut body) as VALUE;
        sys::protect(|| operation(io, call, argument))
            .map(drop)
            .map_err(Raise::Jump)
    }
}

unsafe extern "C" fn call(argument: VALUE) -> VALUE {
    // SAFETY: `during` passes the address of its body.
    unsafe { (*(argument as *mut &mut dyn FnMut()))() };
    NIL
}

type Function = unsafe extern "C" fn(VALUE) -> VALUE;
type Operation = unsafe extern "C" fn(VALUE, Function, VALUE) -> VALUE;

/// rb_thread_io_blocking_operation (internal/thread.h): what the scheduler's hooks run in, from Ruby 4.0 on. It
/// is exported, and in no header, so it is looked up.
fn ruby_operation() -> Option<Operation> {
    static FOUND: OnceLock<Option<Operation>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let name = c"rb_thread_io_blocking_operation";
        // SAFETY: the function has had this signature since it was made.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            (!found.is_null()).then(|| std::mem::transmute::<*mut c_void, Operation>(found))
        }
    })
}
