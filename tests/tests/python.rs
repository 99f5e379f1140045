//! A client that is not ours: Python's grpcio at its default settings, with stubs generated from
//! `proto/` alone, at 25 million elements.

use std::path::PathBuf;
use std::process::Command;

use ps_tests::{Process, project_root};

/// A Python with what `requirements.txt` names, kept under `target/`; the reason if it is not to
/// be had.
fn python() -> Result<PathBuf, String> {
    let requirements = project_root().join("tests/python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).expect("part of the repository");
    let folder = project_root().join("target/python");
    let (python, installed) = (folder.join("bin/python"), folder.join("installed.txt"));
    if python.exists() && std::fs::read_to_string(&installed).is_ok_and(|is| is == wanted) {
        return Ok(python);
    }
    let folder_text = folder.to_string_lossy().into_owned();
    run("python3", &["-m", "venv", "--clear", &folder_text])?;
    let requirements = requirements.to_string_lossy().into_owned();
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(&python.to_string_lossy(), &[&pip[..], &[&requirements]].concat())?;
    std::fs::write(&installed, wanted).map_err(|e| format!("{}: {e}", installed.display()))?;
    Ok(python)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| format!("{program} does not start: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&text)))
}

#[test]
fn grpcio_joins_pulls_and_pushes_25_million_elements() {
    let python = match python() {
        Ok(python) => python,
        // Where everything is to be tested, that is a failure.
        Err(reason) if std::env::var_os("CI").is_some() => panic!("no Python client: {reason}"),
        Err(reason) => return println!("skipped: no Python client: {reason}"),
    };
    let job = ["--workers=1", "--mode=async", "--lr=0.5", "--dtype=f32", "--rounds=0"];
    let (_server, address) = Process::server(&job);
    let mut command = Command::new(python);
    command.arg(script()).arg(&address);
    let output = Process::spawn("test_wire.py", command).expect_exit(0);
    println!("{output}");
}

fn script() -> PathBuf {
    project_root().join("tests/python/test_wire.py")
}
