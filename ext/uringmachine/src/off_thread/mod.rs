//! What the ring cannot do: calls on threads.

pub mod at_once;
pub mod quick_open;
pub mod resolver;
pub mod ruby_threads;
mod threads;
