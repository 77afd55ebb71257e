//! Ruby's side of uringmachine: the classes, the scheduler's hooks, and the worker threads.

mod adapters;
mod classes;
mod hooks;
mod lending;
mod machine;
mod methods;
mod off_thread;
mod os;
mod ruby;
mod tls;

use classes::{async_op, buffer_pool, fiber_scheduler, io, mutex, process, queue, turns};
use machine::interrupts;
use magnus::error::IntoError;
use magnus::{Error, Ruby};
use os::{constants, per_process};
use ruby::{allow_ractors, errors, string, version};

/// Called by Ruby when the extension is required. Nothing here touches io_uring.
#[magnus::init(name = "uringmachine")]
fn init(ruby: &Ruby) -> Result<(), Error> {
    per_process::count();
    allow_ractors();
    version::find();
    string::find_lock().map_err(|raise| raise.into_error(ruby))?;
    interrupts::define(ruby)?;
    let class = classes::machine::define(ruby)?;
    errors::define(ruby, class)?;
    constants::define(class)?;
    methods::define(class)?;
    async_op::define(ruby, class)?;
    queue::define(ruby, class)?;
    buffer_pool::define(ruby, class)?;
    io::define(ruby, class)?;
    mutex::define(ruby, class)?;
    hooks::define(fiber_scheduler::define(ruby, class)?)?;
    adapters::define(ruby, class)?;
    process::define(ruby, class)?;
    turns::define(class)?;
    hooks::direct_read::define(class)?;
    hooks::direct_write::define(class)?;
    hooks::listing::define(class)?;
    hooks::timeout_after::define_gap(class)
}
