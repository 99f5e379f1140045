//! `--sparse`: a worker that pulls and pushes only the rows of theta that its batches touch.
//!
//! Owns the flag, and which other flags would have every row touched.

use ps_common::exit::ExitError;
use serde::Serialize;

use crate::args::LearnArgs;
use crate::coding::{Wire, WireArgs};
use crate::overlap::OverlapArgs;

/// Rows of theta in place of all of it, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub struct SparseArgs {
    /// Pull and push only the rows of theta that a batch touches: those of the features that occur in it,
    /// and tables that do not go by features. For sparse data (LibSVM) and one server; not with --l2,
    /// --local-lr, --wire or --overlap
    #[arg(long, env = "PS_SPARSE", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub sparse: bool,
}

impl SparseArgs {
    /// Checks that nothing else touches all of theta or needs all of it; `servers` is the flag that says
    /// how many there are, and how many. Whether the data is sparse only a look at it tells.
    ///
    /// # Errors
    /// Configuration, naming both flags.
    pub fn check(
        &self,
        learn: &LearnArgs,
        wire: &WireArgs,
        overlap: &OverlapArgs,
        (servers, n_servers): (&str, usize),
    ) -> Result<bool, ExitError> {
        if !self.sparse {
            return Ok(false);
        }
        let l2 = learn.model.l2;
        let refusals = [
            (l2 > 0.0, format!("--l2 {l2}"), "the L2 term moves every row of theta"),
            (
                learn.local.local_lr.is_some(),
                format!("--local-steps {} and --local-lr", learn.local.local_steps),
                "steps of a worker by itself go on from all of theta",
            ),
            (
                wire.check()?.push != Wire::PLAIN.push,
                format!("--wire {}", wire.wire),
                "what a codec loses of one batch's rows does not belong to the next one's",
            ),
            (
                overlap.overlap,
                "--overlap".to_owned(),
                "the next gradient needs rows that are still to come with the answer",
            ),
            (
                n_servers > 1,
                format!("{servers} (there are {n_servers})"),
                "rows are not cut among several servers yet",
            ),
        ];
        match refusals.into_iter().find(|(given, ..)| *given) {
            None => Ok(true),
            Some((_, flag, why)) => {
                Err(ExitError::config(format!("--sparse and {flag} exclude each other: {why}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ps_common::exit::Exit;

    use super::*;
    use crate::args::WorkerArgs;

    fn check(arguments: &[&str], n_servers: usize) -> Result<bool, ExitError> {
        let args = WorkerArgs::try_parse_from(["ps-worker"].iter().chain(arguments));
        let WorkerArgs { learn, attach, .. } = args.expect("parses");
        attach.sparse.check(&learn, &attach.wire, &attach.overlap, ("--servers", n_servers))
    }

    #[test]
    fn what_touches_all_of_theta_is_refused_with_both_names() {
        for (arguments, n_servers, says) in [
            (&["--sparse", "--l2=0.5"][..], 1, "--sparse and --l2 0.5 exclude each other"),
            (&["--sparse", "--local-steps=3", "--local-lr=1"], 1, "--local-steps 3 and --local-lr"),
            (&["--sparse", "--local-lr=1"], 1, "--local-lr exclude each other"),
            (&["--sparse", "--wire=int8"], 1, "--sparse and --wire int8 exclude each other"),
            (&["--sparse=true", "--overlap"], 1, "--sparse and --overlap exclude each other"),
            (&["--sparse"], 3, "--sparse and --servers (there are 3) exclude each other"),
        ] {
            let error = check(arguments, n_servers).expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        for arguments in [&["--sparse"][..], &["--sparse", "--wire-pull=f16"]] {
            assert!(check(arguments, 1).expect("fine"));
        }
        let without = ["--l2=0.5", "--local-lr=1", "--wire=int8", "--overlap"];
        assert!(!check(&without, 3).expect("not sparse"));
    }
}
