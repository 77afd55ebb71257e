//! io_wait: the hottest hook of database drivers and OpenSSL.

use std::os::fd::RawFd;

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::poll::{poll_on_thread, ready_events, wait_ready};
use crate::machine::switch::{self, Failure};
use crate::machine::Core;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, Raise, FALSE};
use crate::tls;

/// IO::READABLE, IO::PRIORITY and IO::WRITABLE are poll(2)'s numbers.
const EVENTS: i64 = (libc::POLLIN | libc::POLLPRI | libc::POLLOUT) as i64;

/// Waits for what poll(2) answers to events that are none of the three: which of the three it means, or 0.
#[cold]
unsafe fn wait_as_poll(
    core: *mut Core,
    me: uringmachine_runtime::TaskId,
    fd: RawFd,
    events: i64,
    deadline: Option<u64>,
) -> Result<i64, Raise> {
    loop {
        // SAFETY: as `wait_ready`.
        match unsafe { poll_on_thread(core, me, &[(fd, events as u32)], deadline) } {
            Ok(answers) => return Ok(answers.map_or(0, |answers| ready_events(answers[0]))),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(_) => {}
        }
    }
}

/// Waits until an IO is ready. An error ends every wait, and is readable and writable; so does a hang-up, which is
/// readable.
///
/// @method UringMachine::FiberScheduler#io_wait(io, events, timeout = nil)
/// @param io [IO]
/// @param events [Integer] IO::READABLE, IO::PRIORITY and IO::WRITABLE; others are waited for as poll(2) does, and
///   are not told of
/// @param timeout [Numeric, nil] seconds; nil is io.timeout
/// @return [Integer, false] the events that are ready; false after the timeout
/// @raise [ArgumentError] if events is not positive
/// @kernel 5.5
/// @example
///   scheduler.io_wait(io, IO::WRITABLE) #=> 4
fn io_wait(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let arguments = Arguments::of(arguments, 2..=3)?;
            let (io, events) = (arguments.get(0), arguments.get(1));
            let Some(events) = ruby::as_fixnum(events) else {
                return Err(Raise::new(
                    rb_sys::rb_eTypeError,
                    "events must be an Integer",
                ));
            };
            if events <= 0 {
                return Err(Raise::argument("Events must be positive integer!"));
            }
            // Others are poll(2)'s: Ruby's own wait asks for them too, and tells of none.
            let (asked, events) = (events, events & EVENTS);
            let fd = ruby::rb_io_descriptor(io);
            let mut timeout = arguments.all().get(2).copied().unwrap_or(ruby::NIL);
            if timeout == ruby::NIL {
                timeout = ruby::rb_io_timeout(io);
            }
            let timeout = duration::nanoseconds(timeout)?;
            let readable = events & i64::from(libc::POLLIN);
            if readable != 0 && tls::is_held(fd) {
                return Ok(ruby::fixnum(readable));
            }
            let scheduler = this;
            if !scheduler.is_foreign() {
                let core = scheduler.core()?;
                switch::take_turns(core, (*core).current_task())?;
            }
            // An offloaded IO.copy_stream waits on the worker's thread (io.c, nogvl_wait_for).
            if timeout == Some(0) || scheduler.is_foreign() {
                return plain_poll(fd, if events == 0 { asked } else { events }, timeout);
            }
            let core = scheduler.core()?;
            let me = (*core).current_task();
            let deadline = timeout.map(duration::from_now);
            let ready = if events == 0 {
                wait_as_poll(core, me, fd, asked, deadline)?
            } else {
                wait_ready(core, me, fd, events, deadline)?
            };
            Ok(if ready == 0 {
                FALSE
            } else {
                ruby::fixnum(ready)
            })
        }
    })
}

struct PollCall {
    poll: libc::pollfd,
    timeout: i32,
    result: i32,
}

unsafe extern "C" fn run_poll(data: *mut std::ffi::c_void) -> *mut std::ffi::c_void {
    // SAFETY: `data` is the PollCall on the frame of `plain_poll`.
    unsafe {
        let call = &mut *data.cast::<PollCall>();
        call.result = libc::poll(&mut call.poll, 1, call.timeout);
    }
    std::ptr::null_mut()
}

/// poll(2): at once with the GVL, else without.
unsafe fn plain_poll(fd: RawFd, events: i64, timeout: Option<u64>) -> ruby::Outcome {
    let mut call = PollCall {
        poll: libc::pollfd {
            fd,
            events: events as i16,
            revents: 0,
        },
        timeout: match timeout {
            None => -1,
            Some(nanoseconds) => i32::try_from(nanoseconds.div_ceil(1_000_000)).unwrap_or(i32::MAX),
        },
        result: 0,
    };
    // SAFETY: `call` outlives both ways to run it. The plain form of rb_nogvl checks interrupts.
    unsafe {
        let data = (&raw mut call).cast();
        if call.timeout == 0 {
            run_poll(data);
        } else {
            ruby::rb_nogvl(
                run_poll,
                data,
                Some(ruby::ubf_io()),
                std::ptr::null_mut(),
                0,
            );
        }
    }
    if call.result <= 0 {
        return Ok(FALSE);
    }
    let ready = ready_events(i32::from(call.poll.revents));
    Ok(if ready == 0 {
        FALSE
    } else {
        ruby::fixnum(ready)
    })
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_wait", method!(io_wait, -1))?;
    Ok(())
}
