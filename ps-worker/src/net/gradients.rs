//! Gradients as they are pushed: computed at theta, written by the codec, kept until the answer.
//!
//! Owns the shard, the codec's memory, and where that works: here, or on a thread of its own. Knows
//! nothing of calls.

use std::sync::Arc;
use std::time::Duration;

use ps_common::codec::Encoded;
use ps_common::exit::ExitError;
use ps_common::job::Metrics;
use ps_common::rows::Rows;
use ps_common::shared::Shared;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use super::surroundings::Surroundings;
use super::tensor::Parcel;
use crate::coding::Coder;
use crate::learning::Learner;
use crate::model::{Loss, Real};

/// Gradients that take less are computed on the thread that talks, where nothing overlaps: a change
/// of threads would cost more than the connection loses by the pause.
const INLINE_MAX: Duration = Duration::from_millis(2);

/// A gradient that can be pushed.
#[derive(Debug)]
pub(super) struct Ready<T> {
    /// Which of the worker's.
    pub(super) clock: u64,
    /// Of the theta that it was computed at.
    pub(super) version: u64,
    /// There.
    pub(super) loss: Loss,
    /// What it took, the sleep of a test included.
    pub(super) took: Duration,
    content: Content<T>,
    /// Where it is over rows of theta.
    touched: Option<Touched>,
}

/// Rows of theta that batches touch.
#[derive(Debug)]
struct Touched {
    /// That of the gradient.
    own: Arc<[Rows]>,
    /// That of the clock after it.
    next: Arc<[Rows]>,
}

#[derive(Debug)]
enum Content<T> {
    /// As it is; while it is on its way its messages hold it.
    Plain(Shared<T>),
    /// By a codec.
    Written(Vec<Encoded>),
}

impl<T: Real> Ready<T> {
    /// As it is sent, however often: the same bytes. Over rows it asks for those of the clock after it,
    /// if there is one (`goes_on`).
    pub(super) fn parcel(&self, goes_on: bool) -> Parcel<'_, T> {
        let parcel = match &self.content {
            Content::Plain(values) => Parcel::from(values),
            Content::Written(chunks) => Parcel::coded(chunks),
        };
        match &self.touched {
            None => parcel,
            Some(Touched { own, next }) => parcel.of_rows(own, if goes_on { next } else { &[] }),
        }
    }
}

/// Where a gradient is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the thread that talks while gradients are short, else on another one.
    Nearest,
    /// On another thread: this one talks meanwhile.
    Aside,
}

/// What makes gradients of theta, in order of clock.
pub(super) struct Gradients<T> {
    surroundings: Surroundings,
    /// Away while it works on another thread.
    workshop: Option<Workshop<T>>,
    is_full_batch: bool,
    /// The rows that the shard touches, where gradients are over rows.
    of_shard: Option<Arc<[Rows]>>,
    delay: Option<Delay>,
    /// What the latest took, without sleep.
    latest: Duration,
}

/// What goes from thread to thread.
struct Workshop<T> {
    learner: Learner<T>,
    /// None where gradients are sent as they are.
    coder: Option<Coder<T>>,
    /// Memory for the next gradient.
    spare: Shared<T>,
}

impl<T: Real> Gradients<T> {
    pub(super) fn new(
        surroundings: Surroundings,
        learner: Learner<T>,
        coder: Option<Coder<T>>,
        delay: Option<Delay>,
    ) -> Self {
        let (is_full_batch, of_shard) = (learner.is_full_batch(), learner.touched_by_shard());
        let workshop = Some(Workshop { learner, coder, spare: Shared::zeros(0) });
        Self { surroundings, workshop, is_full_batch, of_shard, delay, latest: INLINE_MAX }
    }

    /// The objective is told where it is that of the whole shard: then the server has the history
    /// from it. Where it is not finite the gradient says so in better words.
    pub(super) fn told(&self, value: f64) -> Option<f64> {
        (self.is_full_batch && value.is_finite()).then_some(value)
    }

    /// The rows of theta that the shard touches; `None` where gradients are over all of theta.
    pub(super) fn touched_by_shard(&self) -> Option<Arc<[Rows]>> {
        self.of_shard.clone()
    }

    /// As [`Gradients::touched_by_shard`], those that the gradient of `clock` is over.
    ///
    /// # Errors
    /// A panic on the other thread.
    pub(super) async fn touched(&mut self, clock: u64) -> Result<Option<Arc<[Rows]>>, ExitError> {
        if self.of_shard.is_none() {
            return Ok(None);
        }
        let look = move |workshop: &mut Workshop<T>, _: &[T]| workshop.learner.touched(clock);
        self.aside(&mut Vec::new(), look).await
    }

    /// The gradient of `clock` at `theta`, which is of `version` and is away meanwhile: all of theta, or
    /// the rows that the clock touches. What the codec lost of the gradient that was made before is in
    /// this one.
    ///
    /// # Errors
    /// A panic on the other thread.
    pub(super) async fn make(
        &mut self,
        (clock, version): (u64, u64),
        theta: &mut Vec<T>,
        place: Place,
    ) -> Result<Ready<T>, ExitError> {
        let begun = Instant::now();
        let work = move |workshop: &mut Workshop<T>, theta: &[T]| workshop.make(clock, theta);
        let inline = place == Place::Nearest && self.latest < INLINE_MAX;
        let (loss, content, touched) = match &mut self.workshop {
            Some(workshop) if inline => work(workshop, theta),
            _ => self.aside(theta, work).await?,
        };
        self.latest = begun.elapsed();
        if let Some(Delay { rng, bounds_ms: (min, max) }) = &mut self.delay {
            tokio::time::sleep(Duration::from_millis(rng.random_range(*min..=*max))).await;
        }
        Ok(Ready { clock, version, loss, took: begun.elapsed(), content, touched })
    }

