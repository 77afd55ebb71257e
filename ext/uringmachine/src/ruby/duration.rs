//! Durations as Ruby gives them: nil, Integer, Float, Rational, or anything with divmod.

use uringmachine_runtime::clock;

use super::arguments::wrong_type;
use super::call::responds_to;
use super::{
    as_fixnum, as_float, call, classes, fixnum, is_a, may_raise_for, truthy, Raise, Value, NIL,
};

const NANOSECONDS: f64 = 1e9;
/// About 31 years; longer waits are as good as for ever.
const FAR: f64 = 1e9;

/// Nanoseconds of a duration; `None` for nil. Negative ones and what is no number raise what
/// Kernel#sleep raises.
pub fn nanoseconds(duration: Value) -> Result<Option<u64>, Raise> {
    if duration == NIL {
        return Ok(None);
    }
    if let Some(nanoseconds) = plain(duration) {
        return Ok(Some(nanoseconds));
    }
    // SAFETY: a value of Ruby's.
    let time = may_raise_for(|| unsafe { super::rb_time_interval(duration.raw()) })?;
    let seconds = (time.tv_sec as u64).min(FAR as u64);
    Ok(Some(
        seconds * NANOSECONDS as u64 + time.tv_usec as u64 * 1000,
    ))
}

/// As [`nanoseconds`], of an Integer or a Float that is neither negative nor as good as for ever.
#[inline]
pub fn plain(duration: Value) -> Option<u64> {
    if let Some(seconds) = as_fixnum(duration) {
        return ((0..FAR as i64).contains(&seconds)).then(|| seconds as u64 * NANOSECONDS as u64);
    }
    let seconds = as_float(duration)?;
    ((0.0..FAR).contains(&seconds)).then_some((seconds * NANOSECONDS) as u64)
}

/// As [`nanoseconds`], but what no Time is long enough for, as Float::INFINITY, is as good as for ever.
pub fn unbounded(duration: Value) -> Result<Option<u64>, Raise> {
    match nanoseconds(duration) {
        Err(raise) if raise.is_a(classes::range_error()) => {
            if truthy(call(duration, "<", &[fixnum(0)])?) {
                return Err(raise);
            }
            Ok(Some(FAR as u64 * 1_000_000_000))
        }
        result => result,
    }
}

/// As [`unbounded`], of what is left of a limit: one that is over is over, by however much.
pub fn rest(duration: Value) -> Result<Option<u64>, Raise> {
    match unbounded(duration) {
        Err(raise @ Raise::Exception(_)) => {
            let is_over = is_a(duration, classes::numeric())
                && call(duration, "<", &[fixnum(0)]).is_ok_and(truthy);
            if is_over {
                Ok(Some(0))
            } else {
                Err(raise)
            }
        }
        result => result,
    }
}

/// As [`unbounded`], with errors that name the argument.
pub fn named(duration: Value, name: &str) -> Result<Option<u64>, Raise> {
    if duration != NIL && !is_a(duration, classes::numeric()) && !responds_to(duration, "divmod")? {
        return Err(wrong_type(duration, name, "a number of seconds"));
    }
    if as_float(duration).is_some_and(f64::is_nan) {
        return Err(Raise::argument(&format!("{name} can't be NaN")));
    }
    match unbounded(duration) {
        Err(raise)
            if raise.is_a(classes::argument_error()) || raise.is_a(classes::range_error()) =>
        {
            Err(Raise::argument(&format!("{name} can't be negative")))
        }
        result => result,
    }
}

/// The moment a duration from now; `None` for nil.
#[inline]
pub fn deadline(duration: Value) -> Result<Option<u64>, Raise> {
    if duration == NIL {
        return Ok(None);
    }
    Ok(nanoseconds(duration)?.map(from_now))
}

/// The moment `nanoseconds` from now.
#[inline]
pub fn from_now(nanoseconds: u64) -> u64 {
    clock::now().saturating_add(nanoseconds)
}
