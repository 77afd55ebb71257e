//! The io_uring runtime beneath the `uringmachine` gem.
//!
//! It knows no Ruby: tasks are opaque payloads, and whoever embeds the runtime switches
//! between them. One [`Machine`] belongs to one thread. It owns
//!
//! * the [`ring`]: set-up, submission, waiting, reaping;
//! * the [`ops`] slab: what the kernel was asked for, until its final completion, [`stream`]s
//!   among them, which complete again and again into the [`buffer_ring`];
//! * the [`lines`] of those who write to a descriptor, and the work on it that nobody waits for;
//! * the [`tasks`] table and run queue: who waits for what, and who may go on;
//! * the [`timers`]: deadlines in user space, one of them handed to the kernel per wait;
//! * the [`waker`]: how another thread ends the machine's sleep.

pub mod buffer_ring;
pub mod by_descriptor;
pub mod clock;
pub mod error;
pub mod features;
pub mod fixed_buffers;
pub mod fixed_files;
pub mod lines;
pub mod machine;
pub mod ops;
pub mod position;
pub mod ring;
pub mod slab;
pub mod stream;
pub mod tasks;
pub mod timers;
pub mod waker;

pub use error::SetupError;
pub use features::Features;
pub use machine::Machine;
pub use ops::OpKey;
pub use tasks::{TaskId, WaitId, Wake};
pub use timers::TimerKey;

/// The entries that [`Machine::submit`] takes and the operations they are built from.
pub use io_uring::{opcode, squeue::Entry, types};