    /// `ready` is answered or of no use: its memory serves for another.
    pub(super) fn recycle(&mut self, ready: Ready<T>) {
        if let (Content::Plain(values), Some(workshop)) = (ready.content, &mut self.workshop) {
            workshop.spare = values;
        }
    }

    /// Loss and accuracy of the whole shard at `theta`.
    ///
    /// # Errors
    /// A panic on the other thread.
    pub(super) async fn metrics(&mut self, theta: &mut Vec<T>) -> Result<Metrics, ExitError> {
        self.aside(theta, |workshop, theta| workshop.learner.metrics(theta)).await
    }

    /// Runs `work` on another thread, which has the workshop and theta meanwhile.
    async fn aside<A: Send + 'static>(
        &mut self,
        theta: &mut Vec<T>,
        work: impl FnOnce(&mut Workshop<T>, &[T]) -> A + Send + 'static,
    ) -> Result<A, ExitError> {
        let mut workshop = self.workshop.take().expect("a computation at a time");
        let borrowed = std::mem::take(theta);
        let work = move || {
            let answer = work(&mut workshop, &borrowed);
            (answer, workshop, borrowed)
        };
        let (answer, workshop, borrowed) = self.surroundings.compute(work).await?;
        (self.workshop, *theta) = (Some(workshop), borrowed);
        Ok(answer)
    }
}

impl<T: Real> Workshop<T> {
    fn make(&mut self, clock: u64, theta: &[T]) -> (Loss, Content<T>, Option<Touched>) {
        let own = self.learner.touched(clock);
        let mut gradient = std::mem::replace(&mut self.spare, Shared::zeros(0));
        if gradient.len() != theta.len() {
            gradient = Shared::zeros(theta.len());
        }
        let loss = self.learner.compute(clock, theta, gradient.renewed());
        let content = match &mut self.coder {
            None => Content::Plain(gradient),
            Some(coder) => {
                let written = coder.write(&gradient);
                self.spare = gradient;
                Content::Written(written)
            }
        };
        // Looked for after the gradient: the learner keeps the latest batch alone.
        let touched = own.and_then(|own| {
            let next = self.learner.touched(clock + 1)?;
            Some(Touched { own, next })
        });
        (loss, content, touched)
    }
}

/// Sleeps between two bounds, the same ones for the same seed.
pub(super) struct Delay {
    rng: ChaCha8Rng,
    bounds_ms: (u64, u64),
}

impl Delay {
    pub(super) fn new(seed: u64, bounds_ms: (u64, u64)) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), bounds_ms }
    }
}

#[cfg(test)]
mod tests {
    use ps_common::codec::{Codec, Feedback};

    use super::super::session_tests::learner;
    use super::*;

    fn written(ready: &Ready<f64>) -> &[Encoded] {
        let Content::Written(chunks) = &ready.content else { panic!("by a codec") };
        chunks
    }

    #[tokio::test]
    async fn a_gradient_on_its_way_stays_as_it_was_written_while_others_are_made() {
        let codec: Codec = "topk,ratio=0.3".parse().expect("a codec");
        let (mut twin, dim) = learner();
        let (mut feedback, mut gradient) = (Feedback::new(codec), vec![0.0; dim]);
        let mut expected = |clock: u64, theta: &[f64]| {
            twin.compute(clock, theta, &mut gradient);
            feedback.encode(&gradient, &[0], 1 << 16)
        };
        let coder = Coder::new(codec, vec![0]);
        let mut gradients = Gradients::new(Surroundings::default(), learner().0, coder, None);
        let mut theta = vec![0.5; dim];
        let first = gradients.make((0, 7), &mut theta, Place::Aside).await.expect("made");
        let second = gradients.make((1, 7), &mut theta, Place::Nearest).await.expect("made");
        assert_eq!((first.clock, first.version, second.clock), (0, 7, 1));
        assert_eq!(written(&first), expected(0, &theta));
        // With what the first one lost.
        assert_eq!(written(&second), expected(1, &theta));
        assert_ne!(written(&first), written(&second));
    }

    #[tokio::test]
    async fn memory_is_used_again_and_never_that_of_a_gradient_on_its_way() {
        let (mut twin, dim) = learner();
        let mut gradients = Gradients::new(Surroundings::default(), learner().0, None, None);
        let mut theta = vec![0.5; dim];
        let mut expected = vec![0.0; dim];
        twin.compute(0, &theta, &mut expected);
        let plain = |ready: &Ready<f64>| match &ready.content {
            Content::Plain(values) => (values.as_ptr(), values.clone()),
            Content::Written(_) => panic!("as it is"),
        };
        let first = gradients.make((0, 0), &mut theta, Place::Nearest).await.expect("made");
        theta.fill(2.0);
        let second = gradients.make((1, 1), &mut theta, Place::Aside).await.expect("made");
        assert_eq!(plain(&first).1, Shared::from(expected));
        assert_ne!(plain(&first).1, plain(&second).1);
        let place = plain(&first).0;
        gradients.recycle(first);
        let third = gradients.make((2, 1), &mut theta, Place::Aside).await.expect("made");
        assert_eq!(plain(&third).0, place);
    }
}
