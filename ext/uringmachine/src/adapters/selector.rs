//! The methods of UM::Selector: a machine beneath io-event's interface of a selector, and so beneath Async. What io-event says of
//! its own is in its lib/io/event/selector/select.rb.

use magnus::prelude::*;
use magnus::{method, Error, RClass, Ruby};
use uringmachine_runtime::clock;

use super::async_hooks;
use crate::classes::machine;
use crate::classes::selector::Selector;
use crate::hooks::{io_transfer, process_wait};
use crate::machine::{owner, registry, Machine};
use crate::os::fd::Fd;
use crate::ruby::arguments::Arguments;
use crate::ruby::this::This;
use crate::ruby::{
    as_fixnum, call, duration, fiber, fixnum, io, run_block, truthy, values, Outcome, Raise, Value,
    FALSE, NIL,
};
use crate::tls;

/// The most turns that Async's loop has at once. Beside its timers it looks whether it is to end.
const TURNS: u32 = 16;

/// Switches to what was pushed before this turn; says whether anything was.
fn run_pushed(selector: &Selector, machine: &Machine) -> Result<bool, Raise> {
    let count = selector.pushed.borrow().len();
    for _ in 0..count {
        let Some(object) = selector.pushed.borrow_mut().pop_front() else {
            break;
        };
        switch_to(object)?;
    }
    if count > 0 {
        machine.goes_on(machine.task_of(selector.looping.get()));
    }
    Ok(count > 0)
}

/// Switches to a fiber, or to what answers as one does, if it is alive.
fn switch_to(object: Value) -> Result<(), Raise> {
    if fiber::is_fiber(object) {
        if fiber::is_alive(object) {
            fiber::transfer(object, &[])?;
        }
    } else if truthy(call(object, "alive?", &[])?) {
        call(object, "transfer", &[])?;
    }
    Ok(())
}

/// Makes a selector with a machine of its own, for Async: `require "uringmachine/async"`.
///
/// @method UringMachine::Selector.new(loop)
/// @param loop [Fiber] the one that calls `select`: the fiber that runs
/// @return [UringMachine::Selector]
/// @raise [UringMachine::UnsupportedError] if the kernel or the sandbox refuses io_uring
/// @raise [ArgumentError] if loop is not the fiber that runs
/// @kernel 6.1
/// @example
///   Async::Scheduler.new(selector: UM::Selector.new(Fiber.current))
fn initialize(this: This<Selector>, looping: Value) -> Result<(), Raise> {
    if looping != fiber::current() {
        return Err(Raise::argument("loop must be the fiber that runs"));
    }
    if this.machine.get().is_some() {
        return Err(Raise::misuse("already initialized"));
    }
    let um = machine::new_default()?;
    this.um.set(um);
    let machine = owner::find(um)?.own()?.share();
    machine.follow();
    this.looping.set(looping);
    this.machine
        .set(machine)
        .map_err(|_| Raise::misuse("already initialized"))
}

/// @method UringMachine::Selector#loop
/// @return [Fiber] the loop's
/// @example
///   selector.loop == Fiber.current #=> true
fn looping(this: This<Selector>) -> Value {
    this.looping.get()
}

/// @method UringMachine::Selector#machine
/// @return [UringMachine] the machine that it runs on
/// @example
///   selector.machine.metrics
fn um(this: This<Selector>) -> Value {
    this.um.get()
}

/// @method UringMachine::Selector#idle_duration
/// @return [Float] the seconds that the last `select` has slept
/// @example
///   selector.idle_duration #=> 0.01
fn idle_duration(this: This<Selector>) -> f64 {
    this.idle.get() as f64 / 1e9
}

/// Gives the thread to the loop. Whoever switches to the fiber next has it go on.
///
/// @method UringMachine::Selector#transfer
/// @return [Object] what the fiber is switched to with
/// @example
///   selector.transfer
fn transfer(this: This<Selector>) -> Outcome {
    this.machine()?.give_back()
}

