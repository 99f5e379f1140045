//! What `psctl` is made of: one module per subcommand that has more to it than a call.

pub mod bench;
