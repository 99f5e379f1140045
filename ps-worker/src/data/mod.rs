//! Files to samples.
