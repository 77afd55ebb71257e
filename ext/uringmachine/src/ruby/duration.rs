//! Durations as Ruby gives them: nil, Integer, Float, Rational, or anything with divmod.

use uringmachine_runtime::clock;

use crate::ruby::{self, Raise, NIL, VALUE};

const NANOSECONDS: f64 = 1e9;
/// About 31 years; longer waits are as good as for ever.
const FAR: f64 = 1e9;

/// Nanoseconds of a duration; `None` for nil. Negative ones and what is no number raise what
/// Kernel#sleep raises.
pub fn nanoseconds(duration: VALUE) -> Result<Option<u64>, Raise> {
    if duration == NIL {
        return Ok(None);
    }
    if let Some(seconds) = ruby::as_fixnum(duration) {
        if (0..FAR as i64).contains(&seconds) {
            return Ok(Some(seconds as u64 * NANOSECONDS as u64));
        }
    }
    // SAFETY: a type check, and the value of what is a Float; the conversion may raise, stopped here.
    unsafe {
        if ruby::is_float(duration) {
            let seconds = rb_sys::rb_float_value(duration);
            if (0.0..FAR).contains(&seconds) {
                return Ok(Some((seconds * NANOSECONDS) as u64));
            }
        }
        let mut time = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let slot = &raw mut time;
        ruby::protect(|| {
            *slot = ruby::rb_time_interval(duration);
            NIL
        })
        .map_err(Raise::Jump)?;
        let seconds = (time.tv_sec as u64).min(FAR as u64);
        Ok(Some(
            seconds * NANOSECONDS as u64 + time.tv_usec as u64 * 1000,
        ))
    }
}

/// As [`nanoseconds`], but what no Time is long enough for, as Float::INFINITY, is as good as for ever.
pub fn unbounded(duration: VALUE) -> Result<Option<u64>, Raise> {
    match nanoseconds(duration) {
        // SAFETY: the unwinding has just been stopped; type checks, and a comparison that is protected.
        Err(Raise::Jump(state)) => unsafe {
            match ruby::take_exception() {
                Some(error) if ruby::is_a(error, rb_sys::rb_eRangeError) => {
                    let zero = [ruby::fixnum(0)];
                    match ruby::protect(|| ruby::funcall(duration, ruby::id("<"), &zero)) {
                        Ok(negative) if !ruby::truthy(negative) => {
                            Ok(Some(FAR as u64 * 1_000_000_000))
                        }
                        Ok(_) => Err(Raise::Exception(error)),
                        Err(state) => Err(Raise::Jump(state)),
                    }
                }
                Some(error) => Err(Raise::Exception(error)),
                None => Err(Raise::Jump(state)),
            }
        },
        result => result,
    }
}

/// As [`unbounded`], of what is left of a limit: one that is over is over, by however much.
pub fn rest(duration: VALUE) -> Result<Option<u64>, Raise> {
    match unbounded(duration) {
        // SAFETY: the unwinding has just been stopped; a comparison that is protected.
        Err(raise @ (Raise::Jump(_) | Raise::Exception(_))) => unsafe {
            let error = match raise {
                Raise::Jump(state) => match ruby::take_exception() {
                    Some(error) => error,
                    None => return Err(Raise::Jump(state)),
                },
                Raise::Exception(error) => error,
                raise => return Err(raise),
            };
            let is_over = ruby::is_a(duration, rb_sys::rb_cNumeric)
                && ruby::protect(|| ruby::funcall(duration, ruby::id("<"), &[ruby::fixnum(0)]))
                    .is_ok_and(ruby::truthy);
            if is_over {
                Ok(Some(0))
            } else {
                Err(Raise::Exception(error))
            }
        },
        result => result,
    }
}

/// As [`unbounded`], with errors that name the argument.
pub fn named(duration: VALUE, name: &str) -> Result<Option<u64>, Raise> {
    // SAFETY: type checks, and the value of what is a Float; what is raised is stopped by `nanoseconds`.
    unsafe {
        if duration != NIL
            && !ruby::is_a(duration, rb_sys::rb_cNumeric)
            && rb_sys::rb_respond_to(duration, ruby::id("divmod")) == 0
        {
            return Err(crate::ruby::arguments::wrong_type(
                duration,
                name,
                "a number of seconds",
            ));
        }
        if ruby::is_float(duration) && rb_sys::rb_float_value(duration).is_nan() {
            return Err(Raise::argument(&format!("{name} can't be NaN")));
        }
        match unbounded(duration) {
            Err(Raise::Exception(error))
                if ruby::is_a(error, rb_sys::rb_eArgError)
                    || ruby::is_a(error, rb_sys::rb_eRangeError) =>
            {
                Err(Raise::argument(&format!("{name} can't be negative")))
            }
            result => result,
        }
    }
}

/// The moment a duration from now; `None` for nil.
pub fn deadline(duration: VALUE) -> Result<Option<u64>, Raise> {
    Ok(nanoseconds(duration)?.map(from_now))
}

/// The moment `nanoseconds` from now.
#[inline]
pub fn from_now(nanoseconds: u64) -> u64 {
    clock::now().saturating_add(nanoseconds)
}
