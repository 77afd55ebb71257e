//! Ruby's side of uringmachine: the classes, the scheduler's hooks, and the worker threads.

mod addresses;
mod arguments;
mod async_op;
mod blocking;
mod buffer_pool;
mod constants;
mod core;
mod descriptors;
mod durations;
mod errors;
mod file_systems;
mod forks;
mod hooks;
mod inflow;
mod interrupts;
mod io;
mod io_buffers;
mod machine;
mod memory;
mod mutex;
mod native;
mod opening;
mod positions;
mod process;
mod queue;
mod ractors;
mod report;
mod resolver;
mod scheduler;
mod splicing;
mod switch;
mod sys;
mod tls;
mod turns;
mod um;
mod waiters;
mod waits;
mod workers;

/// Called by Ruby when the extension is required. Nothing here touches io_uring.
///
/// # Safety
/// Called once, by Ruby, with the GVL.
#[no_mangle]
pub unsafe extern "C" fn Init_uringmachine() {
    forks::count();
    // SAFETY: Ruby is up.
    unsafe {
        rb_sys::rb_ext_ractor_safe(true);
        memory::find_string_lock();
        interrupts::define();
        let class = um::define();
        errors::define(class);
        constants::define(class);
        machine::define(class);
        async_op::define(class);
        queue::define(class);
        buffer_pool::define(class);
        io::define(class);
        mutex::define(class);
        scheduler::define(class);
        process::define(class);
        turns::define(class);
    }
}