/// Switches to a fiber; the current one goes on in its turn.
///
/// @method UringMachine::Selector#resume(fiber, *arguments)
/// @param fiber [Fiber]
/// @param arguments [Array] what it is switched to with
/// @return [nil]
/// @example
///   selector.resume(Fiber.new { … })
fn resume(this: This<Selector>, arguments: &[magnus::Value]) -> Outcome {
    let machine = this.machine()?;
    // Before its first fiber does anything.
    this.meet(fiber::scheduler())?;
    let Some((fiber, rest)) = values(arguments).split_first() else {
        return Arguments::of(arguments, 1..=usize::MAX).map(|_| NIL);
    };
    machine.step_behind(|| match fiber::is_fiber(*fiber) {
        true => fiber::transfer(*fiber, rest),
        false => call(*fiber, "transfer", rest),
    })?;
    Ok(NIL)
}

/// Gives the thread to the loop; the fiber goes on in its turn.
///
/// @method UringMachine::Selector#yield
/// @return [nil]
/// @example
///   selector.yield
fn step_back(this: This<Selector>) -> Outcome {
    let machine = this.machine()?;
    machine.step_behind(|| machine.give_back())?;
    Ok(NIL)
}

/// UM::Selector#behind { }: runs the block, which may switch to another fiber; the current one goes on in its turn.
fn behind(this: This<Selector>) -> Outcome {
    this.machine()?.step_behind(run_block)?;
    Ok(NIL)
}

/// Has the next turn switch to a fiber. Any thread may, with `wakeup` after it.
///
/// @method UringMachine::Selector#push(fiber)
/// @param fiber [Fiber, #alive?] a fiber, or what answers `alive?` and `transfer` as one does
/// @return [UringMachine::Selector] self
/// @example
///   selector.push(fiber)
fn push(this: This<Selector>, fiber: Value) -> This<Selector> {
    this.pushed.borrow_mut().push_back(fiber);
    this
}

/// @method UringMachine::Selector#ready?
/// @return [Boolean] whether the next turn has anybody to run without waiting
/// @example
///   selector.ready? #=> false
fn is_ready(this: This<Selector>) -> Result<bool, Raise> {
    Ok(!this.pushed.borrow().is_empty() || this.machine()?.parts().has_ready())
}

/// One turn of the loop: runs what was pushed before it and whoever is ready; waits for somebody to be if nobody is.
///
/// @method UringMachine::Selector#select(duration)
/// @param duration [Numeric, nil] the most seconds to wait; nil is until somebody is ready
/// @return [Integer] how many fibers have gone on, without those that were pushed
/// @example
///   selector.select(0.1) #=> 0
fn select(this: This<Selector>, duration: Value) -> Result<u64, Raise> {
    let machine = this.machine()?;
    let most = duration::rest(duration)?;
    this.idle.set(0);
    this.meet(fiber::scheduler())?;
    let ran = run_pushed(&this, machine)?;
    let is_ready = ran || !this.pushed.borrow().is_empty();
    let end = match most {
        None | Some(0) => most,
        Some(most) => Some(duration::from_now(most)),
    };
    let turned = machine.turn(if is_ready { Some(0) } else { end })?;
    this.idle.set(turned.slept);
    // Where there is no time left its timers are due.
    let more = if this.is_spared() && most != Some(0) {
        go_on(&this, machine, end)?
    } else {
        0
    };
    Ok(turned.ready + more)
}

/// More turns, which do not wait, as long as there is somebody to run: the Ruby of the loop, between two turns, costs several
/// times as much as a turn. Says how many fibers have gone on.
fn go_on(selector: &Selector, machine: &Machine, end: Option<u64>) -> Result<u64, Raise> {
    let mut ready = 0;
    for _ in 1..TURNS {
        let has_more = !selector.pushed.borrow().is_empty() || machine.parts().has_ready();
        if !has_more || end.is_some_and(|end| clock::now() >= end) {
            break;
        }
        run_pushed(selector, machine)?;
        ready += machine.turn(Some(0))?.ready;
    }
    Ok(ready)
}

