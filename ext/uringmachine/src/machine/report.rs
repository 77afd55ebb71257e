//! Telling of a fiber that failed, as a thread does (thread.c, rb_threadptr_report_on_exception). What cannot be told
//! harms nobody else.

use std::ffi::c_int;

use crate::machine::poll::wait_ready;
use crate::machine::{interrupts, switch, Core};
use crate::ruby::{self, duration, Raise, FALSE, TRUE, VALUE};

/// How long the report waits for room, in nanoseconds; and what a pipe with room takes at once (pipe(7), PIPE_BUF).
const PATIENCE: u64 = 1_000_000_000;
const PIECE: usize = 4096;

/// Whether an exception ends more than the fiber it was raised in, whatever is set: `exit`, a signal, a shortage of
/// memory, and what was raised in the thread from outside.
pub unsafe fn is_fatal(exception: VALUE) -> bool {
    // SAFETY: classes are set once Ruby runs.
    unsafe {
        let is = |class| rb_sys::rb_obj_is_kind_of(exception, class) == TRUE;
        is(rb_sys::rb_eSystemExit)
            || is(rb_sys::rb_eSignal)
            || is(rb_sys::rb_eNoMemError)
            || interrupts::is_for_thread(exception)
    }
}

/// Writes to $stderr what a fiber failed by. What that fails by is lost, but for what ends more than a fiber.
///
/// # Safety
/// Called by the fiber that has failed; the core, if there is one, is alive.
pub unsafe fn report(core: *mut Core, exception: VALUE) -> Result<(), Raise> {
    // SAFETY: what raises is protected.
    unsafe {
        if !wants_report() {
            return Ok(());
        }
        let told = attempt(core, || describe(exception))?;
        if !told {
            attempt(core, || describe_class(exception))?;
        }
        Ok(())
    }
}

/// Whether words could be made and written.
unsafe fn attempt(core: *mut Core, words: impl FnOnce() -> VALUE) -> Result<bool, Raise> {
    // SAFETY: as `report`.
    unsafe {
        let result = match ruby::protect(words) {
            Ok(text) => write(core, text),
            Err(state) => Err(switch::unwinding(state)),
        };
        match result {
            Ok(()) => Ok(true),
            Err(Raise::Exception(error)) if !is_fatal(error) => Ok(false),
            Err(Raise::Errno(_)) => Ok(false),
            Err(raise) => Err(raise),
        }
    }
}

/// Thread#report_on_exception of the current thread.
unsafe fn wants_report() -> bool {
    // SAFETY: a method of Thread that does not raise; protected in case a program replaced it.
    unsafe {
        let thread = ruby::rb_thread_current();
        let wanted = ruby::protect(|| ruby::funcall(thread, ruby::id("report_on_exception"), &[]));
        match wanted {
            Ok(wanted) => ruby::truthy(wanted),
            Err(_) => {
                ruby::take_exception();
                true
            }
        }
    }
}

/// The fiber, and the exception in full. May raise.
unsafe fn describe(exception: VALUE) -> VALUE {
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        let text = begin();
        let highlight = rb_sys::rb_hash_new();
        rb_sys::rb_hash_aset(highlight, rb_sys::rb_id2sym(ruby::id("highlight")), FALSE);
        let message = rb_sys::rb_funcallv_kw(
            exception,
            ruby::id("full_message"),
            1,
            &highlight,
            rb_sys::RB_PASS_KEYWORDS as c_int,
        );
        rb_sys::rb_str_append(text, message)
    }
}

/// The fiber, and no more of the exception than its class: it has no words for itself. May raise.
unsafe fn describe_class(exception: VALUE) -> VALUE {
    // SAFETY: as above.
    unsafe {
        let text = begin();
        rb_sys::rb_str_append(text, rb_sys::rb_class_name(rb_sys::rb_obj_class(exception)));
        let end = c" (its message cannot be had)\n";
        rb_sys::rb_str_cat(text, end.as_ptr(), end.count_bytes() as _)
    }
}

unsafe fn begin() -> VALUE {
    // SAFETY: as above.
    unsafe {
        let text = rb_sys::rb_str_dup(rb_sys::rb_any_to_s(ruby::rb_fiber_current()));
        let middle = c" terminated with exception (report_on_exception is true):\n";
        rb_sys::rb_str_cat(text, middle.as_ptr(), middle.count_bytes() as _)
    }
}

/// Writes to $stderr, in pieces that do not wait, as long as there is room in time.
unsafe fn write(core: *mut Core, text: VALUE) -> Result<(), Raise> {
    // SAFETY: what may raise is protected; the text is a String, kept by this frame.
    unsafe {
        let stderr = rb_sys::rb_gv_get(c"$stderr".as_ptr());
        let say = |piece| {
            ruby::protect(|| ruby::funcall(stderr, ruby::id("write"), &[piece]))
                .map_err(|state| switch::unwinding(state))
        };
        if !rb_sys::RB_TYPE_P(stderr, rb_sys::ruby_value_type::RUBY_T_FILE) {
            return say(text).map(drop);
        }
        let length = rb_sys::RSTRING_LEN(text) as usize;
        let mut place = 0;
        while place < length && has_room(core, stderr)? {
            let piece = rb_sys::rb_str_substr(text, 0, 0);
            let bytes = rb_sys::RSTRING_PTR(text).add(place);
            rb_sys::rb_str_cat(piece, bytes, (length - place).min(PIECE) as _);
            say(piece)?;
            place += PIECE;
        }
        std::hint::black_box(text);
        Ok(())
    }
}

unsafe fn has_room(core: *mut Core, io: VALUE) -> Result<bool, Raise> {
    // SAFETY: called right after the unwinding was stopped; one pollfd.
    unsafe {
        let fd = ruby::descriptor(io).map_err(|state| switch::unwinding(state))?;
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLOUT,
            revents: 0,
        };
        if libc::poll(&mut poll, 1, 0) != 0 {
            return Ok(true);
        }
        if core.is_null() || (*core).is_forked() {
            return Ok(libc::poll(&mut poll, 1, (PATIENCE / 1_000_000) as c_int) != 0);
        }
        let me = (*core).current_task();
        let deadline = Some(duration::from_now(PATIENCE));
        wait_ready(core, me, fd, i64::from(libc::POLLOUT), deadline).map(|events| events != 0)
    }
}
