//! Where deciding and applying meet: steps the core and carries out its effects.
//!
//! A thread that brings an input carries out what follows from it: it steps the core under a lock
//! held for microseconds, hands out the answers, and applies the update that the core asked for, if
//! any, outside that lock; of an update of rows the writing alone is inside. The core has at most one
//! update under way, so theta needs no order of its own; a long one that had to wait is handed to the
//! thread that brought its gradient. In hogwild mode there are several, each on that thread, and nothing
//! keeps them apart.

use std::collections::VecDeque;
use std::sync::Arc;

use ps_common::calls::{Outcome, PushResult};
use ps_common::rows::Rows;
use ps_common::statistics::Statistics;
use ps_common::tables::Tables;

use super::outgoing::Outgoing;
use super::{Aftermath, Delivery, Driver};
use crate::applier::Fresh;
use crate::core::{Answer, CallId, Core, Effect, Input, Order, Time, Unapplied, Welcome};
use crate::keeper::Keeper;
use crate::table::Pushed;

/// What a thread begins with.
enum Begin<F> {
    /// A step of the core.
    Step(F),
    /// An update that it was handed.
    Update(Order),
}

impl Driver {
    /// Gives one input to the core at the time that `clock` tells, and does what follows, answers
    /// first, in order. Where updates are recorded, answers to pushes wait until the records are
    /// durable and are delivered late ([`Driver::keep`]).
    pub fn feed(
        &self,
        clock: &dyn Fn() -> Time,
        input: Input,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) -> Aftermath {
        if let Some(group) = &self.group {
            group.expect(&input);
        }
        if let Input::Dropped { call } = input {
            self.applier.asked(call);
        }
        self.advance(clock, Begin::Step(|core: &mut Core, now| core.step(now, input)), deliver)
    }

    /// Carries out an update that was handed over, and does what follows as [`Driver::feed`] does.
    pub fn carry_out(
        &self,
        clock: &dyn Fn() -> Time,
        order: Order,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) -> Aftermath {
        let begin = Begin::<fn(&mut Core, Time) -> Vec<Effect>>::Update(order);
        self.advance(clock, begin, deliver)
    }

    /// Lets a job that was taken up again go on. Before any input.
    pub fn resume(
        &self,
        clock: &dyn Fn() -> Time,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) -> Aftermath {
        match self.shape() {
            None => Aftermath::None,
            Some(_) => {
                self.advance(clock, Begin::Step(|core: &mut Core, now| core.resume(now)), deliver)
            }
        }
    }

    /// Takes one step of the core, or carries out an update, and then all that follows from what the core
    /// orders, but for updates that others can carry out.
    fn advance(
        &self,
        clock: &dyn Fn() -> Time,
        begin: Begin<impl FnOnce(&mut Core, Time) -> Vec<Effect>>,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) -> Aftermath {
        let (mut first, mut orders) = match begin {
            Begin::Step(step) => (Some(step), VecDeque::new()),
            Begin::Update(order) => (None, VecDeque::from([order])),
        };
        let mut inputs = VecDeque::new();
        // The first update is this thread's own.
        let mut is_own = true;
        let mut aftermath = Aftermath::None;
        let mut fresh = None;
        loop {
            let outcome = match inputs.front() {
                Some(Input::Updated { result, .. }) => Some(result.is_ok()),
                _ => None,
            };
            let step = |core: &mut Core, now| match (first.take(), inputs.pop_front()) {
                (Some(first), _) => first(core, now),
                (None, Some(input)) => core.step(now, input),
                // An update was handed over.
                (None, None) => Vec::new(),
            };
            let (effects, theta) = self.step(clock, (outcome, fresh.take()), step);
            let mut theta = theta.read();
            for effect in effects {
                match effect {
                    Effect::Reply { call, answer } => {
                        // If its record was lost, only a checkpoint makes durable what it says,
                        // and there may be no other push to ask for one.
                        let is_again = is_duplicate(&answer);
                        self.reply(call, answer, &mut theta, deliver);
                        if is_again && self.wants_checkpoint() {
                            inputs.push_back(Input::Checkpoint { call: None });
                        }
                    }
                    Effect::Create { .. } => {}
                    Effect::Update(order) => orders.push_back(order),
                    Effect::Capture => inputs.extend(self.capture(clock)),
                    Effect::Keep { rank } => self.applier.keep(rank, theta.whole()),
                    Effect::Forget { gradient } => self.applier.forget(gradient),
                    Effect::Conclude => aftermath = Aftermath::Conclude,
                }
            }
            if !inputs.is_empty() {
                continue;
            }
            let mine = |order| match std::mem::take(&mut is_own) {
                true => Some(order),
                false => self.hand_over(order).err(),
            };
            let next = std::iter::from_fn(|| orders.pop_front()).find_map(mine);
            let Some(order) = next else { return aftermath };
            let result = self.update(&order).map(|made| fresh = Some(made));
            inputs.push_back(Input::Updated { name: order.name(), result });
            if self.wants_checkpoint() {
                inputs.push_back(Input::Checkpoint { call: None });
            }
        }
    }

