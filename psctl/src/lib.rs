//! What a person types: the parts of psctl that are more than its `main`.

pub mod show;
