//! Real child processes: started, listened to, ended. Decides nothing about the run.
//!
//! A child's stdin is a pipe that psctl holds and never writes to. Children end when it closes, and
//! the kernel closes it when psctl ends in whatever way, so nothing outlives psctl.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ps_common::cluster::TF_CONFIG;
use ps_common::exit::{Exit, ExitError};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::plan::Who;
use super::programs::Program;

/// Lines of a child's stderr that are kept for the case that it fails: a panic with its backtrace.
const TAIL_LINES: usize = 200;

/// A child that is asked to end has this long before it is killed.
const END_PATIENCE: Duration = Duration::from_millis(300);

/// The end of a child's stderr is there at once, unless somebody else holds the pipe.
const TAIL_PATIENCE: Duration = Duration::from_millis(200);

/// A child that is no more.
#[derive(Debug)]
pub(super) struct Ended {
    /// Which.
    pub(super) who: Who,
    /// How it ended; `None` where the system could not tell.
    pub(super) status: Option<ExitStatus>,
    /// Its last lines on stderr.
    pub(super) tail: Vec<String>,
}

/// The children of one run. Dropping them kills them.
#[derive(Debug)]
pub(super) struct Processes {
    tasks: JoinSet<Ended>,
    end: watch::Sender<bool>,
    lines: Option<mpsc::UnboundedSender<(Who, String)>>,
}

impl Processes {
    /// No children yet. Each line of a child's stderr is sent to `lines`, where somebody listens.
    pub(super) fn new(lines: Option<mpsc::UnboundedSender<(Who, String)>>) -> Self {
        Self { tasks: JoinSet::new(), end: watch::Sender::new(false), lines }
    }

    /// Starts a child.
    ///
    /// # Errors
    /// I/O, with the system's reason.
    pub(super) fn start(
        &mut self,
        who: Who,
        program: &Program,
        arguments: &[OsString],
    ) -> Result<(), ExitError> {
        let mut command = program.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // All that it needs stands on its command line; psctl's own PS_REPORT, say, is not for it.
        for (name, _) in std::env::vars_os() {
            let is_ours = |n: &str| n.starts_with("PS_") && n != "PS_LOG" || n == TF_CONFIG;
            if name.to_str().is_some_and(is_ours) {
                command.env_remove(name);
            }
        }
        // A Ctrl-C in the terminal is for psctl alone, which then ends the children in order.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.kill_on_drop(true).spawn().map_err(|e| {
            ExitError::new(Exit::Io, format!("cannot start the process of {who}")).because(e)
        })?;
        let stdin = child.stdin.take();
        let stderr = child.stderr.take().expect("piped above");
        let mut tail = JoinSet::new();
        tail.spawn(tail_of(stderr, who, self.lines.clone()));
        self.tasks.spawn(watch_over(who, child, stdin, tail, self.end.subscribe()));
        Ok(())
    }

    /// Waits for the next child to end; `None` if there is none.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        match self.tasks.join_next().await? {
            Ok(ended) => Some(ended),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Ends all children and waits for them.
    pub(super) async fn end(mut self) {
        self.end.send_replace(true);
        while self.next().await.is_some() {}
    }
}

async fn watch_over(
    who: Who,
    mut child: Child,
    stdin: Option<ChildStdin>,
    mut tail: JoinSet<Vec<String>>,
    mut end: watch::Receiver<bool>,
) -> Ended {
    let status = tokio::select! {
        status = child.wait() => status,
        () = asked(&mut end) => {
            drop(stdin);
            match timeout(END_PATIENCE, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    // It may have ended in between, which is what is wanted.
                    let _ = child.start_kill();
                    child.wait().await
                }
            }
        }
    };
    let tail = timeout(TAIL_PATIENCE, tail.join_next()).await.ok().flatten();
    Ended { who, status: status.ok(), tail: tail.and_then(Result::ok).unwrap_or_default() }
}

/// An error means that nobody can ask any more, which asks for the same.
async fn asked(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}

/// Reads lines to the end of the stream, passes them on and keeps the last ones.
async fn tail_of(
    stream: impl AsyncRead + Unpin,
    who: Who,
    lines: Option<mpsc::UnboundedSender<(Who, String)>>,
) -> Vec<String> {
    let mut stream = BufReader::new(stream);
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut bytes = Vec::new();
    while stream.read_until(b'\n', &mut bytes).await.is_ok_and(|n| n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        if let Some(lines) = &lines {
            // Nobody listens any more at the very end of a run.
            let _ = lines.send((who, line.clone()));
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    tail.into()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::local::programs::Program;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Instant;

    fn start(processes: &mut Processes, who: Who, script: &str) {
        let arguments = ["-c".into(), script.into()];
        processes.start(who, &Program::at("/bin/sh"), &arguments).expect("started");
    }

    #[tokio::test]
    async fn a_failing_child_leaves_its_code_and_its_last_lines() {
        let (send, mut lines) = mpsc::unbounded_channel();
        let mut processes = Processes::new(Some(send));
        start(&mut processes, Who::Worker(2), "seq 1 300 >&2; exit 65");
        let ended = processes.next().await.expect("one child");
        assert_eq!((ended.who, ended.status.and_then(|s| s.code())), (Who::Worker(2), Some(65)));
        assert_eq!(ended.tail.len(), TAIL_LINES);
        assert_eq!(ended.tail.last().map(String::as_str), Some("300"));
        assert_eq!(lines.recv().await, Some((Who::Worker(2), "1".to_owned())));
        assert!(processes.next().await.is_none());
    }

    #[tokio::test]
    async fn children_end_with_their_stdin_or_are_killed() {
        let begun = Instant::now();
        let mut processes = Processes::new(None);
        start(&mut processes, Who::Server, "read line; exit 0");
        start(&mut processes, Who::Worker(0), "exec sleep 60");
        processes.end.send_replace(true);
        let mut ended = [processes.next().await, processes.next().await].map(|e| e.expect("child"));
        ended.sort_by_key(|e| e.who);
        let status = |i: usize| ended[i].status.expect("known");
        assert_eq!(status(0).code(), Some(0), "the end of stdin was seen");
        assert_eq!(status(1).signal(), Some(9), "what does not listen is killed");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