    /// Takes a step of the core, and with it what an update has made of theta; gives theta as it goes
    /// out with the answers. `outcome` is whether the update that the step is told of has come about.
    fn step(
        &self,
        clock: &dyn Fn() -> Time,
        (outcome, fresh): (Option<bool>, Option<Fresh>),
        step: impl FnOnce(&mut Core, Time) -> Vec<Effect>,
    ) -> (Vec<Effect>, Outgoing<'_>) {
        let mut core = self.core.lock();
        // In one stroke with the core's word of it: nobody can pull a version that the core does not
        // know yet, here or at another server.
        if let (Some(group), Some(is_ok)) = (&self.group, outcome) {
            group.settle(is_ok);
        }
        if let Some(fresh) = fresh {
            self.applier.publish(fresh);
        }
        // Read inside the lock: the core's time never goes back, and an update that took long does
        // not age the leases that it renews.
        let now = clock();
        let effects = step(&mut core, now);
        for effect in &effects {
            // Inside the lock too: nobody may join a job that has no theta yet.
            if let Effect::Create { tables, dtype } = effect {
                self.applier.create(tables, *dtype);
            }
        }
        if let Some(group) = &self.group {
            let job =
                |tables: &Tables| self.keeper.as_ref().map_or(0, |keeper| keeper.job_of(tables));
            group.follow(&effects, job, core.seconds(now));
        }
        // Inside the lock: what goes out is of the version that the core has.
        let theta = Outgoing::with(&effects, &self.applier);
        (effects, theta)
    }

    /// Lets the thread that brought the gradient of an update carry it out, if it waits for the answer
    /// and the update is worth waking it for.
    fn hand_over(&self, order: Order) -> Result<(), Order> {
        match (&order.parts[..], self.hand_over.get()) {
            (&[(call, _)], Some(hand_over)) if self.applier.is_long(call) => hand_over(call, order),
            _ => Err(order),
        }
    }

    fn wants_checkpoint(&self) -> bool {
        self.keeper.as_ref().is_some_and(Keeper::wants_checkpoint)
    }

    /// Carries out an update, recorded where updates are; by all servers or by none.
    fn update(&self, order: &Order) -> Result<Fresh, Unapplied> {
        if let Some(group) = &self.group {
            return self.update_together(group, order);
        }
        let Some(keeper) = self.keeper.as_ref().filter(|keeper| keeper.records()) else {
            return self.applier.update(order);
        };
        let counted = self.core.lock().counted_by(order);
        self.applier.update_recorded(order, &mut |parts| keeper.record(order, &counted, parts))
    }

    /// Takes theta and all that goes with it on its way to the disk; gives what the core has to
    /// hear of it at once.
    fn capture(&self, clock: &dyn Fn() -> Time) -> impl Iterator<Item = Input> + use<> {
        let keeper = self.keeper.as_ref().expect("only a job that is kept is captured");
        let saved = self.core.lock().save(clock());
        let saved = saved.expect("a job without a theta is not captured");
        let theta = self.applier.capture().expect("there is a theta");
        let optimizer = self.applier.optimizer();
        let picture = keeper.picture(saved, theta, optimizer, &self.statistics.lock());
        let end = keeper.save(picture);
        std::iter::once(Input::Captured).chain(end)
    }

    /// Delivers an answer, or has it delivered once what it says is durable.
    fn reply(
        &self,
        call: CallId,
        answer: Answer,
        theta: &mut Outgoing<'_>,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) {
        let acknowledges = matches!(
            answer,
            Answer::Pushed(PushResult { outcome: Outcome::Applied | Outcome::Duplicate, .. })
        );
        let delivery = self.complete(call, answer, theta);
        let late = self.late.get().filter(|_| acknowledges);
        match self.keeper.as_ref().filter(|keeper| keeper.records()).zip(late) {
            None => deliver(call, delivery),
            Some((keeper, late)) => {
                let late = Arc::clone(late);
                keeper.when_durable(move |outcome| match outcome {
                    Ok(()) => late((call, delivery)),
                    Err(error) => late((call, Delivery::Refused(error))),
                });
            }
        }
    }

    /// Like [`Driver::feed`], with the gradient that the push in `input` brings.
    pub fn feed_push(
        &self,
        clock: &dyn Fn() -> Time,
        call: CallId,
        gradient: impl Into<Pushed>,
        input: Input,
        deliver: &mut dyn FnMut(CallId, Delivery),
    ) -> Aftermath {
        self.applier.hold(call, gradient);
        self.feed(clock, input, deliver)
    }

    /// Lets the answer to a call that is about to be fed bring these rows in place of theta.
    pub fn ask(&self, call: CallId, rows: Vec<Rows>) {
        self.applier.ask(call, rows);
    }

    fn complete(&self, call: CallId, answer: Answer, theta: &mut Outgoing<'_>) -> Delivery {
        match answer {
            Answer::Joined(welcome) => self.welcome(&welcome),
            Answer::State { state, version } => Delivery::State { state, version },
            Answer::Pushed(result) => Delivery::Pushed(result, theta.of(call)),
            Answer::Pulled(header) => Delivery::Pulled(header, theta.of(call)),
            Answer::Checkpointed { version, path } => Delivery::Checkpointed(version, path),
            Answer::Statistics => Delivery::Statistics(self.merged_statistics()),
            Answer::Refused(refusal) => Delivery::Refused(refusal.0),
        }
    }

    fn welcome(&self, welcome: &Welcome) -> Delivery {
        let answer = self.core.lock().join_answer(welcome, &self.program);
        Delivery::Joined(Box::new(answer.expect("who is welcome has a job to join")))
    }

    fn merged_statistics(&self) -> Statistics {
        let all = self.statistics.lock();
        let mut in_rank_order = all.values();
        let mut merged = in_rank_order.next().expect("every rank's are in").clone();
        for statistics in in_rank_order {
            merged.merge(statistics);
        }
        merged
    }
}

fn is_duplicate(answer: &Answer) -> bool {
    matches!(answer, Answer::Pushed(PushResult { outcome: Outcome::Duplicate, .. }))
}
