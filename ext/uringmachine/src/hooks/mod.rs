//! The hooks of Fiber::Scheduler, a file per kind. All are public methods that a subclass may
//! override.

mod block;
mod close;
pub mod io;
mod io_transfer;
mod offload;
pub mod process;
pub mod readiness;
pub mod select;
mod splice;
mod time;

use crate::sys::VALUE;

/// Defines every hook the running Ruby may call.
pub unsafe fn define(class: VALUE) {
    // SAFETY: each file defines functions that take what their arity says.
    unsafe {
        block::define(class);
        close::define(class);
        io::define(class);
        offload::define(class);
        process::define(class);
        readiness::define(class);
        select::define(class);
        splice::define(class);
        time::define(class);
    }
}
