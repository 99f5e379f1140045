//! Gives the server its version with a build id.

include!("../build-id.rs");

fn main() {
    emit_version(&["ps-server/src", "ps-common/src", "proto", "Cargo.lock"]);
}
