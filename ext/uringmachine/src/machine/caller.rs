//! The fiber that called a method, and what it may do on its machine.

use std::ops::RangeInclusive;

use magnus::error::IntoError;
use magnus::rb_sys::AsRawValue;
use magnus::{Error, Ruby, Value};
use uringmachine_runtime::lines::Work;
use uringmachine_runtime::{Entry, Operation, TaskId, Wake};

use super::switch::{self, Failure, Yields};
use super::{owner, Core, Resumption};
use crate::lending::{self, Destination, Source};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{as_value, raw};
use crate::ruby::{self, Raise, NIL, VALUE};

/// The fiber that called a method, on the machine it called.
#[derive(Clone, Copy)]
pub struct Caller {
    pub core: *mut Core,
    pub me: TaskId,
}

/// How a method's body ends: a value that `schedule` gave the fiber is what the method returns.
pub type Answer = Result<VALUE, Failure>;

impl Caller {
    /// The fiber that runs, on the machine `um`, which must be its thread's.
    #[inline]
    pub unsafe fn new(um: VALUE) -> Result<Self, Raise> {
        // SAFETY: the core lives as long as the UM, which is the receiver of the method that runs.
        unsafe {
            let core = owner::own_core(um)?;
            let me = (*core).current_task();
            Ok(Self { core, me })
        }
    }

    /// The same fiber after a block of the program's: the task it had may have been given up meanwhile, if the
    /// machine did not start the fiber.
    pub fn again(&self) -> Self {
        // SAFETY: the core is alive while one of its fibers runs a method.
        let me = unsafe { (*self.core).current_task() };
        Self {
            core: self.core,
            me,
        }
    }

    /// Keeps why an operation ended that has moved something, since the count is its answer: what the fiber is to raise
    /// is raised at its next wait, and an error of the descriptor by the next operation on it. Whoever asks has set
    /// `stepping`, so that the descriptor's close is known.
    #[cold]
    pub fn keep(&self, failure: Failure) -> Result<(), Failure> {
        // SAFETY: the core is alive while one of its fibers runs a method.
        unsafe {
            let waiter = (*self.core).waiter(self.me);
            match failure {
                Failure::Raise(Raise::Exception(error)) if error == waiter.closed_by => Ok(()),
                // As `switch::operate`: the value was for a wait that has come to something.
                Failure::Timeout | Failure::Scheduled(_) | Failure::Raise(Raise::Errno(_)) => {
                    Ok(())
                }
                Failure::Raise(raise) => Ok((*self.core).keep_raise(self.me, raise)?),
            }
        }
    }

    /// Runs an operation: its result, and it, once the kernel is done with it; or the Errno raised.
    #[inline]
    pub fn run<O: Operation>(&self, mut operation: O) -> Result<(i32, O), Failure> {
        let entry = operation.entry();
        // SAFETY: what the entry points to lies in the operation, which stays on this frame until the kernel is done.
        let result = unsafe { self.operate(entry) }?;
        Ok((result, operation))
    }

    /// As [`Caller::run`]: its result only.
    #[inline]
    pub fn result(&self, operation: impl Operation) -> Result<i32, Failure> {
        self.run(operation).map(|(result, _)| result)
    }

    /// As [`Caller::result`], for an operation that makes a descriptor.
    pub fn descriptor(&self, mut operation: impl Operation) -> Result<i32, Failure> {
        let entry = operation.entry();
        // SAFETY: as `run`.
        let result = unsafe { self.open(entry) };
        drop(operation);
        result
    }

    /// Submits an operation and waits for its completion: the result, or the Errno raised.
    ///
    /// # Safety
    /// What the entry points to is on the caller's frame, or stays in place by other means, until
    /// this returns.
    #[inline]
    pub unsafe fn operate(&self, entry: Entry) -> Result<i32, Failure> {
        // SAFETY: the caller's promise.
        count(unsafe { switch::operate(self.core, self.me, entry, None) }?)
    }

