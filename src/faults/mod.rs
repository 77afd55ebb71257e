//! Faults that the kernel may have, made by chance: for tests, with the feature `faults`. Without it nothing of this is left.
//!
//! The variable `UM_FAULTS` asks for them, by a seed that makes them the same again: `UM_FAULTS=7`. What a correct program
//! does not see is always made: enters that do nothing or submit a part (EINTR, EAGAIN, EBUSY), waits that end early (ETIME),
//! completions that come late, in one burst and in another order, attempts in vain, multishot receives that find no buffer
//! (ENOBUFS), and, with every third seed, a ring of one submission and two completions. After the seed may stand, each after
//! a comma:
//!
//! * `least=N`: transfers are cut short, to no less than N bytes: for programs that ask for the rest;
//! * `OPERATION=ERRNO:N`: one in N of these operations fails so, and does nothing; `setup` and `register` are the ring's own.
//!   `UM_FAULTS=7,accept=24:3` has every third accept find the table of descriptors full (errno(3), EMFILE).

#[cfg(not(feature = "faults"))]
mod off;
#[cfg(feature = "faults")]
mod on;
#[cfg(feature = "faults")]
mod plan;

#[cfg(not(feature = "faults"))]
pub use off::{attempted, completion_entries, fails, is_in_vain, submission_entries, Faults};
#[cfg(feature = "faults")]
pub use on::{attempted, completion_entries, fails, is_in_vain, submission_entries, Faults};

/// What an enter is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enter {
    /// How many entries are submitted.
    pub to_submit: u32,
    /// How many completions are waited for.
    pub want: u32,
    /// For how long, in nanoseconds.
    pub timeout: Option<u64>,
}

/// What a transfer is made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It reads, or receives.
    Read,
    /// It writes, or sends.
    Write,
}
