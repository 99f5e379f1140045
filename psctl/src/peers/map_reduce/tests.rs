//! Map-reduce against the golden losses of a synchronous run.
