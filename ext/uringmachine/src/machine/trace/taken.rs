//! The one trace that is taken of a Ractor's machines: how it begins and ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use uringmachine_runtime::tasks::State;

use super::records::{Budget, Name, UNKNOWN};
use super::Trace;
use crate::machine::{registry, Machine};
use crate::os::per_ractor::PerRactor;
use crate::ruby::call::Place;
use crate::ruby::{class_of, fiber, Raise, Value, NIL};

/// The trace that is taken of the machines of a Ractor, if there is one.
static TAKEN: PerRactor<Mutex<Option<Arc<Budget>>>> = PerRactor::new();

fn taken() -> Option<Arc<Budget>> {
    let taken = TAKEN.get();
    let budget = taken.lock().unwrap_or_else(PoisonError::into_inner);
    budget.clone()
}

fn set_taken(budget: Option<Arc<Budget>>) {
    let taken = TAKEN.get();
    *taken.lock().unwrap_or_else(PoisonError::into_inner) = budget;
}

/// Whether one is taken.
pub fn is_taken() -> bool {
    taken().is_some()
}

/// Begins a trace of `limit` records at most, of the machines that there are and those to come.
///
/// # Errors
/// UM::Error if one is taken.
pub fn begin(limit: usize, places: &HashMap<Value, Place>) -> Result<(), Raise> {
    if is_taken() {
        return Err(Raise::misuse("a trace is being taken already"));
    }
    let budget = Arc::new(Budget::new(limit));
    set_taken(Some(Arc::clone(&budget)));
    for machine in registry::within_reach() {
        machine.begin_trace(&budget, places);
    }
    Ok(())
}

/// A machine is used for the first time.
pub fn join(machine: &Machine) {
    if let Some(budget) = taken() {
        machine.begin_trace(&budget, &HashMap::new());
    }
}

/// Ends the trace: the machines that have been traced, whose traces are to be taken.
pub fn end() -> Vec<Arc<Machine>> {
    let Some(budget) = taken() else {
        return Vec::new();
    };
    set_taken(None);
    let is_one = |machine: &Arc<Machine>| {
        let parts = machine.parts();
        let trace = parts.trace.as_ref();
        trace.is_some_and(|trace| Arc::ptr_eq(&trace.records.budget, &budget))
    };
    let traced = registry::wanted(is_one);
    for machine in &traced {
        machine.end_trace();
    }
    traced
}

impl Machine {
    /// Has it traced from now on; `places` are those of fibers that are known.
    fn begin_trace(&self, budget: &Arc<Budget>, places: &HashMap<Value, Place>) {
        let seen = self.look();
        let mut trace = Trace::new(Arc::clone(budget));
        let since = trace.since;
        trace.asleep_since = seen.is_asleep.then_some(since);
        let mut parts = self.parts();
        for one in seen.fibers {
            let place = places.get(&one.fiber).copied();
            let Some(task) = parts.find_waiting(one.fiber) else {
                continue;
            };
            if parts.driver.tasks.state(task) != Some(State::Waiting) {
                continue;
            }
            trace.meet(one.fiber, place, None, since);
            let (name, fd) = match one.operations.first() {
                Some((name, fd)) => (Name::Word(name), *fd),
                None if one.blocker != NIL => (Name::Class(class_of(one.blocker)), UNKNOWN),
                None if one.left.is_some() => (Name::Word("sleep"), UNKNOWN),
                None => (Name::Word("wait"), UNKNOWN),
            };
            trace.opens(one.fiber, task, (name, fd, None), since);
        }
        parts.trace = Some(Box::new(trace));
    }

    /// Ends its trace, which stays to be taken.
    fn end_trace(&self) {
        let is_own = self.is_own();
        let is_over = self.is_asleep() || self.is_abandoned();
        let mut parts = self.parts();
        let current = parts.fibers.current;
        let running = match is_own {
            true => Some(fiber::current()),
            false => (parts.driver.tasks.get(current))
                .map(|waiter| waiter.fiber)
                .filter(|_| !is_over),
        };
        if let Some(trace) = &mut parts.trace {
            trace.finish(running);
        }
    }
}
