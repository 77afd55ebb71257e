//! The native part of UM::Process: the descriptor, and who uses it. Each method here is one step for all threads, and
//! for the handlers of signals, which may take no lock: none of them acts on a descriptor that was closed meanwhile.
//! The rest is lib/uringmachine/process.rb.

use std::ffi::c_void;

use crate::machine::caller::number;
use crate::machine::child;
use crate::os::process as processes;
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a UM::Process holds.
struct Process {
    /// Of the process; -1 when it is closed, for good.
    fd: i32,
    /// How many fibers wait by the descriptor: it stays open until they are done.
    users: usize,
    /// Nobody may use it any more but those who do already.
    closed: bool,
}

static TYPE: DataType = DataType::new::<Process>(c"UM::Process", mark, free);

unsafe extern "C" fn mark(_: *mut c_void) {}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead.
    unsafe { Box::from_raw(data.cast::<Process>()) }.close();
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let process = Box::new(Process {
        fd: -1,
        users: 0,
        closed: true,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(process).cast()) }
}

impl Process {
    fn close(&mut self) {
        if self.fd >= 0 {
            // SAFETY: the descriptor is its own. Linux closes it whatever it answers.
            unsafe { libc::close(self.fd) };
            self.fd = -1;
        }
    }

    fn open_fd(&self) -> Result<i32, Raise> {
        if self.closed {
            return Err(Raise::misuse("closed process"));
        }
        Ok(self.fd)
    }
}

/// The data of a UM::Process. Raises TypeError for anything else.
unsafe fn get<'a>(value: VALUE) -> &'a mut Process {
    // SAFETY: the type is checked; no two references are held across a call into Ruby.
    unsafe { &mut *TYPE.get(value).cast::<Process>() }
}

/// Gives the descriptor of a process to the object, once.
unsafe extern "C" fn adopt(this: VALUE, fd: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let process = get(this);
            let fd = ruby::as_fixnum(fd).map_or(-1, |fd| fd as i32);
            if !process.closed || process.fd >= 0 {
                libc::close(fd);
                return Err(Raise::misuse("already initialized process"));
            }
            (process.fd, process.closed) = (fd, false);
            Ok(this)
        })
    }
}

/// @method UringMachine::Process#fileno
/// @return [Integer] the descriptor, which is ready to be read when the process has ended
/// @raise [UringMachine::Error] if it is closed
/// @example
///   machine.poll(process.fileno, UM::POLLIN)
unsafe extern "C" fn fileno(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(number(get(this).open_fd()?))) }
}

/// The descriptor, which stays open until `release`.
unsafe extern "C" fn acquire(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let process = get(this);
            let fd = process.open_fd()?;
            process.users += 1;
            Ok(number(fd))
        })
    }
}

unsafe extern "C" fn release(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let process = get(this);
            process.users = process.users.saturating_sub(1);
            if process.users == 0 && process.closed {
                process.close();
            }
            Ok(NIL)
        })
    }
}

/// @method UringMachine::Process#alive?
/// @return [Boolean] whether the process has not ended. One that has, and that nobody has reaped, is not alive
/// @raise [UringMachine::Error] if it is closed and its end is not known
/// @example
///   process.alive? #=> true
unsafe extern "C" fn is_alive(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            if known_status(this) != NIL {
                return Ok(ruby::FALSE);
            }
            Ok(ruby::boolean(!processes::has_ended(get(this).open_fd()?)?))
        })
    }
}

/// Sends a signal, by its number, unless the process has ended.
unsafe extern "C" fn signal(this: VALUE, signal: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let Some(signal) = ruby::as_fixnum(signal).and_then(|signal| signal.try_into().ok())
            else {
                return Err(Raise::errno(libc::EINVAL));
            };
            if known_status(this) != NIL {
                return Err(Raise::errno(libc::ESRCH));
            }
            let fd = get(this).open_fd()?;
            if processes::has_ended(fd)? {
                return Err(Raise::errno(libc::ESRCH));
            }
            processes::send_signal(fd, signal, 0)?;
            Ok(this)
        })
    }
}

fn status_variable() -> ruby::ID {
    ruby::id("@status")
}

/// What `reap` has found, or nil.
unsafe fn known_status(this: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_attr_get(this, status_variable()) }
}

/// The process has ended: takes its status, unless somebody has. For one who has acquired the descriptor.
unsafe extern "C" fn reap(this: VALUE) -> VALUE {
    // SAFETY: the type is checked; the instance variable is the object's own.
    unsafe {
        ruby::method(|| {
            let known = known_status(this);
            if known != NIL {
                return Ok(known);
            }
            let status = child::take_status(get(this).fd)?;
            Ok(rb_sys::rb_ivar_set(this, status_variable(), status))
        })
    }
}

/// Closes the descriptor. The process is left alone. Whoever waits for it already goes on waiting.
///
/// @method UringMachine::Process#close
/// @return [nil]
/// @example
///   process.close
unsafe extern "C" fn close(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let process = get(this);
            process.closed = true;
            if process.users == 0 {
                process.close();
            }
            Ok(NIL)
        })
    }
}

/// @method UringMachine::Process#closed?
/// @return [Boolean]
/// @example
///   process.closed? #=> false
unsafe extern "C" fn is_closed(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::boolean(get(this).closed))) }
}

/// Defines the class.
pub unsafe fn define(module: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class_under(module, c"Process".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        ruby::define_method(class, c"fileno", fileno as *const (), 0);
        ruby::define_method(class, c"alive?", is_alive as *const (), 0);
        ruby::define_method(class, c"close", close as *const (), 0);
        ruby::define_method(class, c"closed?", is_closed as *const (), 0);
        let private =
            |name, function, arity| ruby::define_private_method(class, name, function, arity);
        private(c"adopt", adopt as *const (), 1);
        private(c"acquire", acquire as *const (), 0);
        private(c"release", release as *const (), 0);
        private(c"signal", signal as *const (), 1);
        private(c"reap", reap as *const (), 0);
    }
}
