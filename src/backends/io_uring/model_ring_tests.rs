//! A ring whose kernel is a scheduler: the same face as the real one, no memory shared with anybody.
//!
//! What is entered runs; while a thread waits in here, what runs ends in any order, one request at a time, and
//! other threads go on between. A thread that waits while nothing runs sleeps until somebody enters.

use super::chain::{Chain, Failure, Part, Step, Unit};
use super::pool::Pool;
use crate::storage::CommitBuffer;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};
use crate::walog::models::lab::pick;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Which request ends with an input/output error, counted from 0.
pub(super) struct Ring {
    pub failing: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub width: usize,
    pub in_flight_max: usize,
}

impl Shape {
    pub fn is_split(&self, requests: usize) -> bool {
        requests % self.width != 0
    }
}

pub(super) struct Request<M> {
    pub buffer: CommitBuffer,
    #[allow(dead_code, reason = "the real ring reads it")]
    pub buffer_start: usize,
    pub offset: u64,
    pub chain: Chain,
    #[allow(dead_code, reason = "the real ring reads it")]
    pub full_sync: bool,
    pub meta: M,
}

pub(super) struct Finished<M> {
    pub request: Request<M>,
    pub result: Option<Result<(), Failure>>,
}

pub(super) struct Attached<M, S> {
    file: File,
    shape: Shape,
    kernel: Kernel,
    inside: Mutex<Inside<M, S>>,
}

struct Inside<M, S> {
    slots: Vec<Option<Request<M>>>,
    state: S,
}

/// One entry of a queue: whose it is, and how it will end.
#[derive(Clone, Copy)]
struct Entry {
    slot: usize,
    part: Part,
    result: i32,
    writes: bool,
}

struct Kernel {
    state: Mutex<KernelState>,
    entered: Condvar,
}

struct KernelState {
    queued: VecDeque<Entry>,
    running: Vec<Entry>,
    completed: VecDeque<Entry>,
    ended: usize,
    failing: Option<usize>,
}

impl KernelState {
    fn take_up(&mut self, submit: usize) -> usize {
        let taken = submit.min(self.queued.len());
        self.running.extend(self.queued.drain(..taken));
        taken
    }

    /// One of those that run ends; the second of a pair after its first.
    fn end_one(&mut self) {
        let firsts: Vec<_> = self.running.iter().filter(|entry| entry.part == Part::First).collect();
        let waits =
            |entry: &Entry| entry.part == Part::Second && firsts.iter().any(|first| first.slot == entry.slot);
        let may_end: Vec<_> = (0..self.running.len()).filter(|at| !waits(&self.running[*at])).collect();
        let mut entry = self.running.remove(may_end[pick(may_end.len())]);
        if entry.writes && self.failing == Some(self.ended) {
            entry.result = -(Errno::EIO as i32);
        }
        self.ended += usize::from(entry.writes);
        self.completed.push_back(entry);
    }
}

impl Kernel {
    fn state(&self) -> MutexGuard<'_, KernelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time has passed, whether somebody waits or not.
    fn go_on(&self) {
        let mut state = self.state();
        if !state.running.is_empty() && pick(2) == 0 {
            state.end_one();
        }
    }

    fn enter(&self, submit: u32, want: u32) -> usize {
        let mut state = self.state();
        let taken = state.take_up(submit as usize);
        self.entered.notify_all();
        if want == 0 && !state.running.is_empty() && pick(2) == 0 {
            state.end_one();
        }
        while state.completed.len() < want as usize {
            if state.running.is_empty() {
                state = self.entered.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            thread::yield_now();
            state = self.state();
            if !state.running.is_empty() {
                state.end_one();
            }
        }
        taken
    }
}

pub(super) struct Locked<'a, M, S> {
    kernel: &'a Kernel,
    shape: Shape,
    inside: MutexGuard<'a, Inside<M, S>>,
}

impl<M, S> Attached<M, S> {
    pub fn new(ring: Ring, file: File, shape: Shape, _pool: Arc<Pool>, state: S) -> Self {
        let kernel = KernelState {
            queued: VecDeque::new(),
            running: Vec::new(),
            completed: VecDeque::new(),
            ended: 0,
            failing: ring.failing,
        };
        let kernel = Kernel { state: Mutex::new(kernel), entered: Condvar::new() };
        let slots = (0..shape.in_flight_max).map(|_| None).collect();
        Self { file, shape, kernel, inside: Mutex::new(Inside { slots, state }) }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn lock(&self) -> Locked<'_, M, S> {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { kernel: &self.kernel, shape: self.shape, inside }
    }

