// Included by the build scripts of ps-server and ps-worker: the version with a build id.
//
// `psctl` links both libraries and starts the binaries beside it only where these report the same
// version: a binary left over from older sources is never run.

/// Sets `PS_VERSION`, such as `0.1.0 (build 1a2b3c4d5e6f7a8b)`: the package's version and a hash
/// of the profile and of all files under `sources` (paths from the workspace's root).
fn emit_version(sources: &[&str]) {
    use std::hash::{Hash, Hasher};

    let variable = |name: &str| std::env::var(name).expect("cargo sets it for build scripts");
    let root = std::path::Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo:rerun-if-changed={}", root.join("build-id.rs").display());
    let mut files = Vec::new();
    for source in sources {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
        collect_files(&root, std::path::Path::new(source), &mut files);
    }
    files.sort();
    let mut hasher = std::hash::DefaultHasher::new();
    variable("PROFILE").hash(&mut hasher);
    for file in files {
        let content = std::fs::read(root.join(&file))
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
        file.to_string_lossy().replace('\\', "/").hash(&mut hasher);
        content.hash(&mut hasher);
    }
    let (version, id) = (variable("CARGO_PKG_VERSION"), hasher.finish());
    println!("cargo:rustc-env=PS_VERSION={version} (build {id:016x})");
}

fn collect_files(
    root: &std::path::Path,
    path: &std::path::Path,
    files: &mut Vec<std::path::PathBuf>,
) {
    let whole = root.join(path);
    if !whole.is_dir() {
        files.push(path.to_owned());
        return;
    }
    let entries = std::fs::read_dir(&whole)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", whole.display()));
    for entry in entries {
        let name = entry.expect("a directory that can be listed can be read").file_name();
        collect_files(root, &path.join(name), files);
    }
}