/// Ends the wait of `select`. Any thread may.
///
/// @method UringMachine::Selector#wakeup
/// @return [Boolean] whether it waited
/// @example
///   selector.wakeup #=> false
fn wakeup(this: This<Selector>) -> bool {
    let machine = this.machine.get();
    machine.is_some_and(|machine| !this.closed.get() && !machine.is_forked() && machine.notify())
}

/// Gives the ring back. Nobody that waits goes on.
///
/// @method UringMachine::Selector#close
/// @return [nil]
/// @example
///   selector.close
fn close(this: This<Selector>) -> Outcome {
    if is_closed(this) {
        return Ok(NIL);
    }
    let machine = this.machine()?;
    this.closed.set(true);
    owner::shut_down(machine);
    Ok(NIL)
}

/// @method UringMachine::Selector#closed?
/// @return [Boolean] whether it is closed, or the parent's in a child of fork
/// @example
///   selector.closed? #=> false
fn is_closed(this: This<Selector>) -> bool {
    this.closed.get() || this.machine.get().is_none_or(|machine| machine.is_forked())
}

/// Waits until an IO is ready, or until somebody switches to the fiber.
///
/// @method UringMachine::Selector#io_wait(fiber, io, events)
/// @param fiber [Fiber] the one that runs
/// @param io [IO]
/// @param events [Integer] IO::READABLE, IO::PRIORITY and IO::WRITABLE
/// @return [Integer, false] the events that are ready; false if it was somebody's switch
/// @kernel 5.5
/// @example
///   selector.io_wait(Fiber.current, io, IO::READABLE) #=> 1
fn io_wait(this: This<Selector>, _fiber: Value, io: Value, events: Value) -> Outcome {
    let machine = this.machine()?;
    let Some(events) = as_fixnum(events).filter(|events| *events > 0) else {
        return Err(Raise::argument("events must be a positive Integer"));
    };
    let fd = io::descriptor(io)?;
    if events & i64::from(libc::POLLIN) != 0 && tls::is_held(fd) {
        return Ok(fixnum(i64::from(libc::POLLIN)));
    }
    let me = machine.current_task();
    Ok(match machine.wait_ready_or_resumed(me, fd, events)? {
        0 => FALSE,
        ready => fixnum(ready & events),
    })
}

/// As `UM::FiberScheduler#io_read`.
///
/// @method UringMachine::Selector#io_read(fiber, io, buffer, length = 0, offset = 0)
/// @param fiber [Fiber] the one that runs
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move; see `UM::FiberScheduler#io_read` for the order on Ruby 4.1
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @kernel 5.6
/// @example
///   selector.io_read(Fiber.current, io, buffer, 1) #=> 5
fn io_read(this: This<Selector>, arguments: &[magnus::Value]) -> Outcome {
    moved(this, arguments, false, false)
}

/// As `UM::FiberScheduler#io_write`.
///
/// @method UringMachine::Selector#io_write(fiber, io, buffer, length = 0, offset = 0)
/// @param fiber [Fiber] the one that runs
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move; see `UM::FiberScheduler#io_read` for the order on Ruby 4.1
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno
/// @kernel 5.6
/// @example
///   selector.io_write(Fiber.current, io, buffer, buffer.size) #=> 5
fn io_write(this: This<Selector>, arguments: &[magnus::Value]) -> Outcome {
    moved(this, arguments, false, true)
}

/// As `UM::FiberScheduler#io_pread`.
///
/// @method UringMachine::Selector#io_pread(fiber, io, buffer, from, length = 0, offset = 0)
/// @param fiber [Fiber] the one that runs
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file
/// @param length [Integer] the least to move; see `UM::FiberScheduler#io_read` for the order on Ruby 4.1
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @kernel 5.6
/// @example
///   selector.io_pread(Fiber.current, io, buffer, 0, 1, 0) #=> 5
fn io_pread(this: This<Selector>, arguments: &[magnus::Value]) -> Outcome {
    moved(this, arguments, true, false)
}

