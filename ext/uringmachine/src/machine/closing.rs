//! Who waits for which descriptor, and what the close of one ends.
//!
//! The kernel's operations keep the open file, but a fiber that goes on after a wait names it by its number, which
//! is another file's once the descriptor is closed. So whoever closes one first ends what is done with it:
//! [`end_on`]. From Ruby 4.0 on Ruby keeps account of the operations of its own hooks on an IO, and waits for them;
//! operations of ours it is told of ([`during`]). What goes by the number (another IO object, the machine's methods)
//! it does not know, and Ruby 3.4 wakes no fiber at all (lib/uringmachine/core_ext/io_close.rb).

use std::ffi::c_void;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use uringmachine_runtime::by_descriptor::ByDescriptor;
use uringmachine_runtime::{OpKey, TaskId};

use crate::machine::{switch, Core};
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a task does with a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub task: TaskId,
    /// What the kernel has of it; `None` between the steps of something longer.
    pub operation: Option<OpKey>,
}

/// Waits by descriptor.
#[derive(Default)]
pub struct Waits(ByDescriptor<Vec<Wait>>);

impl Waits {
    /// A task is about to wait for a descriptor.
    #[inline]
    pub fn begin(&mut self, fd: RawFd, task: TaskId, operation: Option<OpKey>) {
        if let Some(waits) = self.0.of(fd) {
            waits.push(Wait { task, operation });
        }
    }

    /// It waits no more.
    #[inline]
    pub fn end(&mut self, fd: RawFd, task: TaskId) {
        if let Some(waits) = self.0.get_mut(fd) {
            // Once: it may wait for the same within a longer operation.
            if let Some(place) = waits.iter().rposition(|wait| wait.task == task) {
                waits.swap_remove(place);
            }
        }
    }

    /// What is done with a descriptor.
    #[inline]
    pub fn on(&self, fd: RawFd) -> &[Wait] {
        self.0.get(fd).map_or(&[], Vec::as_slice)
    }
}

/// Ends what fibers of this thread do with a descriptor that is about to be closed: when this returns, the kernel has
/// no operation that the number could lead to another file, and none of the fibers names the number again. Each
/// raises the exception, unless its operation was over.
///
/// # Safety
/// The core is alive, and this is its thread.
pub unsafe fn end_on(core: *mut Core, fd: RawFd, exception: VALUE) {
    // SAFETY: the caller's promise.
    unsafe {
        interrupt_on(core, fd, exception);
        let operations: Vec<OpKey> = (*core)
            .waits
            .on(fd)
            .iter()
            .filter_map(|wait| wait.operation)
            .collect();
        for operation in &operations {
            let _ = (*core).driver.cancel(*operation);
        }
        for operation in operations {
            // One that takes longer, on a file, holds the file by itself.
            let _ = (*core).driver.drain(operation, switch::DRAIN_AT_ONCE);
        }
    }
}

/// Has the fibers that do something with a descriptor end that.
///
/// # Safety
/// The core is alive, and the GVL is held.
pub unsafe fn interrupt_on(core: *mut Core, fd: RawFd, exception: VALUE) {
    // SAFETY: the caller's promise.
    unsafe {
        for place in 0..(*core).waits.on(fd).len() {
            let task = (*core).waits.on(fd)[place].task;
            (*core).interrupt_by_close(task, exception);
        }
        (*core).notify();
    }
}

/// What a fiber raises whose IO is closed while it waits for it.
pub fn closed() -> VALUE {
    // SAFETY: the class is set once Ruby runs.
    match Raise::new(
        unsafe { rb_sys::rb_eIOError },
        "stream closed in another thread",
    ) {
        Raise::Exception(exception) => exception,
        _ => NIL,
    }
}

/// What a fiber raises whose descriptor a machine closes while it waits for it.
pub fn cancelled() -> VALUE {
    // SAFETY: makes an exception.
    unsafe { ruby::rb_syserr_new(libc::ECANCELED, std::ptr::null()) }
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
            (*core).waits.begin(fd, me, None);
            body();
            (*core).waits.end(fd, me);
            return Ok(());
        };
        let mut body = body;
        let argument = (&raw mut body) as VALUE;
        ruby::protect(|| operation(io, call, argument))
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
