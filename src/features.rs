//! What the running kernel offers, asked at run time, and a mask to hide it.

use io_uring::{opcode, Probe};

/// The environment variable that hides features, so that the paths of older kernels are
/// tested on a new one: a comma-separated list of names, each hidden. `UM_MASK=waitid,nowait`.
pub const MASK_VARIABLE: &str = "UM_MASK";

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Features the paths above choose by. Each is `true` when it may be used.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Features {
            $($(#[$doc])* pub $name: bool,)*
        }

        impl Features {
            /// Every feature on: what the newest kernel offers.
            pub const ALL: Self = Self { $($name: true,)* };

            /// The names, as [`MASK_VARIABLE`] takes them.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// Each by its name, with whether it may be used.
            pub fn each(self) -> impl Iterator<Item = (&'static str, bool)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// Hides the features that `mask` lists; names it does not know are ignored, so that
            /// one mask serves several versions.
            pub fn masked(mut self, mask: &str) -> Self {
                for name in mask.split(',').map(str::trim) {
                    match name {
                        $(stringify!($name) => self.$name = false,)*
                        _ => {}
                    }
                }
                self
            }
        }
    };
}

features! {
    /// Set-up flag SINGLE_ISSUER with DEFER_TASKRUN (Linux 6.1).
    defer_taskrun,
    /// Set-up flag NO_SQARRAY (Linux 6.6).
    no_sqarray,
    /// The ring's descriptor registered with itself (Linux 5.18).
    registered_ring,
    /// IORING_OP_WAITID (Linux 6.7).
    waitid,
    /// IORING_OP_READ_MULTISHOT (Linux 6.7).
    read_multishot,
    /// Provided buffers that are consumed piece by piece (Linux 6.12).
    incremental_buffers,
    /// IORING_OP_FTRUNCATE (Linux 6.9).
    ftruncate,
    /// IORING_OP_SEND_ZC (Linux 6.0).
    send_zc,
    /// preadv2 and pwritev2 with RWF_NOWAIT, tried before an operation is submitted (Linux 4.14).
    nowait,
    /// recv and send with MSG_DONTWAIT, tried before an operation is submitted.
    dontwait,
}

impl Features {
    /// The mask the environment asks for, applied to every feature. What only a probe can tell is
    /// left to [`Features::probed`].
    pub fn from_environment() -> Self {
        match std::env::var(MASK_VARIABLE) {
            Ok(mask) => Self::ALL.masked(&mask),
            Err(_) => Self::ALL,
        }
    }

    /// Takes out the operations that `probe` does not list.
    pub fn probed(mut self, probe: &Probe) -> Self {
        self.waitid &= probe.is_supported(opcode::WaitId::CODE);
        self.read_multishot &= probe.is_supported(opcode::ReadMulti::CODE);
        self.ftruncate &= probe.is_supported(opcode::Ftruncate::CODE);
        self.send_zc &= probe.is_supported(opcode::SendZc::CODE);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_hides_what_it_names_and_nothing_else() {
        let features = Features::ALL.masked("waitid, no_sqarray,unheard_of");
        assert!(!features.waitid && !features.no_sqarray);
        assert!(features.defer_taskrun && features.nowait);
    }

    #[test]
    fn each_has_its_name() {
        let hidden = Features::ALL.masked("waitid").each();
        let hidden = hidden.filter(|(_, usable)| !usable);
        assert_eq!(hidden.collect::<Vec<_>>(), [("waitid", false)]);
    }

    #[test]
    fn an_empty_mask_hides_nothing() {
        assert_eq!(Features::ALL.masked(""), Features::ALL);
    }
}
