//! Generates the wire's types from `proto/` (no protoc needed) and the descriptor set for
//! reflection.

#[cfg(not(feature = "net"))]
fn main() {}

#[cfg(feature = "net")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use protox::prost::Message;

    let root = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files =
        ["membership", "parameters", "operator", "partition"].map(|f| format!("ps/v1/{f}.proto"));
    let descriptors = protox::compile(files, [&root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("ps_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
