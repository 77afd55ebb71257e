//! io_read, io_write, io_pread, io_pwrite: their arguments. What they do is in [`super::io_transfer`].

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI64, Ordering};

use crate::hooks::io_transfer::Transfer;
use crate::positions::CURRENT;
use crate::scheduler::get;
use crate::switch::Failure;
use crate::sys::{self, Raise, VALUE};

/// The scheduler interface of the running Ruby (RUBY_FIBER_SCHEDULER_VERSION): 2 is Ruby 3.4, 3 is
/// 4.0, 4 is 4.1.
static INTERFACE: AtomicI64 = AtomicI64::new(3);
/// Up to this interface the arguments are (length, offset), and length is a minimum.
const LAST_WITH_MINIMUM: i64 = 3;
/// From this interface on IO#pwrite calls its hook with the GVL (scheduler_contract, trap 9).
const FIRST_WITH_PWRITE: i64 = 3;
/// That of the first Ruby whose Thread#raise takes a cause.
const FIRST_WITH_CAUSE: i64 = 3;

impl Transfer {
    /// Reads the arguments (io, buffer[, from], a, b), where (a, b) is (length, offset) or, from
    /// interface 4 on, (offset, length).
    unsafe fn new(
        this: VALUE,
        arguments: &[VALUE],
        positioned: bool,
        writes: bool,
    ) -> Result<Self, Raise> {
        // SAFETY: the accessors raise for wrong types; nothing on this frame needs dropping.
        unsafe {
            let least = 2 + usize::from(positioned);
            if !(least..=least + 2).contains(&arguments.len()) {
                return Err(Raise::argument(&format!(
                    "wrong number of arguments (given {}, expected {least}..{})",
                    arguments.len(),
                    least + 2
                )));
            }
            let core = get(this).core()?;
            let (io, buffer) = (arguments[0], arguments[1]);
            let fd = sys::rb_io_descriptor(io);
            let position = if positioned {
                let from = rb_sys::rb_num2ll(arguments[2]);
                if from < 0 {
                    return Err(Raise::errno(libc::EINVAL));
                }
                from
            } else {
                CURRENT
            };
            let number = |place: usize, name: &str| match arguments.get(place) {
                None => Ok(None),
                Some(value) => match usize::try_from(rb_sys::rb_num2ll(*value)) {
                    Ok(number) => Ok(Some(number)),
                    Err(_) => Err(Raise::argument(&format!("{name} can't be negative"))),
                },
            };
            let single = INTERFACE.load(Ordering::Relaxed) > LAST_WITH_MINIMUM;
            let (length, offset) = if single {
                (number(least + 1, "Length")?, number(least, "Offset")?)
            } else {
                (number(least, "Length")?, number(least + 1, "Offset")?)
            };
            let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
            if writes {
                sys::rb_io_buffer_get_bytes_for_reading(buffer, (&raw mut base).cast(), &mut size);
            } else {
                sys::rb_io_buffer_get_bytes_for_writing(buffer, &mut base, &mut size);
            }
            let offset = offset.unwrap_or(0);
            let length = length.unwrap_or(0);
            if offset > size {
                return Err(Raise::argument(
                    "Specified offset is bigger than the buffer size!",
                ));
            }
            let left = size - offset;
            if length > left {
                return Err(Raise::argument(
                    "Specified offset+length is bigger than the buffer size!",
                ));
            }
            let (size, minimum) = if single { (length, 0) } else { (left, length) };
            let me = (*core).current_task();
            Ok(Self {
                core,
                me,
                io,
                fd,
                buffer,
                offset,
                base: Cell::new(base.cast::<u8>().add(offset)),
                size,
                minimum,
                position,
                single,
                writes,
                stepping: Cell::new(false),
            })
        }
    }
}

/// The error that a failed operation raises; IO::TimeoutError after `io.timeout`.
pub fn timed_out(failure: Failure) -> Raise {
    match failure {
        Failure::Raise(raise) => raise,
        Failure::Scheduled(_) => Raise::errno(libc::EINTR),
        // SAFETY: a constant of IO.
        Failure::Timeout => Raise::new(
            unsafe { sys::io_timeout_error() },
            "Blocking operation timed out!",
        ),
    }
}

unsafe fn transfer(
    argc: c_int,
    argv: *const VALUE,
    this: VALUE,
    positioned: bool,
    writes: bool,
) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            let arguments = std::slice::from_raw_parts(argv, argc as usize);
            Transfer::new(this, arguments, positioned, writes)?.run()
        })
    }
}

/// Reads from an IO into a buffer. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_read(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_read(io, buffer, 0, 0) #=> 5
unsafe extern "C" fn io_read(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, false, false) }
}

/// Writes a buffer to an IO: all of it from `offset` on. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_write(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_write(io, buffer, 0, 0) #=> 5
unsafe extern "C" fn io_write(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, false, true) }
}

/// Reads as `io_read`, at a position of the file.
///
/// @method UringMachine::FiberScheduler#io_pread(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pread(file, buffer, 4096, 0, 0) #=> 4096
unsafe extern "C" fn io_pread(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, true, false) }
}

/// Writes as `io_write`, at a position of the file. Not on Ruby 3.4, which would call it without its lock.
///
/// @method UringMachine::FiberScheduler#io_pwrite(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pwrite(file, buffer, 4096, 0, 0) #=> 4096
unsafe extern "C" fn io_pwrite(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, true, true) }
}

/// The interface of the running Ruby. The variable lets a test call the hooks as a later Ruby will.
unsafe fn interface() -> i64 {
    if let Some(version) = std::env::var("UM_SCHEDULER_INTERFACE")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return version;
    }
    // SAFETY: constants are looked up on classes that exist since Ruby 3.1; dlsym takes any name.
    unsafe {
        let buffer = rb_sys::rb_const_get(rb_sys::rb_cIO, sys::id("Buffer"));
        let version = sys::id("VERSION");
        if rb_sys::rb_const_defined_from(buffer, version) != 0
            && sys::as_fixnum(rb_sys::rb_const_get(buffer, version)).is_some_and(|v| v >= 3)
        {
            return 4;
        }
        let symbol = c"rb_fiber_scheduler_fiber_interrupt";
        if libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()).is_null() {
            2
        } else {
            3
        }
    }
}

/// Whether Thread#raise takes a cause.
pub fn has_cause() -> bool {
    INTERFACE.load(Ordering::Relaxed) >= FIRST_WITH_CAUSE
}

/// The scheduler interface that the hooks speak: RUBY_FIBER_SCHEDULER_VERSION of the running Ruby.
///
/// @method UringMachine::FiberScheduler.interface_version
/// @return [Integer] 2 is Ruby 3.4, 3 is 4.0, 4 is 4.1
/// @example
///   UM::FiberScheduler.interface_version #=> 3
unsafe extern "C" fn interface_version(_class: VALUE) -> VALUE {
    sys::fixnum(INTERFACE.load(Ordering::Relaxed))
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        INTERFACE.store(interface(), Ordering::Relaxed);
        sys::define_singleton_method(
            class,
            c"interface_version",
            interface_version as *const (),
            0,
        );
        sys::define_method(class, c"io_read", io_read as *const (), -1);
        sys::define_method(class, c"io_write", io_write as *const (), -1);
        sys::define_method(class, c"io_pread", io_pread as *const (), -1);
        if INTERFACE.load(Ordering::Relaxed) >= FIRST_WITH_PWRITE {
            sys::define_method(class, c"io_pwrite", io_pwrite as *const (), -1);
        }
    }
}
