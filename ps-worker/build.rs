//! Gives the worker's version its build id.

include!("../build-id.rs");

fn main() {
    emit_version(&["ps-worker/src", "ps-common/src", "proto", "Cargo.lock"]);
}
