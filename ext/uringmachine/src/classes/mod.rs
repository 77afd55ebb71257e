//! The classes that are written in Rust, a file per class.
#![forbid(unsafe_code)]

pub mod async_op;
pub mod buffer_pool;
pub mod fiber_scheduler;
pub mod io;
pub mod machine;
pub mod mutex;
pub mod process;
pub mod queue;
pub mod selector;
pub mod turns;
