//! The fiber that called a method, and what it may do on its machine.

use std::ops::RangeInclusive;

use uringmachine_runtime::lines::Work;
use uringmachine_runtime::{Operation, TaskId};

use super::operate::{Failure, Yields};
use super::owner::Um;
use super::trace::For;
use super::Machine;
use crate::lending;
use crate::ruby::arguments::Arguments;
use crate::ruby::{Outcome, Raise, Value};

/// Bytes of an object that a machine lends to be read.
pub type Source<'a> = lending::Source<'a, Machine>;
/// Memory of an object that a machine lends to be written.
pub type Destination<'a> = lending::Destination<'a, Machine>;

/// The fiber that called a method, on the machine it called.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub machine: &'a Machine,
    pub me: TaskId,
}

/// How a method's body ends: a value that `schedule` gave the fiber is what the method returns.
pub type Answer = Result<Value, Failure>;

impl<'a> Caller<'a> {
    /// The fiber that runs, on the machine of a UM, which must be its thread's.
    #[inline]
    pub fn new(um: &'a Um) -> Result<Self, Raise> {
        let machine = um.own()?;
        let me = machine.current_task();
        Ok(Self { machine, me })
    }

    /// The same fiber after a block of the program's: the task it had may have been given up meanwhile, if the
    /// machine did not start the fiber.
    pub fn again(&self) -> Self {
        let me = self.machine.current_task();
        Self { me, ..*self }
    }

