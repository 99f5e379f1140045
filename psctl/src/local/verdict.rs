//! What the end of a child means for the run. Pure: facts in, a verdict out.

use std::error::Error;
use std::fmt;
use std::process::ExitStatus;

use ps_common::exit::{Exit, ExitError};
use ps_common::job::JobState;

use super::plan::Who;

/// What follows from the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be, or the server will say more.
    GoOn,
    /// It died without a fault of its own; another one may do better.
    Restart,
    /// The run has failed with this code.
    Fail(Exit),
}

/// Judges the end of a worker or evaluator with exit code `code` (`None`: a signal), given the
/// job's state, where the server said it, and how many restarts are left.
pub(super) fn judge(code: Option<i32>, job: Option<JobState>, restarts_left: u32) -> Verdict {
    match code {
        Some(0) => return Verdict::GoOn,
        Some(code @ (2 | 65 | 78)) => return Verdict::Fail(exit_of(Some(code))),
        _ => {}
    }
    match job {
        Some(JobState::Done | JobState::Failed) => Verdict::GoOn,
        _ if restarts_left > 0 => Verdict::Restart,
        _ => Verdict::Fail(Exit::Failed),
    }
}

/// Judges the end of the server with exit code `code` (`None`: a signal). Without checkpoints
/// (`is_kept`) another one would have to begin anew, which nobody asked for.
pub(super) fn judge_server(code: Option<i32>, is_kept: bool, restarts_left: u32) -> Verdict {
    match code {
        Some(0) => Verdict::GoOn,
        None if is_kept && restarts_left > 0 => Verdict::Restart,
        code => Verdict::Fail(exit_of(code)),
    }
}

/// Judges the end of a server other than the first, who decides and says more if the job is over.
pub(super) fn judge_follower(
    code: Option<i32>,
    job: Option<JobState>,
    is_kept: bool,
    restarts_left: u32,
) -> Verdict {
    match job {
        Some(JobState::Done | JobState::Failed) => Verdict::GoOn,
        _ => judge_server(code, is_kept, restarts_left),
    }
}

/// The code that psctl ends with when this child's end is the cause.
pub(super) fn exit_of(code: Option<i32>) -> Exit {
    const KNOWN: [Exit; 8] = [
        Exit::Usage,
        Exit::BadData,
        Exit::Unavailable,
        Exit::Bug,
        Exit::CannotCreate,
        Exit::Io,
        Exit::TryLater,
        Exit::Config,
    ];
    KNOWN.into_iter().find(|exit| code == Some(*exit as i32)).unwrap_or(Exit::Failed)
}

/// How a child ended, in words.
pub(super) fn describe(status: Option<ExitStatus>) -> String {
    #[cfg(unix)]
    if let Some(signal) = status.and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s)) {
        return format!("was ended by signal {signal}");
    }
    match status.and_then(|s| s.code()) {
        Some(code) => format!("ended with exit code {code}"),
        None => "ended in an unknown way".to_owned(),
    }
}

/// The error that ends psctl because `who` ended so, and the lines of `tail` that are worth showing
/// beside it. A child's own last word (`ps-worker: what happened`, then causes) becomes the message.
pub(super) fn failure(
    exit: Exit,
    who: Who,
    status: Option<ExitStatus>,
    tail: &[String],
) -> (ExitError, Vec<String>) {
    let Some((at, word)) = last_word(tail) else {
        return (ExitError::new(exit, format!("{who} {}", describe(status))), telling(tail));
    };
    let causes: Vec<&str> =
        tail[at + 1..].iter().map_while(|line| line.strip_prefix("  caused by: ")).collect();
    let mut said = ExitError::new(exit, format!("{who}: {word}"));
    if let Some(chain) = Cause::chain(&causes) {
        said = said.because(chain);
    }
    (said, telling(&tail[..at]))
}

/// The first panic with its message, else the last lines.
fn telling(tail: &[String]) -> Vec<String> {
    const LINES_MAX: usize = 10;
    const PANIC_LINES_MAX: usize = 4;
    let is_panic = |line: &String| line.starts_with("thread '") && line.contains(" panicked at ");
    match tail.iter().position(is_panic) {
        Some(at) => {
            let panic = tail[at..].iter().take(PANIC_LINES_MAX);
            panic.take_while(|line| !line.starts_with("stack backtrace")).cloned().collect()
        }
        None => tail[tail.len().saturating_sub(LINES_MAX)..].to_vec(),
    }
}

