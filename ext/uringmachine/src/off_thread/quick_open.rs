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
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::NixPath;

use crate::os::fd::Fd;
use crate::os::{file, file_system, Errno};
use crate::ruby::blocking_operation::{self, Operation};
use crate::ruby::{as_fixnum, call, classes, string, version, Raise, Value, NIL};

const UNKNOWN: usize = 0;
/// This Ruby's operations cannot be told apart.
const NONE: usize = 1;

/// The address of the function that opens files.
static FUNCTION: AtomicUsize = AtomicUsize::new(UNKNOWN);

thread_local! {
    /// The path that is opened to learn the function, while it is: it is on a frame.
    static LEARNING: Cell<Value> = const { Cell::new(NIL) };
    /// The device that was looked at last, and whether its file system is local.
    static DEVICE: Cell<(u64, bool)> = const { Cell::new((u64::MAX, false)) };
}

/// Truncating more than this takes the file system a while.
const LARGE: i64 = 1 << 20;

/// Who runs an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Ruby itself.
    Ruby,
    /// The thread of the fiber that waits for it, here: it is an open(2) that will not wait.
    Here,
    /// Whoever runs what is no quick open.
    Others,
}

/// Who is to run an operation.
///
/// # Safety
/// The operation is that of the fiber that runs.
pub unsafe fn runs(operation: Operation) -> Who {
    let learning = LEARNING.get();
    if learning != NIL {
        // SAFETY: this operation is the open(2) of `learn`, on a Ruby whose structs are known.
        unsafe {
            if blocking_operation::opening_of(operation).path == learning {
                let function = blocking_operation::function_of(operation);
                FUNCTION.store(function, Ordering::Relaxed);
            }
        }
        return Who::Ruby;
    }
    if FUNCTION.load(Ordering::Relaxed) == UNKNOWN && learn().is_err() {
        return Who::Others;
    }
    // SAFETY: the caller's promise.
    if !unsafe { opens(operation) } {
        return Who::Others;
    }
    // SAFETY: as above, of one that opens a file.
    let opening = unsafe { blocking_operation::opening_of(operation) };
    let is_quick = string::with_bytes(opening.path, |path| {
        path.with_nix_path(|path| opens_at_once(path, opening.flags))
    });
    match is_quick {
        Ok(true) => Who::Here,
        _ => Who::Others,
    }
}

/// Whether an operation opens a file.
///
/// # Safety
/// The fiber that the operation is of waits for it.
unsafe fn opens(operation: Operation) -> bool {
    let function = FUNCTION.load(Ordering::Relaxed);
    // SAFETY: the caller's promise; a function is known on a Ruby whose structs are only.
    !matches!(function, UNKNOWN | NONE)
        && unsafe { blocking_operation::function_of(operation) } == function
}

/// Executes an operation, and says whether it came to its end.
///
/// # Safety
/// The fiber that the operation is of waits for it, and this is a thread of Ruby's.
pub unsafe fn execute(operation: Operation) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if opens(operation) {
            blocking_operation::execute_opening(operation)
        } else {
            blocking_operation::execute(operation)
        }
    }
}

#[cold]
fn learn() -> Result<(), Raise> {
    FUNCTION.store(NONE, Ordering::Relaxed);
    if !version::text().starts_with(b"4.0.") {
        return Ok(());
    }
    let path = string::freeze(string::utf8("/dev/null")?);
    LEARNING.set(path);
    let opened = call(classes::io(), "sysopen", &[path]);
    LEARNING.set(NIL);
    if let Some(fd) = as_fixnum(opened?) {
        let _ = Fd(fd as i32).close();
    }
    Ok(())
}

/// Whether an open(2) of a path with these flags will not wait.
pub fn opens_at_once(path: &CStr, flags: i32) -> bool {
    let status = match file::look(path, libc::STATX_TYPE | libc::STATX_SIZE) {
        Ok(status) => status,
        // What is not there, and is not created, fails at once.
        Err(errno) => return errno == Errno(libc::ENOENT) && flags & libc::O_CREAT == 0,
    };
    match file::type_of(&status) {
        libc::S_IFREG if flags & libc::O_TRUNC != 0 && status.stx_size as i64 > LARGE => false,
        libc::S_IFREG | libc::S_IFDIR => {
            let device = file::device(status.stx_dev_major, status.stx_dev_minor);
            let (last, local) = DEVICE.get();
            if last == device {
                return local;
            }
            let local = file_system::is_local(path);
            DEVICE.set((device, local));
            local
        }
        _ => false,
    }
}
