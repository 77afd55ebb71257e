//! What the process may use.

use nix::sys::resource::{getrlimit, Resource};

/// How many bytes of memory the process may lock (getrlimit(2), RLIMIT_MEMLOCK).
pub fn locked_memory() -> u64 {
    // It fails for numbers that are none only.
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft)
}
