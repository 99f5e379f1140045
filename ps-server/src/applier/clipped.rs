//! An update of a part of theta whose gradients are clipped by a norm of all of it: its squares are told
//! first, then it is computed.

use std::sync::Arc;

use ps_common::job::Combine;
use ps_common::partition::Squares;

use super::{Applier, Pending, Way, overflow};
use crate::core::{Order, Unapplied};
use crate::table::{Compensation, Held, Misfit, Snapshot, Update, clips};

/// An update that waits to hear how its gradients are clipped. Dropped, it leaves no trace.
#[derive(Debug)]
pub struct Measured {
    gradients: Held,
    combine: Combine,
    rate_factor: f64,
    /// theta that the gradient is corrected by: its worker may be given another one meanwhile.
    pulled: Option<(f64, Arc<Snapshot>)>,
    squares: Vec<Squares>,
}

impl Measured {
    /// Of each step's gradient, in order.
    pub fn squares(&self) -> &[Squares] {
        &self.squares
    }

    fn update(&self) -> Update<'_> {
        let Self { gradients, combine, rate_factor, pulled, .. } = self;
        let corrected =
            pulled.as_ref().map(|(lambda, pulled)| Compensation { lambda: *lambda, pulled });
        let (parts, combine, rate_factor) = (&gradients[..], *combine, *rate_factor);
        Update { parts, combine, rate_factor, compensation: corrected }
    }
}

impl Applier {
    /// Sums the squares of an update's gradients, which are let go.
    ///
    /// # Errors
    /// The first key where a step's gradient would overflow.
    ///
    /// # Panics
    /// As [`Applier::prepare`].
    pub fn measure(&self, order: &Order) -> Result<Measured, Unapplied> {
        let mut measured = Measured {
            gradients: self.take(order),
            combine: order.combine,
            rate_factor: order.rate_factor,
            pulled: order.compensation.and_then(|wanted| self.kept(wanted)),
            squares: Vec::new(),
        };
        let squares = self.with_store(|store| store.squares(&measured.update()));
        measured.squares = squares.map_err(overflow)?;
        Ok(measured)
    }

    /// How the gradients of an update are clipped, out of this server's squares, which is the first, and
    /// the others'.
    ///
    /// # Errors
    /// The server whose squares cannot be of its part.
    ///
    /// # Panics
    /// If gradients are not clipped by their norm.
    pub fn clips(
        &self,
        own: &Measured,
        others: &[Vec<Squares>],
    ) -> Result<Vec<Option<f64>>, Misfit> {
        let norm_max = self.optimizer.clip_norm.expect("only then is it asked");
        let grid = self.with_store(|store| store.grid());
        let others = others.iter().map(|squares| &squares[..]);
        let parts: Vec<&[Squares]> = std::iter::once(own.squares()).chain(others).collect();
        clips(grid, &parts, norm_max)
    }

    /// As [`Applier::prepare`], of an update that is measured; theta has not moved since.
    ///
    /// # Errors
    /// As [`Applier::prepare`].
    pub fn prepare_clipped(
        &self,
        measured: &Measured,
        clips: &[Option<f64>],
    ) -> Result<Pending, Unapplied> {
        let prepared = self.with_store(|store| store.prepare_clipped(&measured.update(), clips));
        prepared.map(|prepared| Pending(Way::Computed(prepared))).map_err(overflow)
    }
}
