//! What may raise is called through here, and comes back as `Err`: nothing jumps over frames of ours.
//!
//! magnus' own protection puts `$!` back as it was, but by a call that refuses what is no exception, by raising: it jumps
//! over the frames that it is to protect when something raises in an `ensure` block that a throw, or the end of the
//! thread, has come to.

use std::ffi::c_int;

use rb_sys::VALUE;

use super::{errors, Raise, Value, NIL};

/// The state of an exception (eval_intern.h, `TAG_RAISE`); all others are jumps.
const RAISED: c_int = 6;

/// Calls what may raise, and stops that here. `body` holds nothing that needs dropping while it calls Ruby.
#[inline]
pub(super) fn may_raise(body: impl FnOnce() -> VALUE) -> Result<Value, Raise> {
    let before = errors::current_error();
    if errors::is_exception_or_nil(before) {
        protect(body, before)
    } else {
        protect_while_unwinding(body)
    }
}

/// As [`may_raise`], for what answers with something else than an object.
#[inline]
pub(super) fn may_raise_for<T>(body: impl FnOnce() -> T) -> Result<T, Raise> {
    let mut answer = None;
    may_raise(|| {
        answer = Some(body());
        NIL.raw()
    })?;
    Ok(answer.expect("a call that does not raise answers"))
}

/// `before` is what `$!` is, and will be if something is raised.
#[inline]
fn protect<F: FnOnce() -> VALUE>(body: F, before: Value) -> Result<Value, Raise> {
    unsafe extern "C" fn run<F: FnOnce() -> VALUE>(body: VALUE) -> VALUE {
        // SAFETY: the address of the body below, which outlives the call.
        let body = unsafe { &mut *(body as *mut Option<F>) };
        body.take().map_or(NIL.raw(), |body| body())
    }
    let mut body = Some(body);
    let mut state = 0;
    // SAFETY: `run` is given the address of a live body.
    let value = unsafe { rb_sys::rb_protect(Some(run::<F>), &raw mut body as VALUE, &mut state) };
    if state == 0 {
        Ok(Value::of(value))
    } else {
        Err(stopped(state, before))
    }
}

#[cold]
fn stopped(state: c_int, before: Value) -> Raise {
    if state != RAISED {
        return Raise::Jump(state);
    }
    let exception = errors::current_error();
    // SAFETY: an exception, or nil.
    unsafe { rb_sys::rb_set_errinfo(before.raw()) };
    Raise::Exception(exception)
}

/// As [`may_raise`], while a throw or the end of the thread is kept in `$!`, to be gone on with. What runs in an `ensure` of
/// Ruby's own has `$!` to itself, and what was there is put back whatever it was (eval.c, `rb_ensure`).
#[cold]
fn protect_while_unwinding<F: FnOnce() -> VALUE>(body: F) -> Result<Value, Raise> {
    struct Call<F> {
        body: Option<F>,
        answer: Result<Value, Raise>,
    }
    unsafe extern "C" fn nothing(_: VALUE) -> VALUE {
        NIL.raw()
    }
    unsafe extern "C" fn run<F: FnOnce() -> VALUE>(call: VALUE) -> VALUE {
        // SAFETY: the address of the Call below, which outlives the call.
        let call = unsafe { &mut *(call as *mut Call<F>) };
        if let Some(body) = call.body.take() {
            call.answer = protect(body, NIL);
        }
        if let Err(Raise::Jump(state)) = call.answer {
            // SAFETY: it takes the place of the one that was kept, and this frame has nothing to drop.
            unsafe { rb_sys::rb_jump_tag(state) };
        }
        NIL.raw()
    }
    let mut call = Call {
        body: Some(body),
        answer: Ok(NIL),
    };
    let address = &raw mut call as VALUE;
    let ensured = || {
        // SAFETY: `run` is given the address of a live Call, and raises no exception.
        unsafe { rb_sys::rb_ensure(Some(nothing), NIL.raw(), Some(run::<F>), address) }
    };
    protect(ensured, NIL)?;
    call.answer
}
