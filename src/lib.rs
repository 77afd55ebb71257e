//! The io_uring runtime beneath the `uringmachine` gem.
//!
//! It knows no Ruby: tasks are opaque payloads, and whoever embeds the runtime switches
//! between them. One [`Driver`] belongs to one thread. It owns
//!
//! * the [`ring`]: set-up, submission, waiting, reaping;
//! * what is [`in_flight`]: what the kernel was asked for, until its final completion. The
//!   [`operations`] each own or borrow the [`memory`] they work on; those that are [`multishot`]
//!   complete again and again into the [`provided_buffers`];
//! * the [`registered_buffers`] and the [`registered_files`], which the ring keeps at hand;
//! * the [`lines`] of those who write to a descriptor, and the work on it that nobody waits for;
//! * the [`tasks`] table and run queue: who waits for what, and who may go on;
//! * the [`timers`]: deadlines in user space, one of them handed to the kernel per wait;
//! * the [`waker`]: how another thread ends the driver's sleep;
//! * the [`pool`] of threads, for what the ring cannot do.

pub mod by_descriptor;
pub mod byte_queue;
pub mod clock;
pub mod driver;
pub mod error;
mod event;
pub mod faults;
pub mod features;
pub mod in_flight;
pub mod lines;
pub mod mapping;
pub mod memory;
pub mod multishot;
pub mod operation;
pub mod operations;
pub mod pool;
pub mod position;
pub mod provided_buffers;
pub mod registered_buffers;
pub mod registered_files;
pub mod ring;
pub mod slab;
mod sync;
pub mod tasks;
pub mod timers;
pub mod trust;
pub mod waker;

pub use driver::Driver;
pub use error::SetupError;
pub use features::Features;
pub use operation::{OpKey, Operation};
pub use tasks::{TaskId, WaitId, Wake};
pub use timers::TimerKey;

/// The entries that [`Driver::submit`] takes and the operations they are built from.
pub use io_uring::{opcode, squeue::Entry, types};
