//! What a machine tells about itself: metrics, profile mode, submit.

use std::ffi::c_int;

use crate::machine::caller::{method, number};
use crate::machine::{owner, Profile};
use crate::ruby::{self, define_all, Raise, NIL, VALUE};

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
unsafe extern "C" fn metrics(this: VALUE) -> VALUE {
    // SAFETY: the type is checked; what is called does not raise.
    unsafe {
        ruby::method(|| {
            let core = owner::core(this)?;
            let counts = (*core).machine.counts();
            let timers = (*core).machine.timers.len();
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
            set("ops_runqueue", (*core).machine.tasks.queue_len() as u64);
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
        })
    }
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
unsafe extern "C" fn is_profile_mode(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::boolean((*owner::core(this)?).profile.is_some()))) }
}

/// Turns the counting of times on or off. Turning it on starts at zero.
///
/// @method UringMachine#profile_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.profile_mode = true
unsafe extern "C" fn set_profile_mode(this: VALUE, value: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
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
        })
    }
}

/// Has the machine look at the ring at every switch, instead of every so often.
///
/// @method UringMachine#test_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.test_mode = true
unsafe extern "C" fn set_test_mode(this: VALUE, value: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            (*owner::core(this)?).set_eager(ruby::truthy(value));
            Ok(value)
        })
    }
}

/// Submits what is queued, without waiting. Waiting submits too; this is for `close_async`,
/// `write_async` and their kin when the program computes for long.
///
/// @method UringMachine#submit
/// @return [Integer] the operations that were submitted
/// @example
///   machine.submit #=> 0
unsafe extern "C" fn submit(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        method(argc, argv, this, 0..=0, |caller, _| {
            let count = (*caller.core).machine.counts().unsubmitted;
            (*caller.core)
                .machine
                .poll()
                .map_err(|error| Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
            Ok(number(count as i32))
        })
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
unsafe extern "C" fn debug(_class: VALUE, text: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let text = crate::ruby::arguments::string(text, "text")?;
            let text = String::from_utf8_lossy(ruby::string_bytes(&text));
            eprintln!("{text}");
            Ok(NIL)
        })
    }
}

/// The version of the running kernel: a hundred times its first number, plus its second.
///
/// @method UringMachine.kernel_version
/// @return [Integer]
/// @example
///   UM.kernel_version #=> 618, which is Linux 6.18
unsafe extern "C" fn kernel_version(_class: VALUE) -> VALUE {
    // SAFETY: uname fills the struct; its release is a C string.
    let version = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&mut name);
        let release = std::ffi::CStr::from_ptr(name.release.as_ptr()).to_string_lossy();
        let mut numbers = release
            .split(|character: char| !character.is_ascii_digit())
            .map(|digits| digits.parse().unwrap_or(0));
        numbers.next().unwrap_or(0) * 100 + numbers.next().unwrap_or(0)
    };
    ruby::fixnum(version)
}

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods that take what their arity says.
    unsafe {
        ruby::define_method(class, c"metrics", metrics as *const (), 0);
        ruby::define_method(class, c"profile_mode?", is_profile_mode as *const (), 0);
        ruby::define_method(class, c"profile_mode=", set_profile_mode as *const (), 1);
        ruby::define_method(class, c"test_mode=", set_test_mode as *const (), 1);
        define_all(class, &[(c"submit", submit)]);
        ruby::define_singleton_method(class, c"debug", debug as *const (), 1);
        ruby::define_singleton_method(class, c"kernel_version", kernel_version as *const (), 0);
    }
}
