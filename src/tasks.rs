//! Who waits for what, and who may go on: the table of tasks and the run queue.
//!
//! A task is whatever the embedder switches between (a fiber). Each wait has an identity, its
//! serial: a wake-up that names an earlier wait is dropped, so there is no stale timeout and no
//! sleep cut short.

use std::collections::VecDeque;

use crate::slab::{Key, Slab};

/// Names one task.
pub type TaskId = Key;

/// Names one wait of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitId {
    /// The task that waits.
    pub task: TaskId,
    /// The serial of the wait, never used twice in a driver.
    pub serial: u64,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// What the task waited for has come.
    Complete,
    /// The deadline of the wait has passed.
    Timeout,
    /// Somebody wants the task to raise.
    Interrupt,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs, or it is suspended by somebody else than this driver.
    Running,
    /// It waits.
    Waiting,
    /// Its wait is over; it stands in the run queue.
    Ready(Wake),
}

#[derive(Debug)]
struct Task<T> {
    state: State,
    /// See [`Tasks::set_brief`].
    brief: bool,
    serial: u64,
    /// A wake-up of the same wait that came after an interrupt.
    missed: Option<Wake>,
    payload: T,
}

impl<T> Task<T> {
    /// Keeps a wake-up for a wait that was ended by a lesser one.
    #[cold]
    fn miss(&mut self, why: Wake) {
        match self.state {
            State::Ready(Wake::Interrupt | Wake::Timeout) if why == Wake::Complete => {
                self.missed = Some(why);
            }
            State::Ready(Wake::Interrupt) if why == Wake::Timeout && self.missed.is_none() => {
                self.missed = Some(why);
            }
            _ => {}
        }
    }
}

/// The tasks of one driver, each with the embedder's payload.
#[derive(Debug)]
pub struct Tasks<T> {
    tasks: Slab<Task<T>>,
    queue: VecDeque<WaitId>,
    /// Those that go before the queue, the last one first.
    brief: Vec<WaitId>,
    /// How many of these have gone on that the queue has not made up for.
    streak: u32,
    serial: u64,
    waiting: usize,
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self {
            tasks: Slab::default(),
            queue: VecDeque::new(),
            brief: Vec::new(),
            streak: 0,
            serial: 0,
            waiting: 0,
        }
    }
}

/// How many tasks whose wait was brief may go before the queue; beyond, one does for each of the queue's.
const STREAK: u32 = 64;

impl<T> Tasks<T> {
    /// Adds a running task.
    pub fn add(&mut self, payload: T) -> TaskId {
        self.tasks.insert(Task {
            state: State::Running,
            brief: false,
            serial: 0,
            missed: None,
            payload,
        })
    }

    /// Removes a task; wake-ups for it find nothing from now on.
    pub fn remove(&mut self, id: TaskId) -> Option<T> {
        let task = self.tasks.remove(id)?;
        if task.state != State::Running {
            self.waiting -= 1;
        }
        Some(task.payload)
    }

    /// The payload of a task.
    #[inline]
    pub fn get(&self, id: TaskId) -> Option<&T> {
        self.tasks.get(id).map(|task| &task.payload)
    }

    /// The payload of a task, to be changed.
    #[inline]
    pub fn get_mut(&mut self, id: TaskId) -> Option<&mut T> {
        self.tasks.get_mut(id).map(|task| &mut task.payload)
    }

    /// Where a task is; `None` if it was removed.
    #[inline]
    pub fn state(&self, id: TaskId) -> Option<State> {
        self.tasks.get(id).map(|task| task.state)
    }

    /// The wait the task is in, or was in last.
    pub fn current_wait(&self, id: TaskId) -> Option<WaitId> {
        self.tasks.get(id).map(|task| WaitId {
            task: id,
            serial: task.serial,
        })
    }

    /// Every task with its state and payload.
    pub fn iter(&self) -> impl Iterator<Item = (TaskId, State, &T)> {
        self.tasks
            .iter()
            .map(|(id, task)| (id, task.state, &task.payload))
    }

