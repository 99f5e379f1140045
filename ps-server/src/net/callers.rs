//! Who waits for an answer, and may do some of the server's work meanwhile.
//!
//! An update is carried out by the thread that brought its gradient, also where it had to wait for
//! another thread's: that one would otherwise send its own answer only after it. The thread that waits
//! is idle or will soon be, and has to be woken for the answer anyway.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::{CallId, Order};
use crate::driver::Delivery;

/// What a waiting call is woken for.
#[derive(Debug)]
pub(super) enum Errand {
    /// Its answer: it is over.
    Answer(Delivery),
    /// To carry out the update by its gradient; it is woken again by what comes with it.
    Update(Order, Errands),
}

/// The next errand of a call.
pub(super) type Errands = oneshot::Receiver<Errand>;

/// The calls that wait.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<HashMap<CallId, oneshot::Sender<Errand>>>);

impl Callers {
    /// Lets a call wait.
    pub(super) fn enter(&self, call: CallId) -> Errands {
        let (sender, errands) = oneshot::channel();
        self.0.lock().insert(call, sender);
        errands
    }

    /// Ends the wait of a call without an answer; gives whether it still waited. It is given no update
    /// to carry out after that.
    pub(super) fn leave(&self, call: CallId) -> bool {
        self.0.lock().remove(&call).is_some()
    }

    /// Answers a call.
    pub(super) fn deliver(&self, call: CallId, delivery: Delivery) {
        if let Some(caller) = self.0.lock().remove(&call) {
            // A caller that is gone meanwhile has been withdrawn or soon will be.
            let _ = caller.send(Errand::Answer(delivery));
        }
    }

    /// Gives the update by a call's gradient to whoever waits for the call's answer.
    ///
    /// # Errors
    /// The order, which is nobody's, where nobody waits.
    pub(super) fn hand_over(&self, call: CallId, order: Order) -> Result<(), Order> {
        // Locked to the end: whoever leaves takes out first what it has been given.
        let mut callers = self.0.lock();
        let Some(caller) = callers.get_mut(&call) else { return Err(order) };
        let (sender, errands) = oneshot::channel();
        let caller = std::mem::replace(caller, sender);
        match caller.send(Errand::Update(order, errands)) {
            Ok(()) => Ok(()),
            Err(Errand::Update(order, _)) => Err(order),
            Err(Errand::Answer(_)) => unreachable!("an update was sent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ps_common::job::JobState;

    fn answer() -> Delivery {
        Delivery::State { state: JobState::Running, version: 3 }
    }

    #[tokio::test]
    async fn who_waits_is_given_its_update_and_then_its_answer() {
        let (callers, call) = (Callers::default(), CallId(7));
        let errands = callers.enter(call);
        callers.hand_over(call, Order::alone(call)).expect("somebody waits");
        let Ok(Errand::Update(order, errands)) = errands.await else { panic!("an update") };
        assert_eq!(order, Order::alone(call));
        callers.deliver(call, answer());
        let Ok(Errand::Answer(Delivery::State { version, .. })) = errands.await else {
            panic!("the answer")
        };
        assert_eq!(version, 3);
        assert!(!callers.leave(call), "it is over");
    }

    #[test]
    fn an_order_comes_back_where_nobody_waits_and_stays_where_somebody_did() {
        let (callers, call) = (Callers::default(), CallId(7));
        assert_eq!(callers.hand_over(call, Order::alone(call)), Err(Order::alone(call)));
        let mut errands = callers.enter(call);
        callers.hand_over(call, Order::alone(call)).expect("somebody waits");
        assert!(callers.leave(call), "not answered");
        assert!(matches!(errands.try_recv(), Ok(Errand::Update(..))), "it is for who leaves");
        assert_eq!(callers.hand_over(call, Order::alone(call)), Err(Order::alone(call)));
        callers.deliver(call, answer());
    }
}