/// Where `exit::conclude` of a role spoke, and what it said.
fn last_word(tail: &[String]) -> Option<(usize, &str)> {
    tail.iter().enumerate().rev().find_map(|(at, line)| {
        let line = line.strip_prefix("psctl ").unwrap_or(line);
        let word = ["ps-server: ", "ps-worker: "].iter().find_map(|p| line.strip_prefix(p))?;
        Some((at, word))
    })
}

/// A cause that a child told, with the one behind it.
#[derive(Debug)]
struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    fn chain(causes: &[&str]) -> Option<Box<Self>> {
        causes
            .iter()
            .rev()
            .fold(None, |source, text| Some(Box::new(Self { text: (*text).to_owned(), source })))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_death_without_fault_is_worth_another_try() {
        use JobState::{Done, Failed, Finishing, Running};
        for (code, job, left, expected) in [
            (Some(0), Some(Running), 0, Verdict::GoOn),
            (None, Some(Running), 1, Verdict::Restart),
            (None, None, 1, Verdict::Restart),
            (Some(1), Some(Running), 1, Verdict::Restart),
            (Some(69), Some(Finishing), 3, Verdict::Restart),
            (Some(1), Some(Failed), 3, Verdict::GoOn),
            (None, Some(Done), 0, Verdict::GoOn),
            (None, Some(Running), 0, Verdict::Fail(Exit::Failed)),
            (Some(65), Some(Running), 3, Verdict::Fail(Exit::BadData)),
            (Some(78), Some(Failed), 3, Verdict::Fail(Exit::Config)),
            (Some(2), None, 3, Verdict::Fail(Exit::Usage)),
        ] {
            assert_eq!(judge(code, job, left), expected, "{code:?} {job:?} {left}");
        }
    }

    #[test]
    fn a_server_that_was_killed_is_worth_another_try_where_it_can_go_on() {
        for (code, is_kept, left, expected) in [
            (Some(0), true, 3, Verdict::GoOn),
            (None, true, 1, Verdict::Restart),
            (None, true, 0, Verdict::Fail(Exit::Failed)),
            (None, false, 3, Verdict::Fail(Exit::Failed)),
            (Some(1), true, 3, Verdict::Fail(Exit::Failed)),
            (Some(74), true, 3, Verdict::Fail(Exit::Io)),
        ] {
            assert_eq!(judge_server(code, is_kept, left), expected, "{code:?} {is_kept} {left}");
        }
    }

    #[test]
    fn the_first_server_says_why_a_job_has_failed() {
        use JobState::{Done, Failed, Running};
        for (code, job, is_kept, expected) in [
            (Some(0), None, false, Verdict::GoOn),
            (Some(1), Some(Failed), true, Verdict::GoOn),
            (None, Some(Done), false, Verdict::GoOn),
            (None, Some(Running), true, Verdict::Restart),
            (None, None, true, Verdict::Restart),
            (None, Some(Running), false, Verdict::Fail(Exit::Failed)),
            (Some(74), Some(Running), true, Verdict::Fail(Exit::Io)),
        ] {
            assert_eq!(judge_follower(code, job, is_kept, 1), expected, "{code:?} {job:?}");
        }
    }

    #[test]
    fn a_servers_code_is_kept_where_it_has_a_meaning() {
        assert_eq!(exit_of(Some(73)), Exit::CannotCreate);
        for other in [None, Some(1), Some(101), Some(143)] {
            assert_eq!(exit_of(other), Exit::Failed, "{other:?}");
        }
    }

    #[test]
    fn a_childs_last_word_becomes_the_message() {
        let tail = [
            "WARN slow",
            "ps-worker: data.csv:3: column 2: expected a number, found `x`",
            "  caused by: invalid float literal",
            "  caused by: nothing else",
        ]
        .map(str::to_owned);
        let (error, rest) = failure(Exit::BadData, Who::Worker(2), None, &tail);
        assert_eq!(error.message, "worker 2: data.csv:3: column 2: expected a number, found `x`");
        let first = Error::source(&error).expect("a cause");
        assert_eq!(first.to_string(), "invalid float literal");
        assert_eq!(first.source().expect("another").to_string(), "nothing else");
        assert_eq!((error.exit, rest), (Exit::BadData, vec!["WARN slow".to_owned()]));

        let panic =
            ["a", "thread 'x' (7) panicked at src/a.rs:1:2:", "why", "stack backtrace:", "0"]
                .map(str::to_owned);
        let (error, rest) = failure(Exit::Failed, Who::Server(0), None, &panic);
        assert_eq!(error.message, "server ended in an unknown way");
        assert_eq!(rest, panic[1..3]);
    }
}
