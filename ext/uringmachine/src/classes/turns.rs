//! Turns in methods for which Ruby calls no hook when they succeed at once (`BasicSocket#send`, `IO#write_nonblock`,
//! `Thread.pass`): a fiber that calls them again and again would never let others run, nor raise what it is to raise.
//!
//! Such a method is prepended by one of the same arity, which takes a turn, and has Ruby's own do the rest.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::classes::fiber_scheduler;
use crate::machine::switch;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a call counts for whose bytes nobody knows: see `Core::count_at_once`.
const BYTES: usize = 1 << 10;

/// Lets those go first that are ready, if the current fiber has a scheduler of ours and has held the thread for long.
#[inline]
unsafe fn take_turn() -> Result<(), Raise> {
    // SAFETY: plain accessors; see `switch`.
    unsafe {
        let scheduler = ruby::rb_fiber_scheduler_current();
        if scheduler == NIL {
            return Ok(());
        }
        match fiber_scheduler::running_core(scheduler) {
            Some(core) => switch::take_turns_with(core, BYTES),
            None => Ok(()),
        }
    }
}

/// As [`take_turn`], for a method. May longjmp.
#[inline]
unsafe fn before() {
    // SAFETY: nothing here needs dropping.
    unsafe { ruby::method(|| take_turn().map(|()| NIL)) };
}

/// A method of any number of arguments.
unsafe extern "C" fn any(argc: c_int, argv: *const VALUE, _this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments, and keeps them until the method returns.
    unsafe {
        let keywords = rb_sys::rb_keyword_given_p();
        before();
        rb_sys::rb_call_super_kw(argc, argv, keywords)
    }
}

/// A method of a fixed number of arguments: `with!(name, argument…)`.
macro_rules! with {
    ($name:ident $(, $argument:ident)*) => {
        unsafe extern "C" fn $name(_this: VALUE $(, $argument: VALUE)*) -> VALUE {
            let arguments = [NIL $(, $argument)*];
            // SAFETY: the arguments are on this frame. The first is none.
            unsafe {
                before();
                let count = arguments.len() - 1;
                rb_sys::rb_call_super(count as c_int, arguments.as_ptr().add(1))
            }
        }
    };
}

with!(none);
with!(one, a);
with!(two, a, b);
with!(three, a, b, c);
with!(four, a, b, c, d);
with!(five, a, b, c, d, e);

/// CoreGaps.take_turn: takes a turn.
unsafe extern "C" fn turn(_module: VALUE) -> VALUE {
    // SAFETY: as `before`.
    unsafe { before() };
    NIL
}

/// CoreGaps.define_turn(module, name, arity): defines a method that takes a turn and calls `super`.
unsafe extern "C" fn define_turn(_module: VALUE, to: VALUE, name: VALUE, arity: VALUE) -> VALUE {
    // SAFETY: the function takes what the arity says; what raises has nothing here to drop.
    unsafe {
        let arity = rb_sys::rb_num2int(arity) as c_int;
        let function = match arity {
            -1 => any as *const (),
            0 => none as *const (),
            1 => one as *const (),
            2 => two as *const (),
            3 => three as *const (),
            4 => four as *const (),
            5 => five as *const (),
            _ => return ruby::method(|| Err(Raise::argument("no such arity"))),
        };
        ruby::define_method_id(to, rb_sys::rb_to_id(name), function, arity);
        NIL
    }
}

/// Has the methods take turns from now on, and those of OpenSSL's sockets if there are any by now: see
/// lib/uringmachine/core_ext/turns.rb. May longjmp.
pub unsafe fn begin() {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        let module = rb_sys::rb_path2class(c"UringMachine::CoreGaps".as_ptr());
        if !BEGUN.swap(true, Ordering::Relaxed) {
            ruby::funcall(module, ruby::id("take_turns"), &[]);
        }
        ruby::funcall(module, ruby::id("meet_openssl"), &[]);
    }
}

/// Defines what lib/uringmachine/core_ext/turns.rb is made of.
pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let module = rb_sys::rb_define_module_under(class, c"CoreGaps".as_ptr());
        ruby::define_singleton_method(module, c"take_turn", turn as *const (), 0);
        ruby::define_singleton_method(module, c"define_turn", define_turn as *const (), 3);
    }
}
