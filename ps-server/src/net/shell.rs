//! The driver with a clock and callers: inputs go in with the time, answers come out as futures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ps_common::rows::Rows;
use ps_common::{Error, ErrorCode};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::callers::{Callers, Errand, Errands};
use crate::core::{CallId, ConnId, Input, Order, Time};
use crate::driver::{Aftermath, Delivery, Driver};
use crate::table::Pushed;

/// What all services share.
#[derive(Debug)]
pub struct Shell {
    driver: Driver,
    epoch: Instant,
    ids: AtomicU64,
    callers: Arc<Callers>,
    /// When the timer rings, in microseconds since the epoch.
    armed_us: AtomicU64,
    rearm: Notify,
    conclude: Notify,
    over: Notify,
    initialized: Notify,
}

/// What a call brings besides its words.
#[derive(Debug, Default)]
pub struct Brought {
    /// Of a push.
    pub gradient: Option<Pushed>,
    /// Rows that the answer shall bring in place of theta.
    pub asked: Option<Vec<Rows>>,
}

impl Shell {
    /// Starts the server's clock, and the job where one was taken up again.
    pub fn new(driver: Driver) -> Arc<Self> {
        let shell = Arc::new(Self {
            driver,
            epoch: Instant::now(),
            ids: AtomicU64::new(1),
            callers: Arc::default(),
            armed_us: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            conclude: Notify::new(),
            over: Notify::new(),
            initialized: Notify::new(),
        });
        let (callers, told) = (Arc::clone(&shell.callers), Arc::downgrade(&shell));
        shell.driver.keep(
            Arc::new(move |(call, delivery)| callers.deliver(call, delivery)),
            Arc::new(move |input| {
                if let Some(shell) = told.upgrade() {
                    shell.tell(input);
                }
            }),
        );
        // With more workers than processors a thread that is woken has to wait for one.
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        if shell.driver.n_workers() as usize <= n_cores {
            let callers = Arc::clone(&shell.callers);
            shell.driver.share(Box::new(move |call, order| callers.hand_over(call, order)));
        }
        let aftermath = shell.driver.resume(&|| shell.now(), &mut |_, _| {});
        if shell.driver.shape().is_some() {
            shell.initialized.notify_one();
        }
        shell.settle(aftermath);
        shell
    }

    /// The server without its network.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Time since the server's start.
    pub fn now(&self) -> Time {
        self.epoch.elapsed()
    }

    /// A name for a new connection.
    pub fn connected(&self) -> ConnId {
        ConnId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Tells the core something that nobody waits on.
    pub fn tell(&self, input: Input) {
        self.feed(None, input);
    }

    /// Makes a call to the core and waits for its answer. Dropping the future withdraws the call.
    ///
    /// # Errors
    /// The core's refusal.
    pub async fn call(
        &self,
        brought: Brought,
        input: impl FnOnce(CallId) -> Input,
    ) -> Result<Delivery, Error> {
        let call = CallId(self.ids.fetch_add(1, Ordering::Relaxed));
        let mut waiting = Waiting { shell: self, call, errands: self.callers.enter(call) };
        if let Some(rows) = brought.asked {
            self.driver.ask(call, rows);
        }
        self.feed(brought.gradient.map(|gradient| (call, gradient)), input(call));
        loop {
            match (&mut waiting.errands).await {
                Ok(Errand::Answer(Delivery::Refused(error))) => return Err(error),
                Ok(Errand::Answer(delivery)) => return Ok(delivery),
                Ok(Errand::Update(order, next)) => {
                    waiting.errands = next;
                    self.carry_out(order);
                }
                Err(_) => return Err(Error::new(ErrorCode::Internal, "the call was forgotten")),
            }
        }
    }

    /// Writes a checkpoint of theta as it is or later, and waits until it is durable: its version
    /// and file.
    ///
    /// # Errors
    /// NOT_DURABLE, if it could not be written; NOT_BUILT without `--checkpoint-dir`.
    pub async fn checkpoint(&self) -> Result<(u64, String), Error> {
        match self.call(Brought::default(), |call| Input::Checkpoint { call: Some(call) }).await? {
            Delivery::Checkpointed(version, path) => Ok((version, path)),
            other => {
                let what = format!("a wish for a checkpoint got another call's answer: {other:?}");
                Err(Error::new(ErrorCode::Internal, what))
            }
        }
    }

    fn feed(&self, gradient: Option<(CallId, Pushed)>, input: Input) {
        let mut deliver = |call, delivery| self.callers.deliver(call, delivery);
        let is_join = matches!(input, Input::Join { .. });
        let clock = || self.now();
        let aftermath = match gradient {
            Some((call, gradient)) => {
                self.driver.feed_push(&clock, call, gradient, input, &mut deliver)
            }
            None => self.driver.feed(&clock, input, &mut deliver),
        };
        if is_join && self.driver.shape().is_some() {
            self.initialized.notify_one();
        }
        self.settle(aftermath);
    }

    /// Carries out an update that another thread's step has brought about.
    fn carry_out(&self, order: Order) {
        let mut deliver = |call, delivery| self.callers.deliver(call, delivery);
        self.settle(self.driver.carry_out(&|| self.now(), order, &mut deliver));
    }

    /// Wakes who waits for what a step has brought about.
    fn settle(&self, aftermath: Aftermath) {
        if aftermath == Aftermath::Conclude {
            self.conclude.notify_one();
        }
        let (deadline, over) = self.driver.outlook();
        if over {
            self.over.notify_one();
        }
        let deadline_us = deadline.map_or(u64::MAX, micros);
        if deadline_us < self.armed_us.load(Ordering::Acquire) {
            self.rearm.notify_one();
        }
    }

    /// Rings when the core asks for it. Runs until it is dropped.
    pub async fn keep_time(&self) {
        loop {
            let deadline = self.driver.outlook().0;
            self.armed_us.store(deadline.map_or(u64::MAX, micros), Ordering::Release);
            let rearmed = self.rearm.notified();
            match deadline {
                None => rearmed.await,
                Some(deadline) => {
                    tokio::select! {
                        biased;
                        () = rearmed => {}
                        () = tokio::time::sleep_until(self.epoch + deadline) => self.tell(Input::Tick),
                    }
                }
            }
        }
    }

    /// Waits until report and theta should be written.
    pub async fn conclusion(&self) {
        self.conclude.notified().await;
    }

    /// Waits until a join has found or made theta.
    pub async fn initialized(&self) {
        self.initialized.notified().await;
    }

    /// Waits until nobody is left who should hear of the job's end.
    pub async fn over(&self) {
        self.over.notified().await;
    }
}

fn micros(time: Time) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1)
}

