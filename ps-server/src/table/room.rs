//! Whether there is memory for what comes: asked before anything is taken in, because running out
//! of it later would end the process.

use std::hint::black_box;
use std::time::Duration;

use ps_common::{Error, ErrorCode};

/// When to ask again: another gradient may have been applied by then.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Asks the system for `n_bytes` in one piece and gives them back untouched.
///
/// It sees the limits of the process and of the system's address space, not those of a container,
/// which are enforced when memory is touched.
///
/// # Errors
/// OVERLOADED, if they are not to be had for `what`.
pub(crate) fn check_room(what: &str, n_bytes: u64) -> Result<(), Error> {
    let mut room = Vec::<u8>::new();
    let reserved = usize::try_from(n_bytes).is_ok_and(|n| room.try_reserve_exact(n).is_ok());
    // Seen by somebody, or the compiler would leave both out.
    black_box(&room);
    if reserved { Ok(()) } else { Err(no_room(what, n_bytes)) }
}

/// The refusal of `what`.
pub(super) fn no_room(what: &str, n_bytes: u64) -> Error {
    Error::new(
        ErrorCode::Overloaded,
        format!("this server has no {n_bytes} bytes of memory for {what}; give it more, or train a smaller model"),
    )
    .with("bytes", n_bytes)
    .retry_after(RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        check_room("a little", 1 << 10).expect("there is");
        for n_bytes in [1 << 60, u64::MAX] {
            let error = check_room("theta", n_bytes).expect_err("there is not");
            assert_eq!(error.code, ErrorCode::Overloaded);
            assert!(error.retry_after.is_some() && error.message.contains("theta"), "{error}");
        }
    }
}
