//! `--overlap`: a worker that computes while its push is on its way (rule A8).
//!
//! Owns the flag. What becomes of it in which mode is the server's word.

use serde::Serialize;

/// Computing ahead, as typed.
#[derive(clap::Args, Serialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub struct OverlapArgs {
    /// Compute the next gradient while a push and its answer are on their way, at the theta that is
    /// there: one answer older than without. Not in sync mode, nor with a staleness bound of 0,
    /// delays that are held back, or dc-asgd
    #[arg(long, env = "PS_OVERLAP", value_name = "BOOL", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub overlap: bool,
}