    /// A wait with an end may end before anything has, and a signal may end any; what was taken up is told first.
    pub fn enter(&self, submit: u32, want: u32, timeout: Option<Duration>) -> Result<usize, Errno> {
        let (cuts_short, errno) = if timeout.is_some() { (3, Errno::ETIME) } else { (8, Errno::EINTR) };
        if pick(cuts_short) == 0 {
            let taken = self.kernel.enter(submit, 0);
            return if taken > 0 { Ok(taken) } else { Err(errno) };
        }
        Ok(self.kernel.enter(submit, want))
    }

    pub fn belongs_to_this_process(&self) -> bool {
        true
    }

    /// A call that blocks while others go on, and may be refused or end short.
    pub fn write_dsync(&self, request: &Request<M>) -> Result<i32, Errno> {
        thread::yield_now();
        let mut state = self.kernel.state();
        let bytes = request.chain.piece().len() as i32;
        let answer = match pick(4) {
            0 => return Err(Errno::EPERM),
            _ if state.failing == Some(state.ended) => Err(Errno::EIO),
            1 => Ok(bytes / 2),
            _ => Ok(bytes),
        };
        state.ended += 1;
        answer
    }
}

impl<'a, M, S> Locked<'a, M, S> {
    pub fn state(&mut self) -> &mut S {
        &mut self.inside.state
    }

    pub fn wait_on(self, turn: &Condvar, _timeout: Option<Duration>) -> Self {
        let Self { kernel, shape, inside } = self;
        let inside = turn.wait(inside).unwrap_or_else(PoisonError::into_inner);
        Self { kernel, shape, inside }
    }

    pub fn queued(&self) -> u32 {
        self.kernel.state().queued.len() as u32
    }

    pub fn is_idle(&self) -> bool {
        self.inside.slots.iter().all(Option::is_none)
    }

    pub fn completions_to_an_end(&self) -> u32 {
        let missing = self.inside.slots.iter().flatten().map(|request| request.chain.missing());
        missing.min().unwrap_or(1).max(1) as u32
    }

    pub fn begin(&mut self, request: Request<M>) -> Result<(), Request<M>> {
        let Some(slot) = self.inside.slots.iter().position(Option::is_none) else { return Err(request) };
        self.inside.slots[slot] = Some(request);
        self.publish(slot);
        Ok(())
    }

    pub fn enter(&mut self, submit: u32) -> Result<usize, Errno> {
        Ok(self.kernel.enter(submit, 0))
    }

    pub fn harvest(&mut self, may_go_on: impl Fn() -> bool, mut finished: impl FnMut(&mut S, Finished<M>)) {
        self.kernel.go_on();
        loop {
            let Some(entry) = self.kernel.state().completed.pop_front() else { return };
            let request = self.inside.slots[entry.slot].as_mut().expect("a completion belongs to a request");
            let result = match request.chain.complete(entry.part, entry.result) {
                Step::Wait => continue,
                Step::Issue(_) if may_go_on() => {
                    self.publish(entry.slot);
                    continue;
                }
                Step::Issue(_) => None,
                Step::Done(result) => Some(result),
            };
            let inside = &mut *self.inside;
            if let Some(request) = inside.slots[entry.slot].take() {
                finished(&mut inside.state, Finished { request, result });
            }
        }
    }

    fn publish(&mut self, slot: usize) {
        let Some(request) = &self.inside.slots[slot] else { return };
        let bytes = request.chain.piece().len() as i32;
        let (first, second) = match request.chain.unit() {
            Unit::Write { .. } => ((bytes, true), (0, false)),
            Unit::WriteAndSync => ((bytes, true), (0, true)),
            Unit::Sync => ((0, true), (0, false)),
        };
        let entry = |part, (result, writes)| Entry { slot, part, result, writes };
        let unit = [entry(Part::First, first), entry(Part::Second, second)];
        self.kernel.state().queued.extend(&unit[..self.shape.width]);
    }
}
