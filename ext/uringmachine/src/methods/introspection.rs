//! What a machine tells about itself: metrics, profile mode, submit.

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, Object, RClass, Ruby, Value};

use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::machine::{owner, Profile};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::settle;
use crate::ruby::{self, Raise, NIL};

/// What the machine has done and has at hand.
///
/// `ops_pending` counts operations the kernel has and timers that are armed; `ops_transient` those that
/// nobody waits for; `total_fixed_ops` those on registered buffers. `segments_free` is always 0, since bytes
/// are copied out of the provided buffers at once. In profile mode `time_total_cpu` and `time_total_wait` are added, in seconds.
///
/// @method UringMachine#metrics
/// @return [Hash{Symbol => Integer, Float}]
/// @example
///   machine.metrics[:total_ops] #=> 0
fn metrics(ruby: &Ruby, this: Value) -> Result<Value, Error> {
    let this = this.as_raw();
    settle(ruby, || {
        // SAFETY: the type is checked; what is called does not raise.
        unsafe {
            let core = owner::core(this)?;
            let counts = (*core).driver.counts();
            let timers = (*core).driver.timers.len();
            let hash = rb_sys::rb_hash_new();
            let set = |name, value: u64| {
                let key = rb_sys::rb_id2sym(ruby::id(name));
                rb_sys::rb_hash_aset(hash, key, rb_sys::rb_ull2inum(value));
            };
            set("size", owner::size_of(this));
            set("total_ops", counts.operations);
            set("total_switches", (*core).switches);
            set("total_waits", counts.sleeps);
            set("ops_pending", (counts.in_flight + timers) as u64);
            set("ops_unsubmitted", counts.unsubmitted as u64);
            set("ops_runqueue", (*core).driver.tasks.queue_len() as u64);
            set("ops_free", counts.free as u64);
            set("ops_transient", counts.orphans as u64);
            set("buffers_allocated", counts.buffers as u64);
            set("buffers_free", counts.buffers as u64);
            set("segments_free", 0);
            set("buffer_space_allocated", counts.buffer_space as u64);
            set("buffer_space_commited", counts.buffer_space as u64);
            set("total_fixed_ops", (*core).fixed);
            if let Some(profile) = (*core).profile {
                let set = |name, nanoseconds: u64| {
                    let key = rb_sys::rb_id2sym(ruby::id(name));
                    let seconds = rb_sys::rb_float_new(nanoseconds as f64 / 1e9);
                    rb_sys::rb_hash_aset(hash, key, seconds);
                };
                set(
                    "time_total_cpu",
                    cpu_time().saturating_sub(profile.cpu_start),
                );
                set("time_total_wait", profile.waited);
            }
            Ok(hash)
        }
    })
}

/// Nanoseconds of CPU time of this thread.
fn cpu_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer; the clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// @method UringMachine#profile_mode?
/// @return [Boolean] whether times are counted
/// @example
///   machine.profile_mode? #=> false
fn is_profile_mode(ruby: &Ruby, this: Value) -> Result<Value, Error> {
    let this = this.as_raw();
    settle(ruby, || {
        // SAFETY: the type is checked.
        unsafe { Ok(ruby::boolean((*owner::core(this)?).profile.is_some())) }
    })
}

/// Turns the counting of times on or off. Turning it on starts at zero.
///
/// @method UringMachine#profile_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.profile_mode = true
fn set_profile_mode(ruby: &Ruby, this: Value, value: Value) -> Result<Value, Error> {
    let (this, value) = (this.as_raw(), value.as_raw());
    settle(ruby, || {
        // SAFETY: the type is checked.
        unsafe {
            let core = owner::core(this)?;
            if !ruby::truthy(value) {
                (*core).profile = None;
            } else if (*core).profile.is_none() {
                (*core).profile = Some(Profile {
                    cpu_start: cpu_time(),
                    waited: 0,
                });
            }
            Ok(value)
        }
    })
}

/// Has the machine look at the ring at every switch, instead of every so often.
///
/// @method UringMachine#test_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.test_mode = true
fn set_test_mode(ruby: &Ruby, this: Value, value: Value) -> Result<Value, Error> {
    let (this, value) = (this.as_raw(), value.as_raw());
    settle(ruby, || {
        // SAFETY: the type is checked.
        unsafe {
            (*owner::core(this)?).set_eager(ruby::truthy(value));
            Ok(value)
        }
    })
}

/// Submits what is queued, without waiting. Waiting submits too; this is for `close_async`,
/// `write_async` and their kin when the program computes for long.
///
/// @method UringMachine#submit
/// @return [Integer] the operations that were submitted
/// @example
///   machine.submit #=> 0
fn submit(caller: Caller, _: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        let count = (*caller.core).driver.counts().unsubmitted;
        (*caller.core)
            .driver
            .poll()
            .map_err(|error| Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
        Ok(number(count as i32))
    }
}

/// Prints a line to standard error, at once.
///
/// @method UringMachine.debug(text)
/// @param text [String]
/// @return [nil]
/// @raise [TypeError] if text is no String
/// @example
///   UM.debug("here")
fn debug(ruby: &Ruby, _class: Value, text: Value) -> Result<Value, Error> {
    let text = text.as_raw();
    settle(ruby, || {
        // SAFETY: the type is checked.
        unsafe {
            let text = crate::ruby::arguments::string(text, "text")?;
            let text = String::from_utf8_lossy(ruby::string_bytes(&text));
            eprintln!("{text}");
            Ok(NIL)
        }
    })
}

/// The version of the running kernel: a hundred times its first number, plus its second.
///
/// @method UringMachine.kernel_version
/// @return [Integer]
/// @example
///   UM.kernel_version #=> 618, which is Linux 6.18
fn kernel_version(_class: Value) -> u32 {
    let name = nix::sys::utsname::uname();
    let release = name.map_or_else(
        |_| String::new(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    numbers.next().unwrap_or(0) * 100 + numbers.next().unwrap_or(0)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("metrics", method!(metrics, 0))?;
    class.define_method("profile_mode?", method!(is_profile_mode, 0))?;
    class.define_method("profile_mode=", method!(set_profile_mode, 1))?;
    class.define_method("test_mode=", method!(set_test_mode, 1))?;
    machine_method!(class, "submit", 0..=0, submit);
    class.define_singleton_method("debug", method!(debug, 1))?;
    class.define_singleton_method("kernel_version", method!(kernel_version, 0))?;
    Ok(())
}
