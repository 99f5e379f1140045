//! What keeps others out, loaded once at the start: TLS, tokens, limits.

use std::fmt;
use std::sync::Arc;

use ps_common::exit::ExitError;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::entrance::Entrance;
use super::gate::{Keys, Rules};
use super::turnaways::Turnaways;
use super::{gate, tls};
use crate::security::{Limits, Security};

/// TLS, tokens, limits.
#[derive(Clone)]
pub struct Protection {
    tls: Option<TlsAcceptor>,
    keys: Option<Keys>,
    limits: Limits,
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protection")
            .field("tls", &self.tls.is_some())
            .field("tokens", &self.keys.is_some())
            .field("limits", &self.limits)
            .finish()
    }
}

impl Protection {
    /// Reads all files that `security` names.
    ///
    /// # Errors
    /// I/O or configuration, naming flag and file.
    pub fn load(security: &Security, limits: Limits) -> Result<Self, ExitError> {
        let tls = security.tls.as_ref().map(tls::acceptor).transpose()?;
        let keys = security.tokens.as_ref().map(gate::Keys::read).transpose()?;
        Ok(Self { tls, keys, limits })
    }

    /// On what one connection may do.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How connections come in.
    pub(super) fn entrance(&self, turnaways: Arc<Turnaways>) -> Entrance {
        Entrance { tls: self.tls.clone(), limit: self.limits.handshake, turnaways }
    }

    /// What stands before every call.
    pub(super) fn rules(&self, turnaways: Arc<Turnaways>) -> Rules {
        let calls = Arc::new(Semaphore::new(self.limits.calls_max().min(Semaphore::MAX_PERMITS)));
        Rules { keys: self.keys, calls, stall: self.limits.stall, turnaways }
    }
}
