//! The methods of UringMachine, a file per kind of thing they work on.
//!
//! Each doc comment holds the method's documentation for Ruby users, in YARD's words, from `@method`
//! on; `script/docs` makes docs/api.md of them.

#![forbid(unsafe_code)]

mod address;
mod descriptors;
mod fibers;
mod files;
mod introspection;
mod passed_descriptors;
mod paths;
pub mod processes;
mod readiness;
mod reports;
mod sending;
mod socket_options;
mod sockets;
pub mod streams;
mod time;
mod tls;
mod trace;
pub mod transfer;
mod watch;

use magnus::{Error, RClass};

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    descriptors::define(class)?;
    fibers::define(class)?;
    files::define(class)?;
    introspection::define(class)?;
    passed_descriptors::define(class)?;
    paths::define(class)?;
    processes::define(class)?;
    readiness::define(class)?;
    reports::define(class)?;
    sending::define(class)?;
    socket_options::define(class)?;
    sockets::define(class)?;
    streams::define(class)?;
    time::define(class)?;
    tls::define(class)?;
    trace::define(class)?;
    transfer::define(class)?;
    watch::define(class)?;
    Ok(())
}
