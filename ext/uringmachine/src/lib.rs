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
use os::{constants, per_process};
use ruby::errors;

/// Called by Ruby when the extension is required. Nothing here touches io_uring.
///
/// # Safety
/// Called once, by Ruby, with the GVL.
#[no_mangle]
pub unsafe extern "C" fn Init_uringmachine() {
    per_process::count();
    // SAFETY: Ruby is up.
    unsafe {
        rb_sys::rb_ext_ractor_safe(true);
        ruby::version::find();
        lending::find_string_lock();
        interrupts::define();
        let class = classes::machine::define();
        errors::define(class);
        constants::define(class);
        methods::define(class);
        async_op::define(class);
        queue::define(class);
        buffer_pool::define(class);
        io::define(class);
        mutex::define(class);
        hooks::define(fiber_scheduler::define(class));
        process::define(class);
        turns::define(class);
    }
}
