//! The hooks of Fiber::Scheduler, a file per hook, by Ruby's name. All are public methods that a subclass may
//! override.
#![forbid(unsafe_code)]

mod address_resolve;
mod block;
mod blocking_operation_wait;
mod close;
pub mod direct_read;
pub mod direct_write;
mod fiber;
mod fiber_interrupt;
mod io_close;
mod io_read;
mod io_select;
mod io_splice;
pub mod io_transfer;
mod io_wait;
mod io_write;
mod kernel_sleep;
pub mod listing;
mod process_fork;
pub mod process_wait;
pub mod timeout_after;
mod r#yield;

use magnus::{method, Error, Object, RClass};

use crate::ruby::{version, Value};

/// The scheduler interface that the hooks speak: RUBY_FIBER_SCHEDULER_VERSION of the running Ruby.
///
/// @method UringMachine::FiberScheduler.interface_version
/// @return [Integer] 2 is Ruby 3.4, 3 is 4.0, 4 is 4.1
/// @example
///   UM::FiberScheduler.interface_version #=> 3
fn interface_version(_class: Value) -> i64 {
    version::scheduler_interface()
}

/// Defines every hook the running Ruby may call.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_singleton_method("interface_version", method!(interface_version, 0))?;
    address_resolve::define(class)?;
    block::define(class)?;
    blocking_operation_wait::define(class)?;
    close::define(class)?;
    fiber::define(class)?;
    fiber_interrupt::define(class)?;
    io_close::define(class)?;
    io_read::define(class)?;
    io_select::define(class)?;
    io_splice::define(class)?;
    io_wait::define(class)?;
    io_write::define(class)?;
    kernel_sleep::define(class)?;
    process_fork::define(class)?;
    process_wait::define(class)?;
    timeout_after::define(class)?;
    r#yield::define(class)?;
    Ok(())
}
