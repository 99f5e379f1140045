//! psctl's entry.

fn main() {}