    /// Every task's payload, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.tasks.iter_mut().map(|task| &mut task.payload)
    }

    /// Empties the run queue: what stood in it waits for ever.
    pub fn forget_ready(&mut self) {
        self.queue = VecDeque::new();
        self.brief = Vec::new();
    }

    /// The serial of the wait that began last.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// How many tasks wait or are ready.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many entries the run queue has, stale ones among them.
    #[inline]
    pub fn queued(&self) -> usize {
        self.queue.len() + self.brief.len()
    }

    /// Whether the run queue is empty. It may hold entries that turn out to be stale.
    #[inline]
    pub fn queue_is_empty(&self) -> bool {
        self.queue.is_empty() && self.brief.is_empty()
    }

    /// Says of a task that its next wait is a brief one, which the kernel ends as soon as it is asked to: when it does, the
    /// task goes before the queue, the last one first, while its stack is in the caches still.
    #[inline]
    pub fn set_brief(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.brief = true;
        }
    }

    /// More are about to become ready: those whose brief waits have ended, and that have not gone on since, wait for
    /// their turn like all others, so that none waits for ever.
    #[inline]
    pub fn settle(&mut self) {
        if !self.brief.is_empty() {
            self.settle_brief();
        }
    }

    #[cold]
    fn settle_brief(&mut self) {
        if self.queue.is_empty() {
            self.streak = 0;
        }
        self.queue.extend(self.brief.drain(..).rev());
    }

    /// Starts a wait; any wake-up for an earlier one is void.
    ///
    /// # Panics
    /// If there is no such task.
    #[inline]
    pub fn begin_wait(&mut self, id: TaskId) -> WaitId {
        self.enter(id, State::Waiting)
    }

    /// Starts a wait that has ended already: the task goes to the end of the run queue.
    ///
    /// # Panics
    /// If there is no such task.
    #[inline(always)]
    pub fn step_back(&mut self, id: TaskId) {
        let wait = self.enter(id, State::Ready(Wake::Complete));
        self.queue.push_back(wait);
    }

    /// Starts a wait in a state.
    #[inline(always)]
    fn enter(&mut self, id: TaskId, state: State) -> WaitId {
        self.serial += 1;
        let task = self.tasks.get_mut(id).expect("only a task can wait");
        if task.state == State::Running {
            self.waiting += 1;
        }
        task.state = state;
        task.serial = self.serial;
        task.missed = None;
        WaitId {
            task: id,
            serial: self.serial,
        }
    }

    /// Ends the task's wait, whatever its state: the task runs.
    #[inline]
    pub fn end_wait(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.brief = false;
            if task.state != State::Running {
                self.waiting -= 1;
                task.state = State::Running;
            }
        }
    }

    /// Makes the task ready if it is still in that very wait; says whether it was.
    #[inline]
    pub fn wake(&mut self, wait: WaitId, why: Wake) -> bool {
        self.ready(wait, why, false)
    }

    /// As [`Tasks::wake`], but the task goes to the head of the run queue.
    #[inline]
    pub fn wake_first(&mut self, wait: WaitId, why: Wake) -> bool {
        self.ready(wait, why, true)
    }

    #[inline]
    fn ready(&mut self, wait: WaitId, why: Wake, first: bool) -> bool {
        let Some(task) = self.tasks.get_mut(wait.task) else {
            return false;
        };
        if task.state != State::Waiting || task.serial != wait.serial {
            if task.serial == wait.serial {
                task.miss(why);
            }
            return false;
        }
        task.state = State::Ready(why);
        if first {
            self.streak = STREAK;
            self.queue.push_front(wait);
        } else if task.brief {
            self.brief.push(wait);
        } else {
            self.queue.push_back(wait);
        }
        true
    }

    /// Goes on with a wait that an interrupt has ended, for a task that is to pay no heed to it: what has come for the
    /// wait since ends it at once, and is returned.
    pub fn go_on_waiting(&mut self, id: TaskId) -> Option<Wake> {
        let task = self.tasks.get_mut(id)?;
        if let Some(missed) = task.missed.take() {
            return Some(missed);
        }
        if task.state == State::Running {
            self.waiting += 1;
        }
        task.state = State::Waiting;
        None
    }

    /// Whether what the task waited for came after all, after its wait had been ended by something else.
    #[inline]
    pub fn take_completion(&mut self, id: TaskId) -> bool {
        self.tasks.get_mut(id).is_some_and(|task| {
            task.state == State::Ready(Wake::Complete) || task.missed.take() == Some(Wake::Complete)
        })
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<WaitId> {
        if self.brief.is_empty() {
            self.queue.pop_front()
        } else {
            self.pop_brief()
        }
    }

    #[cold]
    fn pop_brief(&mut self) -> Option<WaitId> {
        if self.streak < STREAK || self.queue.is_empty() {
            self.streak = (self.streak + 1).min(STREAK);
            self.brief.pop()
        } else {
            self.streak -= 1;
            self.queue.pop_front()
        }
    }

    /// Takes the next ready task off the run queue; it runs from now on.
    #[inline(always)]
    pub fn next_ready(&mut self) -> Option<(TaskId, Wake)> {
        while let Some(wait) = self.pop() {
            let Some(task) = self.tasks.get_mut(wait.task) else {
                continue;
            };
            if task.serial != wait.serial {
                continue;
            }
            if let State::Ready(why) = task.state {
                task.state = State::Running;
                self.waiting -= 1;
                return Some((wait.task, why));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wake_up_for_an_earlier_wait_is_dropped() {
        let mut tasks = Tasks::default();
        let task = tasks.add(());
        let earlier = tasks.begin_wait(task);
        tasks.end_wait(task);
        tasks.begin_wait(task);
        assert!(!tasks.wake(earlier, Wake::Timeout));
        assert_eq!(tasks.next_ready(), None);
    }

    #[test]
    fn the_first_wake_up_wins() {
        let mut tasks = Tasks::default();
        let task = tasks.add(());
        let wait = tasks.begin_wait(task);
        assert!(tasks.wake(wait, Wake::Complete));
        assert!(!tasks.wake(wait, Wake::Timeout));
        assert_eq!(tasks.next_ready(), Some((task, Wake::Complete)));
        assert_eq!(tasks.next_ready(), None);
    }

    #[test]
    fn a_task_that_steps_back_goes_on_after_the_others() {
        let mut tasks = Tasks::default();
        let (first, second) = (tasks.add(()), tasks.add(()));
        let earlier = tasks.begin_wait(first);
        tasks.end_wait(first);
        let wait = tasks.begin_wait(second);
        tasks.wake(wait, Wake::Complete);
        tasks.step_back(first);
        let wait = tasks.current_wait(first).expect("it waits");
        assert!(!tasks.wake(earlier, Wake::Timeout));
        assert!(!tasks.wake(wait, Wake::Complete));
        assert_eq!(tasks.waiting(), 2);
        assert_eq!(tasks.next_ready(), Some((second, Wake::Complete)));
        assert_eq!(tasks.next_ready(), Some((first, Wake::Complete)));
        assert_eq!((tasks.next_ready(), tasks.waiting()), (None, 0));
    }

    #[test]
    fn a_ready_task_that_was_removed_does_not_run() {
        let mut tasks = Tasks::default();
        let task = tasks.add(());
        let wait = tasks.begin_wait(task);
        tasks.wake(wait, Wake::Complete);
        tasks.remove(task);
        let other = tasks.add(());
        assert_eq!(other.index, task.index);
        assert_eq!(tasks.next_ready(), None);
        assert_eq!(tasks.waiting(), 0);
    }

    #[test]
    fn a_task_that_waits_anew_goes_on_behind_those_that_were_ready_before() {
        let mut tasks = Tasks::default();
        let (first, second) = (tasks.add(()), tasks.add(()));
        for id in [first, second, first] {
            let wait = tasks.begin_wait(id);
            tasks.wake(wait, Wake::Complete);
        }
        assert_eq!(tasks.next_ready().map(|(id, _)| id), Some(second));
        assert_eq!(tasks.next_ready().map(|(id, _)| id), Some(first));
        assert_eq!(tasks.next_ready(), None);
    }

    #[test]
    fn a_task_put_first_runs_first() {
        let mut tasks = Tasks::default();
        let (a, b) = (tasks.add('a'), tasks.add('b'));
        let (wait_a, wait_b) = (tasks.begin_wait(a), tasks.begin_wait(b));
        tasks.wake(wait_a, Wake::Complete);
        tasks.wake_first(wait_b, Wake::Complete);
        assert_eq!(tasks.next_ready().map(|(id, _)| id), Some(b));
        assert_eq!(tasks.next_ready().map(|(id, _)| id), Some(a));
    }

    #[test]
    fn a_task_whose_wait_was_brief_goes_before_the_queue_the_last_one_first() {
        let mut tasks = Tasks::default();
        let ids: Vec<_> = "abc".chars().map(|name| tasks.add(name)).collect();
        for id in &ids[1..] {
            tasks.set_brief(*id);
        }
        let waits: Vec<_> = ids.iter().map(|id| tasks.begin_wait(*id)).collect();
        for wait in waits {
            tasks.wake(wait, Wake::Complete);
        }
        let order = std::iter::from_fn(|| tasks.next_ready()).map(|(id, _)| id);
        assert_eq!(order.collect::<Vec<_>>(), [ids[2], ids[1], ids[0]]);
    }

    // However many tasks wait briefly again and again, those of the queue go on, and so do those of them that others came
    // before.
    #[test]
    fn brief_waits_keep_nobody_from_going_on() {
        let mut tasks = Tasks::default();
        let brief: Vec<_> = (0..200).map(|n| tasks.add(n)).collect();
        let other = tasks.add(200);
        let mut runs = vec![0; 201];
        let mut ended: Vec<WaitId> = Vec::new();
        let wait = |tasks: &mut Tasks<usize>, id: TaskId, ended: &mut Vec<WaitId>| {
            if id != other {
                tasks.set_brief(id);
            }
            ended.push(tasks.begin_wait(id));
        };
        for id in brief.iter().chain([&other]) {
            wait(&mut tasks, *id, &mut ended);
        }
        for _ in 0..100 {
            tasks.settle();
            for wait in ended.drain(..) {
                tasks.wake(wait, Wake::Complete);
            }
            for _ in 0..50 {
                let (id, _) = tasks.next_ready().expect("all are ready");
                runs[tasks.get(id).copied().unwrap()] += 1;
                tasks.end_wait(id);
                wait(&mut tasks, id, &mut ended);
            }
        }
        assert!(runs.iter().all(|count| *count >= 3), "{runs:?}");
    }

    proptest! {
        // Each task has at most one entry that counts; whatever order of events, a task runs once
        // per wait and only for that wait.
        #[test]
        fn a_task_runs_once_per_wait(steps in prop::collection::vec((0usize..4, 0u8..7), 1..300)) {
            let mut tasks = Tasks::default();
            let ids: Vec<_> = (0..4).map(|n| tasks.add(n)).collect();
            let mut waits: Vec<Vec<WaitId>> = vec![Vec::new(); 4];
            let mut model = [State::Running; 4];
            for (n, action) in steps {
                match action {
                    0 => { waits[n].push(tasks.begin_wait(ids[n])); model[n] = State::Waiting; }
                    1 => { tasks.end_wait(ids[n]); model[n] = State::Running; }
                    2 => for (age, wait) in waits[n].iter().rev().enumerate() {
                        let hit = tasks.wake(*wait, Wake::Complete);
                        prop_assert_eq!(hit, age == 0 && model[n] == State::Waiting);
                        if hit { model[n] = State::Ready(Wake::Complete); }
                    },
                    3 => tasks.set_brief(ids[n]),
                    4 => tasks.settle(),
                    _ => if let Some((id, why)) = tasks.next_ready() {
                        let n = *tasks.get(id).unwrap();
                        prop_assert_eq!(model[n], State::Ready(why));
                        model[n] = State::Running;
                    } else {
                        prop_assert!(!model.iter().any(|state| matches!(state, State::Ready(_))));
                    },
                }
                let waiting = model.iter().filter(|state| **state != State::Running).count();
                prop_assert_eq!(tasks.waiting(), waiting);
            }
        }
    }
}