    /// Lends the first `length` bytes of a String or an IO::Buffer, all if `None`.
    #[inline]
    pub fn source(
        &self,
        object: Value,
        length: Option<usize>,
        name: &str,
    ) -> Result<Source<'a>, Raise> {
        Source::new(self.machine, object, length, name)
    }

    /// Lends room for `length` bytes in a String or an IO::Buffer: see [`lending::Destination::new`].
    #[inline]
    pub fn room(
        &self,
        object: Value,
        length: Option<usize>,
        offset: i64,
        name: &str,
    ) -> Result<Destination<'a>, Raise> {
        Destination::new(self.machine, object, length, offset, name)
    }

    /// Gives back what was lent to an operation that may have been ended while the kernel has its memory.
    pub fn give_back(&self, source: Source) {
        let lent = self.machine.parts().waiter(self.me).lent.take();
        match lent {
            Some(op) if !self.machine.is_forked() => source.leave_with(op),
            _ => drop(source),
        }
    }

    /// Notes that an operation works on memory that lies in a registered buffer.
    #[inline]
    pub fn count_registered(&self, memory: &impl uringmachine_runtime::memory::Memory) {
        if memory.registered().is_some() {
            self.machine.parts().fixed += 1;
        }
    }

    /// Keeps why an operation ended that has moved something, since the count is its answer: what the fiber is to raise
    /// is raised at its next wait, and an error of the descriptor by the next operation on it. Whoever asks has set
    /// `stepping`, so that the descriptor's close is known.
    #[cold]
    pub fn keep(&self, failure: Failure) -> Result<(), Failure> {
        let mut parts = self.machine.parts();
        match failure {
            Failure::Raise(Raise::Exception(error)) if error == parts.waiter(self.me).closed_by => {
                Ok(())
            }
            // As `Machine::operate`: the value was for a wait that has come to something.
            Failure::Timeout | Failure::Scheduled(_) | Failure::Raise(Raise::Errno(_)) => Ok(()),
            Failure::Raise(raise) => Ok(parts.keep_raise(self.me, raise)?),
        }
    }

    /// Runs an operation: its result, and it, once the kernel is done with it; or the Errno raised.
    #[inline]
    pub fn run<O: Operation>(&self, mut operation: O) -> Result<(i32, O), Failure> {
        let result = self.operate(&mut operation)?;
        Ok((result, operation))
    }

    /// As [`Caller::run`], of an operation that is used again: its result only.
    #[inline]
    pub fn operate<O: Operation>(&self, operation: &mut O) -> Result<i32, Failure> {
        count(self.machine.operate(self.me, operation, None)?)
    }

    /// As [`Caller::run`]: its result only.
    #[inline]
    pub fn result(&self, mut operation: impl Operation) -> Result<i32, Failure> {
        self.operate(&mut operation)
    }

    /// As [`Caller::result`], of what a stop of the process interrupts before it has moved anything: it is begun again.
    pub fn uninterrupted(&self, mut operation: impl Operation) -> Result<i32, Failure> {
        loop {
            let result = self.machine.operate(self.me, &mut operation, None)?;
            if result != -libc::EINTR {
                return count(result);
            }
        }
    }

    /// As [`Caller::result`], for a poll: see [`Machine::ask`].
    pub fn ask(&self, mut operation: impl Operation) -> Result<i32, Failure> {
        count(self.machine.ask(self.me, &mut operation, None)?)
    }

    /// As [`Caller::result`], for an operation that makes a descriptor.
    pub fn descriptor(&self, mut operation: impl Operation) -> Result<i32, Failure> {
        let (me, yields) = (self.me, Yields::Descriptor);
        let (machine, operation) = (self.machine, &mut operation);
        count(machine.operate_noting(me, operation, None, yields, &mut 0)?)
    }

    /// Does something that waits for a descriptor, and not by an operation of the ring: the close of the one ends the other.
    pub fn during<T>(&self, fd: i32, body: impl FnOnce() -> T) -> T {
        self.machine.parts().waits.begin(fd, self.me, None);
        let result = body();
        self.machine.parts().waits.end(fd, self.me);
        result
    }

    /// Closes a descriptor, after the work that was given before, without waiting for anything that could raise.
    pub fn close(&self, fd: i32) {
        self.machine.end_operations_on(fd);
        let driver = &mut self.machine.parts().driver;
        driver.add_work(fd, Work::Close);
        // What is refused now is submitted with the next operations.
        drop(driver.poll());
    }

    /// Does something that writes to a descriptor when it is this fiber's turn, so that what it writes stays
    /// together. The error of work that nobody waited for is raised instead, once.
    #[inline]
    pub fn in_turn<T>(
        &self,
        fd: i32,
        body: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (is_turn, error) = {
            let driver = &mut self.machine.parts().driver;
            let is_turn = driver.begin_turn(fd, self.me);
            (is_turn, is_turn.then(|| driver.take_error(fd)).flatten())
        };
        let told = match (is_turn, error) {
            (true, None) => Ok(()),
            (true, Some(errno)) => Err(Raise::errno(errno).into()),
            (false, _) => {
                self.wait_for_turn(fd)?;
                self.told(fd)
            }
        };
        let result = told.and_then(|()| body());
        self.machine.parts().driver.end_turn(fd, self.me);
        result
    }

    /// As [`Caller::in_turn`], for what need not keep together: it comes after the work that was given before.
    #[inline]
    pub fn after_work<T>(
        &self,
        fd: i32,
        body: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (has_work, error) = {
            let driver = &mut self.machine.parts().driver;
            let has_work = driver.has_work(fd);
            (
                has_work,
                (!has_work).then(|| driver.take_error(fd)).flatten(),
            )
        };
        match error {
            _ if has_work => self.in_turn(fd, body),
            None => body(),
            Some(errno) => Err(Raise::errno(errno).into()),
        }
    }

    /// Raises the error of work on a descriptor that nobody waited for.
    #[inline]
    pub fn told(&self, fd: i32) -> Result<(), Failure> {
        let error = self.machine.parts().driver.take_error(fd);
        match error {
            None => Ok(()),
            Some(errno) => Err(Raise::errno(errno).into()),
        }
    }

    /// Waits for the turn; Errno::EBADF if the descriptor is closed first. A signal's handler that writes in the middle of its own fiber's turn does not.
    #[cold]
    pub fn wait_for_turn(&self, fd: i32) -> Result<(), Failure> {
        let Self { machine, me } = *self;
        let mut outer = machine.parts().waiter(me).outer;
        while let Some(task) = outer {
            let mut parts = machine.parts();
            if parts.driver.is_turn(fd, task) {
                return Ok(());
            }
            outer = parts.waiter(task).outer;
        }
        let wait = machine.begin_wait(me)?;
        machine.awaits(me, For::Word("turn to write"));
        machine.parts().driver.wait_for_turn(fd, wait.id());
        let ended = wait.finish(None).and_then(|_| {
            match machine.parts().driver.is_turn(fd, me) {
                true => Ok(()),
                // The descriptor was closed.
                false => Err(Raise::errno(libc::EBADF).into()),
            }
        });
        if ended.is_err() {
            machine.parts().driver.leave_line(fd, wait.id());
        }
        ended
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

/// What a method returns or raises.
#[inline]
pub fn answer(answer: Answer) -> Outcome {
    match answer {
        Ok(value) | Err(Failure::Scheduled(value)) => Ok(value),
        Err(Failure::Raise(raise)) => Err(raise),
        Err(Failure::Timeout) => Err(Raise::errno(libc::ETIMEDOUT)),
    }
}

/// Calls the body of a method of UringMachine.
#[inline(always)]
pub fn call(
    um: &Um,
    arguments: &[magnus::Value],
    expected: RangeInclusive<usize>,
    body: impl FnOnce(Caller, Arguments) -> Answer,
) -> Outcome {
    let arguments = Arguments::of(arguments, expected)?;
    answer(body(Caller::new(um)?, arguments))
}

/// Defines a method of UringMachine: `machine_method!(class, "name", 1..=2, body)`.
macro_rules! machine_method {
    ($class:expr, private $name:literal, $expected:expr, $body:path) => {
        $crate::machine::caller::machine_method!(@define_private_method $class, $name, $expected, $body)
    };
    ($class:expr, $name:literal, $expected:expr, $body:path) => {
        $crate::machine::caller::machine_method!(@define_method $class, $name, $expected, $body)
    };
    (@$define:ident $class:expr, $name:literal, $expected:expr, $body:path) => {
        magnus::Module::$define(
            $class,
            $name,
            magnus::method!(
                |this: $crate::ruby::this::This<$crate::machine::owner::Um>,
                 arguments: &[magnus::Value]| {
                    $crate::machine::caller::call(&this, arguments, $expected, $body)
                },
                -1
            ),
        )?
    };
}
pub(crate) use machine_method;