    /// As [`Caller::operate`], for an operation that makes a descriptor.
    ///
    /// # Safety
    /// As [`Caller::operate`].
    pub unsafe fn open(&self, entry: Entry) -> Result<i32, Failure> {
        let yields = Yields::Descriptor;
        // SAFETY: the caller's promise.
        count(unsafe { switch::operate_for(self.core, self.me, entry, None, yields) }?)
    }

    /// Closes a descriptor, after the work that was given before, without waiting for anything that could raise.
    pub fn close(&self, fd: i32) {
        // SAFETY: the core is alive while one of its fibers runs a method.
        unsafe {
            (*self.core).end_operations_on(fd);
            (*self.core).driver.add_work(fd, Work::Close);
            // What is refused now is submitted with the next operations.
            drop((*self.core).driver.poll());
        }
    }

    /// Does something that writes to a descriptor when it is this fiber's turn, so that what it writes stays
    /// together. The error of work that nobody waited for is raised instead, once.
    #[inline]
    pub fn in_turn<T>(
        &self,
        fd: i32,
        body: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // SAFETY: the core is alive while one of its fibers runs a method.
        unsafe {
            if !(*self.core).driver.begin_turn(fd, self.me) {
                self.wait_for_turn(fd)?;
            }
            let result = self.told(fd).and_then(|()| body());
            (*self.core).driver.end_turn(fd, self.me);
            result
        }
    }

    /// As [`Caller::in_turn`], for what need not keep together: it comes after the work that was given before.
    #[inline]
    pub fn after_work<T>(
        &self,
        fd: i32,
        body: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // SAFETY: as above.
        unsafe {
            if (*self.core).driver.has_work(fd) {
                return self.in_turn(fd, body);
            }
            self.told(fd)?;
            body()
        }
    }

    /// Raises the error of work on a descriptor that nobody waited for.
    #[inline]
    pub fn told(&self, fd: i32) -> Result<(), Failure> {
        // SAFETY: as above.
        match unsafe { (*self.core).driver.take_error(fd) } {
            None => Ok(()),
            Some(errno) => Err(Raise::errno(errno).into()),
        }
    }

    /// Waits for the turn; Errno::EBADF if the descriptor is closed first. A signal's handler that writes in the middle of its own fiber's turn does not.
    #[cold]
    pub fn wait_for_turn(&self, fd: i32) -> Result<(), Failure> {
        // SAFETY: see `switch`.
        unsafe {
            let (core, me) = (self.core, self.me);
            let mut outer = (*core).waiter(me).outer;
            while let Some(task) = outer {
                if (*core).driver.is_turn(fd, task) {
                    return Ok(());
                }
                outer = (*core).waiter(task).outer;
            }
            if let Some(raise) = (*core).take_pending(me) {
                return Err(raise.into());
            }
            let wait = (*core).driver.tasks.begin_wait(me);
            (*core).driver.wait_for_turn(fd, wait);
            let ended = match switch::wait(core, me, None) {
                Ok(Wake::Interrupt) => match (*core).take_resumption(me) {
                    Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                    Some(Resumption::Raise(raise)) => Err(raise.into()),
                    None => Err(Raise::errno(libc::EINTR).into()),
                },
                Ok(_) if (*core).driver.is_turn(fd, me) => Ok(()),
                // The descriptor was closed.
                Ok(_) => Err(Raise::errno(libc::EBADF).into()),
                Err(state) => Err(Raise::Jump(state).into()),
            };
            if ended.is_err() {
                (*core).driver.leave_line(fd, wait);
            }
            (*core).finish_wait(me);
            ended
        }
    }

    /// Runs operations that read an object's memory, which `body` makes of its bytes.
    #[inline]
    pub unsafe fn give<T>(
        &self,
        source: Source,
        body: impl FnOnce(*const u8, u32) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // SAFETY: the source keeps the memory in place until it is released, and the waiter marks its
        // object; an operation returns when the kernel is done with it, or notes that it is lent.
        unsafe {
            let length = source.length.min(lending::MOST) as u32;
            (*self.core).fixed += u64::from(source.fixed.is_some());
            (*self.core).waiter(self.me).held = source.held();
            let result = body(source.pointer, length);
            (*self.core).waiter(self.me).held = NIL;
            match (*self.core).waiter(self.me).lent.take() {
                Some(op) if !(*self.core).is_forked() => source.lend(self.core, op),
                _ => source.release(self.core),
            }
            result
        }
    }

