//! The driver with a clock and callers: inputs go in with the time, answers come out as futures.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ps_common::rows::Rows;
use ps_common::{Error, ErrorCode};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::core::{CallId, ConnId, Input, Time};
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

/// Who waits for an answer.
#[derive(Debug, Default)]
struct Callers(Mutex<HashMap<CallId, oneshot::Sender<Delivery>>>);

impl Callers {
    fn deliver(&self, call: CallId, delivery: Delivery) {
        if let Some(caller) = self.0.lock().remove(&call) {
            // A caller that is gone meanwhile has been withdrawn or soon will be.
            let _ = caller.send(delivery);
        }
    }
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
        let (sender, answer) = oneshot::channel();
        self.callers.0.lock().insert(call, sender);
        let withdraw = Withdraw { shell: self, call };
        if let Some(rows) = brought.asked {
            self.driver.ask(call, rows);
        }
        self.feed(brought.gradient.map(|gradient| (call, gradient)), input(call));
        let delivery = answer.await;
        std::mem::forget(withdraw);
        match delivery {
            Ok(Delivery::Refused(error)) => Err(error),
            Ok(delivery) => Ok(delivery),
            Err(_) => Err(Error::new(ErrorCode::Internal, "the call was forgotten")),
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

/// Tells the core that a caller is gone.
struct Withdraw<'a> {
    shell: &'a Shell,
    call: CallId,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if self.shell.callers.0.lock().remove(&self.call).is_some() {
            self.shell.tell(Input::Dropped { call: self.call });
        }
    }
}
