//! The wire as a stranger uses it: a stock Python client, the scripts of `tests/python`, against a
//! real server. Knows how to come by an interpreter with the client's packages, not what they check.
//!
//! The packages go into a virtual environment below the target folder, and stay there for the next
//! run. Where they are not to be had the test says why on stderr and skips; with `CI=true` it fails.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ps_tests::{Process, project_root};

#[test]
fn a_stock_python_client_speaks_the_wire() {
    let Some(python) = python() else { return };
    let (mut server, address) = Process::server(&[
        "--workers",
        "1",
        "--mode",
        "async",
        "--lr",
        "0.5",
        "--dtype",
        "f32",
        "--rounds",
        "0",
    ]);
    run_script(&python, "test_wire.py", &[&address]);
    assert!(server.is_running(), "the server ended: {server:?}");
}

#[test]
fn a_stock_python_client_comes_in_with_certificate_and_token() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certs = folder.path().join("certs").to_string_lossy().into_owned();
    Process::start("psctl", &["certs", "--out", &certs, "--host=localhost"]).expect_exit(0);
    let flags = [
        ("--tls-cert", "server.pem"),
        ("--tls-key", "server-key.pem"),
        ("--tls-client-ca", "ca.pem"),
        ("--worker-token-file", "worker.token"),
        ("--operator-token-file", "operator.token"),
    ]
    .map(|(flag, file)| format!("{flag}={certs}/{file}"));
    let (mut server, address) = Process::server(&flags.each_ref().map(String::as_str));
    run_script(&python, "test_tls.py", &[&address, &certs]);
    assert!(server.is_running(), "the server ended: {server:?}");
}

/// Runs a script of `tests/python` to a good end.
fn run_script(python: &Path, script: &str, arguments: &[&str]) {
    let mut client = Command::new(python);
    // -B: no byte code beside the project's own files.
    client.arg("-B").arg(project_root().join("tests/python").join(script)).args(arguments);
    Process::spawn(script, client).expect_exit(0);
}

/// An interpreter with the client's packages; made once, by whichever test asks first.
fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let requirements = project_root().join("tests/python/requirements.txt");
    match PYTHON.get_or_init(|| interpreter(&requirements)) {
        Ok(python) => Some(python.clone()),
        Err(reason) => {
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI=true, but {reason}");
            // Past the capture of a passing test's output: a skip should be seen.
            let _ = writeln!(std::io::stderr(), "skipped: the Python client: {reason}");
            None
        }
    }
}

/// An interpreter with everything in `requirements`, or why there is none.
fn interpreter(requirements: &Path) -> Result<PathBuf, String> {
    let wanted = std::fs::read_to_string(requirements).expect("requirements.txt is readable");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = folder.join("bin/python");
    // Written last: a half-made environment has none.
    let made = folder.join("requirements.txt");
    if std::fs::read_to_string(&made).is_ok_and(|has| has == wanted)
        && run(Command::new(&python).args(["-c", "import grpc, numpy"])).is_ok()
    {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    // Nothing is compiled, nothing is kept in the user's cache, and no index is waited for long.
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--only-binary=:all:", "--no-cache-dir", "--retries=1", "--timeout=15"])
        .arg("--requirement")
        .arg(requirements))?;
    std::fs::write(&made, wanted).expect("the target folder is writable");
    Ok(python)
}

/// Runs `command` to its end; if it fails, the error is what it printed.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{command:?} does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&printed).trim_end()))
}