/// As `UM::FiberScheduler#io_pwrite`.
///
/// @method UringMachine::Selector#io_pwrite(fiber, io, buffer, from, length = 0, offset = 0)
/// @param fiber [Fiber] the one that runs
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file
/// @param length [Integer] the least to move; see `UM::FiberScheduler#io_read` for the order on Ruby 4.1
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno
/// @kernel 5.6
/// @example
///   selector.io_pwrite(Fiber.current, io, buffer, 0, 1, 0) #=> 5
fn io_pwrite(this: This<Selector>, arguments: &[magnus::Value]) -> Outcome {
    moved(this, arguments, true, true)
}

fn moved(
    this: This<Selector>,
    arguments: &[magnus::Value],
    positioned: bool,
    writes: bool,
) -> Outcome {
    let machine = this.machine()?;
    // Without the fiber, which is the one that runs.
    let rest = arguments.get(1..).unwrap_or_default();
    io_transfer::transfer_on(machine, rest, positioned, writes)
}

/// Closes a descriptor.
///
/// @method UringMachine::Selector#io_close(io)
/// @param io [IO, Integer]
/// @return [Boolean] whether it was open
/// @example
///   selector.io_close(io) #=> true
fn io_close(_this: This<Selector>, io: Value) -> Result<bool, Raise> {
    let fd = match as_fixnum(io) {
        Some(fd) => fd as i32,
        None => io::descriptor(io)?,
    };
    tls::end_waits(fd);
    registry::forget(fd);
    Ok(Fd(fd).close().is_ok())
}

/// Waits for a child to change.
///
/// @method UringMachine::Selector#process_wait(fiber, pid, flags)
/// @param fiber [Fiber] the one that runs
/// @param pid [Integer] any that waitpid(2) takes
/// @param flags [Integer] as of waitpid(2)
/// @return [Process::Status]
/// @kernel 6.7, with a native thread on older ones
/// @example
///   selector.process_wait(Fiber.current, pid, 0).success? #=> true
fn process_wait(this: This<Selector>, _fiber: Value, pid: Value, flags: Value) -> Outcome {
    process_wait::wait_for_child(this.machine()?, pid, flags)
}

/// Defines the class. What Ruby does better is in lib/uringmachine/async.rb.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("Selector", ruby.class_object())?;
    class.define_alloc_func::<Selector>();
    class.define_method("initialize", method!(initialize, 1))?;
    class.define_method("loop", method!(looping, 0))?;
    class.define_method("machine", method!(um, 0))?;
    class.define_method("idle_duration", method!(idle_duration, 0))?;
    class.define_method("transfer", method!(transfer, 0))?;
    class.define_method("resume", method!(resume, -1))?;
    class.define_method("yield", method!(step_back, 0))?;
    class.define_private_method("behind", method!(behind, 0))?;
    class.define_method("push", method!(push, 1))?;
    class.define_method("ready?", method!(is_ready, 0))?;
    class.define_method("select", method!(select, 1))?;
    class.define_method("wakeup", method!(wakeup, 0))?;
    class.define_method("close", method!(close, 0))?;
    class.define_method("closed?", method!(is_closed, 0))?;
    class.define_method("io_wait", method!(io_wait, 3))?;
    class.define_method("io_read", method!(io_read, -1))?;
    class.define_method("io_write", method!(io_write, -1))?;
    class.define_method("io_pread", method!(io_pread, -1))?;
    class.define_method("io_pwrite", method!(io_pwrite, -1))?;
    class.define_method("io_close", method!(io_close, 1))?;
    class.define_method("process_wait", method!(process_wait, 3))?;
    async_hooks::define(class)
}