/// A call that waits for its answer. Dropped before that, it is withdrawn.
struct Waiting<'a> {
    shell: &'a Shell,
    call: CallId,
    errands: Errands,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let is_withdrawn = self.shell.callers.leave(self.call);
        // What it has been given nobody else does.
        if let Ok(Errand::Update(order, _)) = self.errands.try_recv() {
            self.shell.carry_out(order);
        }
        if is_withdrawn {
            self.shell.tell(Input::Dropped { call: self.call });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;
    use ps_common::Dtype;
    use ps_common::calls::{Caller, JoinRequest, Outcome, PushHeader};
    use ps_common::dtype::as_le_bytes;
    use ps_common::job::{Fingerprint, PROTOCOL_VERSION, Role};
    use ps_common::tables::{Table, Tables};
    use std::task::{Context, Waker};
    use std::time::Duration;

    /// Enough for threads to be given updates, and for updates to be met while they are under way.
    const DIM: usize = 400_000;

    async fn join(shell: &Shell, rank: u32) -> Caller {
        let tables = Tables::new(vec![Table::zeros("w", &[DIM as u64], true)]).expect("sane");
        let request = JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role: Role::Worker,
            rank: Some(rank),
            fingerprint: Fingerprint::default(),
            tables: Some(tables),
            dtype: Some(Dtype::F32),
            program: "test".to_owned(),
            acknowledged_clock: None,
            overlap: false,
        };
        let conn = shell.connected();
        let join = |call| Input::Join { call, conn, address: String::new(), request };
        match shell.call(Brought::default(), join).await {
            Ok(Delivery::Joined(answer)) => answer.caller,
            other => panic!("{other:?}"),
        }
    }

    /// Pushes ones as `clock`, computed at any theta.
    async fn push(shell: &Shell, caller: Caller, clock: u64) -> Outcome {
        let ones = vec![1f32; DIM];
        let mut gradient = shell.driver().empty_gradient(Dtype::F32);
        gradient.append(as_le_bytes(&ones), DIM).expect("finite");
        let brought = Brought { gradient: Some(gradient.into()), asked: None };
        let header = PushHeader {
            caller,
            clock,
            version_pulled: 0,
            n_samples: 1,
            loss: None,
            penalty: None,
            wait_max: None,
            exchange: 0,
        };
        let (conn, digest) = (ConnId(caller.rank.into()), 7);
        let input = |call| Input::Push { call, conn, header, digest, theta: true };
        match shell.call(brought, input).await {
            Ok(Delivery::Pushed(result, _)) => result.outcome,
            other => panic!("{other:?}"),
        }
    }

    /// A caller hangs up when it has been given its update and has not begun with it.
    #[test]
    fn an_update_is_carried_out_whoever_hangs_up() {
        const CLOCKS: u64 = 200;
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            eprintln!("SKIPPED: on one processor no update is handed over");
            return;
        }
        let shell = testing::shell_of(2);
        let [first, second] = [0, 1].map(|rank| wait_for(join(&shell, rank)));
        let mut n_waited = 0;
        for clock in 0..CLOCKS {
            let mut waiting = Box::pin(push(&shell, second, clock));
            let is_pending = std::thread::scope(|scope| {
                let other = scope.spawn(|| wait_for(push(&shell, first, clock)));
                // From soon after the other's update has begun to when it is over, as it comes.
                std::thread::sleep(Duration::from_micros(clock * 10));
                let polled = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert_eq!(other.join().expect("no panic"), Outcome::Applied);
                polled.is_pending()
            });
            n_waited += u64::from(is_pending);
            drop(waiting);
            let theta = shell.driver().snapshot().expect("made");
            assert_eq!(theta.version, 2 * (clock + 1), "{n_waited} have waited");
        }
        assert!(n_waited > 0, "the other's updates were always over");
        let theta = shell.driver().snapshot().expect("made").values::<f32>();
        assert!(theta.iter().all(|x| *x == -((2 * CLOCKS) as f32)));
        assert_eq!(shell.driver().check(), Ok(()));
    }

    fn wait_for<R>(call: impl Future<Output = R>) -> R {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(call)
    }
}
