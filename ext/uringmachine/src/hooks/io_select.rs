//! io_select.

use std::ffi::c_int;

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::poll::{selects, wait_for_any};
use crate::machine::switch::{self, Failure};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, Outcome, Raise, FALSE, NIL, VALUE};
use crate::tls;

/// Waits as IO.select.
///
/// Ruby's own IO.select, without waiting, validates, unwraps `to_io`, sees read buffers and makes the
/// result; between two of those each descriptor is polled through the ring.
///
/// @method UringMachine::FiberScheduler#io_select(readable, writable = nil, exceptional = nil, timeout = nil)
/// @param readable [Array<IO>, nil]
/// @param writable [Array<IO>, nil]
/// @param exceptional [Array<IO>, nil]
/// @param timeout [Numeric, nil] seconds
/// @return [Array(Array, Array, Array), nil] what is ready; nil after the timeout
/// @kernel 5.5
/// @example
///   scheduler.io_select([io], nil, nil, 0.1) #=> nil
fn io_select(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let arguments = Arguments::of(arguments, 1..=4)?;
            let core = this.core()?;
            let argument = |place| arguments.all().get(place).copied().unwrap_or(NIL);
            switch::take_turns(core, (*core).current_task())?;
            let sets = [argument(0), argument(1), argument(2)];
            let deadline = duration::deadline(argument(3))?;
            if tls::is_any_held() {
                let held = held_among(sets[0])?;
                if rb_sys::RARRAY_LEN(held) > 0 {
                    let none = || rb_sys::rb_ary_new();
                    return Ok(rb_sys::rb_ary_new_from_args(3, held, none(), none()));
                }
            }
            let ready = select_now(&sets)?;
            let is_over = || deadline.is_some_and(|at| at <= uringmachine_runtime::clock::now());
            if ready != NIL || is_over() {
                return Ok(ready);
            }
            let me = (*core).current_task();
            let descriptors = descriptors(&sets)?;
            loop {
                let woken = if let Some(list) = &descriptors {
                    match wait_for_any(core, me, list, deadline, selects) {
                        Ok(woken) => woken,
                        Err(Failure::Raise(raise)) => return Err(raise),
                        Err(Failure::Scheduled(_) | Failure::Timeout) => true,
                    }
                } else {
                    switch::pause(core, me, deadline)? != switch::Ended::Deadline
                };
                let ready = select_now(&sets)?;
                if ready != NIL || !woken || is_over() {
                    return Ok(ready);
                }
            }
        }
    })
}

/// Those whose descriptors have records on the ring's side of a TLS connection: the kernel knows nothing of them.
unsafe fn held_among(set: VALUE) -> Outcome {
    // SAFETY: `to_io` may raise, stopped here; the array is on the frame.
    unsafe {
        ruby::protect(|| {
            let held = rb_sys::rb_ary_new();
            if ruby::is_array(set) {
                let mut place = 0;
                while place < rb_sys::RARRAY_LEN(set) as i64 {
                    let one = rb_sys::rb_ary_entry(set, place as _);
                    if tls::is_held(ruby::rb_io_descriptor(rb_sys::rb_io_get_io(one))) {
                        rb_sys::rb_ary_push(held, one);
                    }
                    place += 1;
                }
            }
            held
        })
        .map_err(Raise::Jump)
    }
}

/// IO.select(*sets, 0), past every hook.
unsafe fn select_now(sets: &[VALUE; 3]) -> Outcome {
    unsafe extern "C" fn call(
        _fiber: VALUE,
        sets: VALUE,
        _argc: c_int,
        _argv: *const VALUE,
        _block: VALUE,
    ) -> VALUE {
        // SAFETY: `sets` is the address of the array below, which outlives the call.
        unsafe {
            let sets = &*(sets as *const [VALUE; 3]);
            let arguments = [sets[0], sets[1], sets[2], ruby::fixnum(0)];
            ruby::funcall(rb_sys::rb_cIO, ruby::id("select"), &arguments)
        }
    }
    // SAFETY: exceptions stop at the protection; nothing here needs dropping.
    unsafe {
        ruby::protect(|| {
            rb_sys::rb_block_call(
                ruby::class(c"Fiber"),
                ruby::id("blocking"),
                0,
                std::ptr::null(),
                Some(call),
                sets as *const _ as VALUE,
            )
        })
        .map_err(Raise::Jump)
    }
}

/// The descriptors with their events; `None` if there is nothing to wait for but the time.
unsafe fn descriptors(sets: &[VALUE; 3]) -> Result<Option<Vec<(i32, u32)>>, Raise> {
    let events = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
    let mut list = Vec::new();
    for (set, events) in sets.iter().zip(events) {
        if *set == NIL {
            continue;
        }
        let mut place = 0;
        loop {
            let mut fd = -1;
            let slot = &raw mut fd;
            // SAFETY: IO.select has accepted the sets, but `to_io` may still raise: stopped here,
            // before the list is dropped.
            let more = unsafe {
                ruby::protect(|| {
                    if place >= rb_sys::RARRAY_LEN(*set) as i64 {
                        return FALSE;
                    }
                    let io = rb_sys::rb_io_get_io(rb_sys::rb_ary_entry(*set, place as _));
                    let io = if events == libc::POLLOUT {
                        rb_sys::rb_io_get_write_io(io)
                    } else {
                        io
                    };
                    *slot = ruby::rb_io_descriptor(io);
                    ruby::TRUE
                })
                .map_err(Raise::Jump)?
            };
            if more == FALSE {
                break;
            }
            place += 1;
            let events = events as u32;
            match list.iter_mut().find(|(known, _)| *known == fd) {
                Some((_, wanted)) => *wanted |= events,
                None => list.push((fd, events)),
            }
        }
    }
    Ok((!list.is_empty()).then_some(list))
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_select", method!(io_select, -1))?;
    Ok(())
}