    /// Runs an operation that fills an object's memory; returns the count.
    #[inline]
    pub unsafe fn fill(
        &self,
        destination: Destination,
        make: impl FnOnce(*mut u8, u32) -> Entry,
    ) -> Result<i32, Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.fill_part(destination, make, |count| count) }
    }

    /// As [`Caller::fill`], for an operation that puts fewer bytes there than it answers: `part` says how many.
    #[inline]
    pub unsafe fn fill_part(
        &self,
        destination: Destination,
        make: impl FnOnce(*mut u8, u32) -> Entry,
        part: impl FnOnce(usize) -> usize,
    ) -> Result<i32, Failure> {
        // SAFETY: as `give`.
        unsafe {
            let length = destination.length as u32;
            (*self.core).fixed += u64::from(destination.fixed.is_some());
            (*self.core).waiter(self.me).held = destination.held();
            let entry = make(destination.pointer, length);
            let result = switch::operate(self.core, self.me, entry, None);
            let filled = match result {
                Ok(count) if count >= 0 => Some(part(count as usize)),
                _ => None,
            };
            let finished = destination.finish(self.core, filled);
            (*self.core).waiter(self.me).held = NIL;
            finished?;
            count(result?)
        }
    }
}

/// A result that is no error.
#[inline]
pub fn count(result: i32) -> Result<i32, Failure> {
    if result >= 0 {
        Ok(result)
    } else {
        Err(Failure::Raise(Raise::errno(-result)))
    }
}

/// A small number as a method returns it.
#[inline]
pub fn number(result: i32) -> VALUE {
    ruby::fixnum(i64::from(result))
}

/// What a method returns or raises.
#[inline]
pub fn answer(answer: Answer) -> ruby::Outcome {
    match answer {
        Ok(value) | Err(Failure::Scheduled(value)) => Ok(value),
        Err(Failure::Raise(raise)) => Err(raise),
        Err(Failure::Timeout) => Err(Raise::errno(libc::ETIMEDOUT)),
    }
}

/// Calls the body of a method of UringMachine.
#[inline(always)]
pub fn call(
    ruby: &Ruby,
    this: Value,
    arguments: &[Value],
    expected: RangeInclusive<usize>,
    body: impl FnOnce(Caller, Arguments) -> Answer,
) -> Result<Value, Error> {
    let run = || {
        let arguments = Arguments::of(raw(arguments), expected)?;
        // SAFETY: the receiver of the method that runs.
        let caller = unsafe { Caller::new(this.as_raw()) }?;
        answer(body(caller, arguments))
    };
    run().map(as_value).map_err(|raise| raise.into_error(ruby))
}

/// Defines a method of UringMachine: `machine_method!(class, "name", 1..=2, body)`.
macro_rules! machine_method {
    ($class:expr, private $name:literal, $expected:expr, $body:path) => {
        magnus::Module::define_private_method(
            $class,
            $name,
            magnus::method!(
                |ruby: &magnus::Ruby, this: magnus::Value, arguments: &[magnus::Value]| {
                    $crate::machine::caller::call(ruby, this, arguments, $expected, $body)
                },
                -1
            ),
        )?
    };
    ($class:expr, $name:literal, $expected:expr, $body:path) => {
        magnus::Module::define_method(
            $class,
            $name,
            magnus::method!(
                |ruby: &magnus::Ruby, this: magnus::Value, arguments: &[magnus::Value]| {
                    $crate::machine::caller::call(ruby, this, arguments, $expected, $body)
                },
                -1
            ),
        )?
    };
}
pub(crate) use machine_method;
