//! io_wait: the hottest hook of database drivers and OpenSSL.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use uringmachine_runtime::{clock, opcode, types};

use crate::core::Core;
use crate::durations;
use crate::native;
use crate::scheduler::get;
use crate::switch::{self, Failure};
use crate::sys::{self, Raise, FALSE, VALUE};
use crate::tls;

/// IO::READABLE, IO::PRIORITY and IO::WRITABLE are poll(2)'s numbers.
const EVENTS: i64 = (libc::POLLIN | libc::POLLPRI | libc::POLLOUT) as i64;

/// What is waited for by the ring for some events of poll(2). Urgent data wakes with the priority band's bit (tcp.c,
/// `sock_def_readable`), and never who waits for POLLPRI alone.
pub fn wakes_for(events: u32) -> u32 {
    if events & libc::POLLPRI as u32 != 0 {
        events | libc::POLLRDBAND as u32
    } else {
        events
    }
}

/// What the ring answers to a poll of what tells nobody of its changes (a regular file, for urgent data: io_uring/poll.c,
/// `__io_arm_poll_handler`). poll(2) waits there.
pub const NEVER_WAKES: i32 = -libc::EINVAL;

/// What of the three events a poll's answer means, as Ruby's own wait has it (thread.c, rb_thread_io_wait): a hang-up
/// can be read, and an error can be read and written.
pub fn ready_events(answer: i32) -> i64 {
    const FAILED: i16 = libc::POLLERR | libc::POLLNVAL;
    const READS: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | FAILED;
    const WRITES: i16 = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND | FAILED;
    let mut ready = i64::from(answer & i32::from(libc::POLLPRI));
    for (bits, event) in [(READS, libc::POLLIN), (WRITES, libc::POLLOUT)] {
        if answer & i32::from(bits) != 0 {
            ready |= i64::from(event);
        }
    }
    ready
}

/// Waits until one of `events` is there, or the descriptor has hung up or failed: the events, or 0 at the deadline.
pub unsafe fn wait_ready(
    core: *mut Core,
    me: uringmachine_runtime::TaskId,
    fd: RawFd,
    events: i64,
    deadline: Option<u64>,
) -> Result<i64, Raise> {
    let wanted = wakes_for(events as u32);
    let entry = opcode::PollAdd::new(types::Fd(fd), wanted).build();
    loop {
        // SAFETY: a poll points to nothing; the core lives as long as the fiber waits.
        let result = unsafe { switch::operate(core, me, entry.clone(), deadline) };
        match result {
            Ok(answer) if answer >= 0 => match ready_events(answer) {
                0 => {}
                ready => return Ok(ready),
            },
            Ok(error) if error != NEVER_WAKES => return Err(Raise::errno(-error)),
            Ok(_) => {}
            Err(Failure::Timeout) => return Ok(0),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(Failure::Scheduled(_)) => continue,
        }
        // SAFETY: as above.
        let polled = unsafe { poll_on_thread(core, me, &[(fd, wanted)], deadline) };
        match polled {
            Ok(Some(answers)) => match ready_events(answers[0]) {
                0 => {}
                ready => return Ok(ready),
            },
            Ok(None) => return Ok(0),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(_) => {}
        }
    }
}

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

/// poll(2), on a thread: the answers, or `None` at the deadline. The ring's own poll ends when the peer will send no more
/// (POLLRDHUP), whatever it is for, and would do so again at once (io_uring/poll.c, IO_POLL_UNMASK).
///
/// # Safety
/// Called by the fiber of `me`, on a core that lives as long as it waits.
#[cold]
pub unsafe fn poll_on_thread(
    core: *mut Core,
    me: uringmachine_runtime::TaskId,
    list: &[(RawFd, u32)],
    deadline: Option<u64>,
) -> Result<Option<Vec<i32>>, Failure> {
    let mut files = Vec::with_capacity(list.len());
    for (fd, _) in list {
        files.push(native::duplicate(*fd)?);
    }
    let mut polls: Vec<libc::pollfd> = (files.iter().zip(list))
        .map(|(file, (_, events))| libc::pollfd {
            fd: file.as_raw_fd(),
            events: *events as i16,
            revents: 0,
        })
        .collect();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&answers);
    let job = move || {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_sub(clock::now());
            libc::timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            }
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the list and the time are this thread's; the files are kept open by it.
        let count = native::result_of(unsafe {
            libc::ppoll(
                polls.as_mut_ptr(),
                polls.len() as _,
                timeout,
                std::ptr::null(),
            )
        });
        if count >= 0 {
            let revents = polls.iter().map(|poll| i32::from(poll.revents)).collect();
            *told.lock().unwrap_or_else(PoisonError::into_inner) = revents;
        }
        let _ = &files;
        count
    };
    // SAFETY: the caller's promise. The close of one of the descriptors ends the wait, though the thread has others.
    let result = unsafe {
        for (fd, _) in list {
            (*core).waits.begin(*fd, me, None);
        }
        let result = native::call(core, me, job, || {});
        for (fd, _) in list {
            (*core).waits.end(*fd, me);
        }
        result
    };
    match result? {
        0 => Ok(None),
        count if count > 0 => Ok(Some(std::mem::take(
            &mut *answers.lock().unwrap_or_else(PoisonError::into_inner),
        ))),
        errno => Err(Raise::errno(-errno).into()),
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
unsafe extern "C" fn io_wait(argc: std::ffi::c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            if !(2..=3).contains(&argc) {
                return Err(Raise::argument(&format!(
                    "wrong number of arguments (given {argc}, expected 2..3)"
                )));
            }
            let (io, events) = (*argv, *argv.add(1));
            let Some(events) = sys::as_fixnum(events) else {
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
            let fd = sys::rb_io_descriptor(io);
            let mut timeout = if argc == 3 { *argv.add(2) } else { sys::NIL };
            if timeout == sys::NIL {
                timeout = sys::rb_io_timeout(io);
            }
            let timeout = durations::nanoseconds(timeout)?;
            let readable = events & i64::from(libc::POLLIN);
            if readable != 0 && tls::is_held(fd) {
                return Ok(sys::fixnum(readable));
            }
            let scheduler = get(this);
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
            let deadline = timeout.map(durations::from_now);
            let ready = if events == 0 {
                wait_as_poll(core, me, fd, asked, deadline)?
            } else {
                wait_ready(core, me, fd, events, deadline)?
            };
            Ok(if ready == 0 {
                FALSE
            } else {
                sys::fixnum(ready)
            })
        })
    }
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
unsafe fn plain_poll(fd: RawFd, events: i64, timeout: Option<u64>) -> sys::Outcome {
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
            sys::rb_nogvl(run_poll, data, Some(sys::ubf_io()), std::ptr::null_mut(), 0);
        }
    }
    if call.result <= 0 {
        return Ok(FALSE);
    }
    let ready = ready_events(i32::from(call.poll.revents));
    Ok(if ready == 0 {
        FALSE
    } else {
        sys::fixnum(ready)
    })
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: the function takes what its arity says.
    unsafe { sys::define_method(class, c"io_wait", io_wait as *const (), -1) };
}
