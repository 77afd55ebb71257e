//! Which faults are asked for, and what they are made by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use io_uring::opcode;

/// What `UM_FAULTS` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub least: u32,
    pub failures: Vec<Failure>,
}

/// Operations of which one in `one_in` fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub name: String,
    pub errno: i32,
    pub one_in: u64,
}

impl Plan {
    /// The one of this process; `None` if there is none. Panics if the variable makes no sense.
    pub fn current() -> Option<&'static Self> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(|| {
            let text = std::env::var("UM_FAULTS").ok()?;
            Some(Self::read(&text).unwrap_or_else(|| {
                panic!("UM_FAULTS is not SEED[,least=N][,OPERATION=ERRNO:N…]: {text}")
            }))
        })
        .as_ref()
    }

    pub fn read(text: &str) -> Option<Self> {
        let mut words = text.split(',');
        let mut plan = Self {
            seed: words.next()?.parse().ok()?,
            least: u32::MAX,
            failures: Vec::new(),
        };
        for word in words {
            let (name, value) = word.split_once('=')?;
            if name == "least" {
                plan.least = value.parse().ok()?;
                continue;
            }
            let (errno, one_in) = value.split_once(':')?;
            let name = name.to_owned();
            let (errno, one_in) = (errno.parse().ok()?, one_in.parse().ok()?);
            (is_known(&name) && one_in > 0).then(|| {
                plan.failures.push(Failure {
                    name,
                    errno,
                    one_in,
                })
            })?;
        }
        Some(plan)
    }

    /// Whether a ring is to have next to no entries.
    pub fn is_narrow(&self) -> bool {
        self.seed % 3 == 0
    }

    /// The errno that an operation of this name fails by, if it does now.
    pub fn failure(&self, name: &str, chance: &mut Chance) -> Option<i32> {
        let failure = self.failures.iter().find(|failure| failure.name == name)?;
        chance.one_in(failure.one_in).then_some(failure.errno)
    }
}

/// Names of operations, by their codes.
const NAMES: [(&str, &[u8]); 10] = [
    (
        "read",
        &[
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::ReadFixed::CODE,
        ],
    ),
    (
        "write",
        &[
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::WriteFixed::CODE,
        ],
    ),
    ("recv", &[opcode::Recv::CODE, opcode::RecvMsg::CODE]),
    (
        "send",
        &[
            opcode::Send::CODE,
            opcode::SendMsg::CODE,
            opcode::SendZc::CODE,
        ],
    ),
    ("accept", &[opcode::Accept::CODE]),
    ("connect", &[opcode::Connect::CODE]),
    ("open", &[opcode::OpenAt::CODE, opcode::OpenAt2::CODE]),
    ("socket", &[opcode::Socket::CODE]),
    ("fsync", &[opcode::Fsync::CODE]),
    ("splice", &[opcode::Splice::CODE, opcode::Tee::CODE]),
];

fn is_known(name: &str) -> bool {
    matches!(name, "setup" | "register") || NAMES.iter().any(|(known, _)| *known == name)
}

/// What `UM_FAULTS` calls an operation.
pub fn name_of(code: u8) -> Option<&'static str> {
    NAMES
        .iter()
        .find(|(_, codes)| codes.contains(&code))
        .map(|(name, _)| *name)
}

/// Chance, the same again from the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// That of one ring, or of one thread: another for each, in the order in which they are made.
    pub fn new(seed: u64) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        Self(seed ^ MADE.fetch_add(1, Ordering::Relaxed) << 32)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) % end
    }

    pub fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_seed_and_what_follows() {
        let plan = Plan::read("7,least=1,accept=24:3,setup=12:1").unwrap();
        assert_eq!((plan.seed, plan.least), (7, 1));
        assert_eq!(plan.failures.len(), 2);
        assert_eq!(plan.failure("accept", &mut Chance(0)).unwrap_or(24), 24);
        assert_eq!(plan.failure("setup", &mut Chance(0)), Some(12));
        assert_eq!(plan.failure("read", &mut Chance(0)), None);
    }

    #[test]
    fn what_makes_no_sense_is_no_plan() {
        for text in [
            "",
            "x",
            "1,least",
            "1,least=x",
            "1,bake=1:1",
            "1,read=1",
            "1,read=1:0",
        ] {
            assert_eq!(Plan::read(text), None, "{text}");
        }
    }

    #[test]
    fn chance_takes_every_number() {
        let mut chance = Chance::new(3);
        let mut seen = [0; 8];
        (0..8000).for_each(|_| seen[chance.below(8) as usize] += 1);
        assert!(
            seen.iter().all(|times| (800..1200).contains(times)),
            "{seen:?}"
        );
    }
}
