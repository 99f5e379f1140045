//! Which theta a member has in its memory, so that it is not sent again.

use ps_common::Element;
use ps_common::calls::{Caller, Form, PullHeader, PullRequest};
use ps_common::codec::Encoding;
use ps_common::wire::status::Failure;

use super::client::Client;

/// What is known of the theta in a buffer.
///
/// A version is the name of one theta for one incarnation only: a server that was started again may
/// come to the same number with other bits, and refuses or renames everybody first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held(Option<(Caller, u64, Encoding)>);

impl Held {
    /// The buffer has all of this version, as `caller` was given it in `encoding`.
    pub(super) fn whole(caller: Caller, version: u64, encoding: Encoding) -> Self {
        Self(Some((caller, version, encoding)))
    }

    /// The version in the buffer, where it is this caller's and in this encoding.
    fn version(self, caller: Caller, encoding: Encoding) -> Option<u64> {
        let (by, version, written) = self.0?;
        (by == caller && written == encoding).then_some(version)
    }

    /// Fills `theta`, the buffer that this is about, or leaves it where the theta to be had is the one
    /// that it has.
    ///
    /// # Errors
    /// As [`Client::pull`]; nothing is known of the buffer then.
    pub(super) async fn pull<T: Element>(
        &mut self,
        client: &Client,
        request: PullRequest,
        encoding: Encoding,
        theta: &mut [T],
    ) -> Result<PullHeader, Failure> {
        let version_have = std::mem::take(self).version(request.caller, encoding);
        let header = client.pull_in(Form { encoding, version_have }, request, theta).await?;
        *self = Self::whole(request.caller, header.version, encoding);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_to_the_server_that_gave_it_and_in_its_encoding() {
        let (caller, again) =
            (Caller { rank: 1, incarnation: 5 }, Caller { rank: 1, incarnation: 6 });
        let held = Held::whole(caller, 7, Encoding::F16);
        assert_eq!(held.version(caller, Encoding::F16), Some(7));
        assert_eq!(held.version(caller, Encoding::Plain), None);
        assert_eq!(held.version(again, Encoding::F16), None);
        assert_eq!(Held::default().version(caller, Encoding::F16), None);
    }
}
