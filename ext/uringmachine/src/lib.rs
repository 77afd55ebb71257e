//! Ruby's side of uringmachine: the classes, the scheduler's hooks, and the worker threads.

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
use magnus::rb_sys::AsRawValue;
use magnus::{Error, Ruby};
use os::{constants, per_process};
use ruby::errors;

/// Called by Ruby when the extension is required. Nothing here touches io_uring.
#[magnus::init(name = "uringmachine")]
fn init(ruby: &Ruby) -> Result<(), Error> {
    per_process::count();
    // SAFETY: Ruby is up, and calls this once.
    unsafe {
        rb_sys::rb_ext_ractor_safe(true);
        ruby::version::find();
        lending::find_string_lock();
        interrupts::define();
    }
    let class = classes::machine::define(ruby)?;
    // SAFETY: as above.
    unsafe {
        errors::define(class.as_raw());
        constants::define(class.as_raw());
    }
    methods::define(class)?;
    async_op::define(ruby, class)?;
    queue::define(ruby, class)?;
    buffer_pool::define(ruby, class)?;
    io::define(ruby, class)?;
    mutex::define(ruby, class)?;
    hooks::define(fiber_scheduler::define(ruby, class)?)?;
    process::define(ruby, class)?;
    // SAFETY: as above.
    unsafe { turns::define(class.as_raw()) };
    Ok(())
}
