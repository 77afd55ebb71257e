//! Which files are opened on the scheduler's own thread.
//!
//! Ruby 4.0 offers every open(2) to blocking_operation_wait. Handing one to a worker costs several times
//! the call itself, and pays only where the call can wait: a FIFO, a device, a file system behind a
//! network. A regular file or a directory on a local file system is opened here (docs/benchmarks.md,
//! small_files).
//!
//! Ruby does not say what an operation does. So the first time, a known file is opened to learn which
//! function opens files, and the struct it is given is read only when it looked as it should then
//! (io.c, `struct sysopen_struct`).

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use crate::os::file_system;
use crate::ruby::{self, BlockingOperation, BlockingOperations, NIL, VALUE};

/// `struct rb_fiber_scheduler_blocking_operation` of scheduler.c, as far as it is read: Ruby 4.0 only.
#[repr(C)]
struct Operation {
    function: usize,
    data: *const Opening,
    unblock: usize,
    unblock_data: usize,
    flags: i32,
    state: *mut Outcome,
}

/// `struct rb_fiber_scheduler_blocking_operation_state` (include/ruby/fiber/scheduler.h).
#[repr(C)]
struct Outcome {
    result: isize,
    errno: i32,
}

/// `struct sysopen_struct` of io.c.
#[repr(C)]
struct Opening {
    path: VALUE,
    flags: i32,
}

const UNKNOWN: usize = 0;
/// This Ruby's operations cannot be told apart.
const NONE: usize = 1;

/// The address of the function that opens files.
static FUNCTION: AtomicUsize = AtomicUsize::new(UNKNOWN);

thread_local! {
    /// The path that is opened to learn the function, while it is.
    static LEARNING: Cell<VALUE> = const { Cell::new(NIL) };
    /// The device that was looked at last, and whether its file system is local.
    static DEVICE: Cell<(u64, bool)> = const { Cell::new((u64::MAX, false)) };
}

/// Truncating more than this takes the file system a while.
const LARGE: i64 = 1 << 20;

/// Whether an operation is an open(2) that will not wait: then Ruby runs it itself.
pub unsafe fn is_quick(operation: *const BlockingOperation) -> bool {
    let operation = operation.cast::<Operation>();
    let learning = LEARNING.get();
    if learning != NIL {
        // SAFETY: this operation is the open(2) of `learn`, on a Ruby whose structs are these.
        unsafe {
            if (*(*operation).data).path == learning {
                FUNCTION.store((*operation).function, Ordering::Relaxed);
            }
        }
        return true;
    }
    if FUNCTION.load(Ordering::Relaxed) == UNKNOWN {
        // SAFETY: within a hook, with the GVL.
        unsafe { learn() };
    }
    // SAFETY: the function field is there on every Ruby that `learn` found one for; the data of that
    // function is an Opening, on the frame of the caller, and its path is a String with a final NUL.
    unsafe {
        let function = FUNCTION.load(Ordering::Relaxed);
        function != NONE
            && (*operation).function == function
            && opens_at_once(
                rb_sys::RSTRING_PTR((*(*operation).data).path),
                (*(*operation).data).flags,
            )
    }
}

/// Executes an operation, and says whether it came to its end. What one has opened that was cancelled
/// nobody is told of: it is closed.
///
/// # Safety
/// The operation is alive, and this is a thread of Ruby's.
pub unsafe fn execute(api: BlockingOperations, operation: *mut BlockingOperation) -> bool {
    let opening = operation.cast::<Operation>();
    let function = FUNCTION.load(Ordering::Relaxed);
    // SAFETY: as in `is_quick`. The outcome is on the frame of the caller, which waits, and is written to by
    // this thread alone; the result of an open(2) that did not fail is a new descriptor.
    unsafe {
        let opens = !matches!(function, UNKNOWN | NONE) && (*opening).function == function;
        let outcome = if opens {
            (*opening).state
        } else {
            std::ptr::null_mut()
        };
        if let Some(outcome) = outcome.as_mut() {
            outcome.result = NOTHING;
        }
        let done = (api.execute)(operation) == 0;
        if let Some(outcome) = outcome.as_mut().filter(|_| !done) {
            let fd = outcome.result as i32;
            outcome.result = NOTHING;
            if fd >= 0 {
                libc::close(fd);
            }
        }
        done
    }
}

/// No descriptor.
const NOTHING: isize = -1;

#[cold]
unsafe fn learn() {
    FUNCTION.store(NONE, Ordering::Relaxed);
    // SAFETY: what may raise is protected, and what was opened is closed.
    unsafe {
        let version = rb_sys::rb_const_get(rb_sys::rb_cObject, ruby::id("RUBY_VERSION"));
        if !ruby::string_bytes(&version).starts_with(b"4.0.") {
            return;
        }
        let path = rb_sys::rb_obj_freeze(rb_sys::rb_str_new_cstr(c"/dev/null".as_ptr()));
        LEARNING.set(path);
        let opened = ruby::protect(|| ruby::funcall(rb_sys::rb_cIO, ruby::id("sysopen"), &[path]));
        LEARNING.set(NIL);
        match opened.map(ruby::as_fixnum) {
            Ok(Some(fd)) => {
                libc::close(fd as i32);
            }
            _ => {
                ruby::take_exception();
            }
        }
    }
}

/// Whether a path names a regular file or a directory, or nothing yet, on a local file system.
///
/// # Safety
/// The path ends with NUL.
pub unsafe fn opens_at_once(path: *const libc::c_char, flags: i32) -> bool {
    // SAFETY: the path ends with NUL; the structs may be all zero, and are filled by the calls.
    unsafe {
        let mut status: libc::statx = std::mem::zeroed();
        let how = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
        let wanted = libc::STATX_TYPE | libc::STATX_SIZE;
        if libc::statx(libc::AT_FDCWD, path, how, wanted, &mut status) != 0 {
            // What is not there, and is not created, fails at once.
            return Errno::last_raw() == libc::ENOENT && flags & libc::O_CREAT == 0;
        }
        match u32::from(status.stx_mode) & libc::S_IFMT {
            libc::S_IFREG if flags & libc::O_TRUNC != 0 && status.stx_size as i64 > LARGE => false,
            libc::S_IFREG | libc::S_IFDIR => {
                let device = libc::makedev(status.stx_dev_major, status.stx_dev_minor);
                let (last, local) = DEVICE.get();
                if last == device {
                    return local;
                }
                let local = file_system::opens_locally(path);
                DEVICE.set((device, local));
                local
            }
            _ => false,
        }
    }
}
