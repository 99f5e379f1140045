//! Every exit code that this version has, from the program that a user would run.

use ps_tests::{NOBODY, Process, free_port, theta_sha256, wait_until};

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.to_string_lossy().into_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn code_0_done_and_1_failed() {
    Process::start("psctl", &["local", "--quiet", "--rounds=3"]).expect_exit(0);
    // The rate is far too high: the loss overflows.
    let output = Process::start("psctl", &["local", "--quiet", "--lr=1e30"]).expect_exit(1);
    assert!(output.contains("--lr"), "{output}");
    let lines = output.lines().filter(|line| line.starts_with("psctl: ")).count();
    assert_eq!(lines, 1, "the reason in one line: {output}");
}

#[test]
fn code_2_usage() {
    for (program, arguments) in [
        ("psctl", &["local", "--no-such-flag"][..]),
        ("psctl", &["no-such-command"]),
        ("ps-server", &["--workers=none"]),
        ("ps-worker", &["--rank=-1"]),
    ] {
        Process::start(program, arguments).expect_exit(2);
    }
}

#[test]
fn code_65_bad_data_names_file_line_and_column() {
    let folder = folder();
    let bad = file(&folder, "bad.csv", "1,2,3\n4,5,6\n7,oops,9\n");
    let output = Process::start("psctl", &["local", "--quiet", "--data", &bad]).expect_exit(65);
    assert!(output.contains(&format!("{bad}:3")) && output.contains("oops"), "{output}");
    let missing = folder.path().join("missing.csv").to_string_lossy().into_owned();
    let output = Process::start("psctl", &["local", "--quiet", "--data", &missing]).expect_exit(65);
    assert!(output.contains(&missing), "{output}");
}

#[test]
fn code_69_no_server_and_no_port() {
    let url = format!("http://{NOBODY}");
    let arguments = ["--server", &url, "--connect-timeout=300ms"];
    let output = Process::start("ps-worker", &arguments).expect_exit(69);
    assert!(output.contains(&url), "{output}");
    Process::start("psctl", &["health", "--server", &url, "--timeout=300ms"]).expect_exit(69);
    Process::start("psctl", &["status", "--server", &url]).expect_exit(69);
}

#[test]
fn code_73_an_output_cannot_be_created() {
    let folder = folder();
    for flag in ["--report", "--theta-out", "--plot"] {
        let path = folder.path().join("missing/out.npy");
        let path = path.with_extension(if flag == "--plot" { "svg" } else { "npy" });
        let path = path.to_string_lossy().into_owned();
        let output = Process::start("psctl", &["local", "--quiet", flag, &path]).expect_exit(73);
        assert!(output.contains(&path), "{flag}: {output}");
    }
}

#[test]
fn code_74_a_configuration_file_cannot_be_read() {
    let output = Process::start("ps-server", &["--config=/no/such/file.toml"]).expect_exit(74);
    assert!(output.contains("/no/such/file.toml"), "{output}");
}

#[test]
fn code_78_what_contradicts_itself_or_the_job() {
    let folder = folder();
    let unknown = file(&folder, "unknown.toml", "wrokers = 3\n");
    for (program, arguments, says) in [
        ("psctl", vec!["local", "--mode=async", "--aggregate=mean"], "--aggregate"),
        ("psctl", vec!["local", "--optimizer=lion"], "--optimizer"),
        ("psctl", vec!["local", "--mode=hogwild", "--optimizer=adam"], "--optimizer adam"),
        ("psctl", vec!["local", "--servers=2", "--mode=hogwild"], "--servers 2"),
        ("psctl", vec!["local", "--model=mlp"], "--model"),
        ("psctl", vec!["local", "--theta-out=theta.txt"], "theta.txt"),
        ("psctl", vec!["local", "--config", &unknown], "wrokers"),
        ("ps-server", vec!["--listen=0.0.0.0:0"], "--insecure"),
        ("ps-server", vec!["--lr=-1"], "--lr"),
        ("ps-worker", vec!["--test-data=x.csv"], "--evaluate"),
    ] {
        let output = Process::start(program, &arguments).expect_exit(78);
        assert!(output.contains(says), "{program} {arguments:?}: {output}");
    }
    let (_server, address) = Process::server(&["--workers=2"]);
    let url = format!("http://{address}");
    let _first = Process::start("ps-worker", &["--server", &url]);
    wait_until("the first worker", || {
        let (code, output) =
            Process::start("psctl", &["status", "--server", &url, "--json"]).wait();
        (code == Some(0) && output.contains("\"live\"")).then_some(())
    });
    for (flag, both) in [("--l2=0.5", ["`0`", "`0.5`"]), ("--seed=7", ["`0`", "`7`"])] {
        let output = Process::start("ps-worker", &["--server", &url, flag]).expect_exit(78);
        assert!(both.iter().all(|value| output.contains(value)), "{output}");
    }
    let output = Process::start("ps-worker", &["--server", &url, "--workers=3"]).expect_exit(78);
    assert!(output.contains('3') && output.contains('2'), "{output}");
    let output = Process::start("ps-worker", &["--server", &url, "--overlap"]).expect_exit(78);
    assert!(output.contains("--overlap with --mode sync"), "{output}");
}

/// Processes whose parent is `parent`, by /proc.
fn children_of(parent: u32) -> Vec<u32> {
    let folders = std::fs::read_dir("/proc").expect("/proc");
    let ids = folders.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parent_of = |id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    ids.filter(|id| parent_of(id) == Some(parent)).collect()
}

/// Runs or is a zombie that nobody has reaped: either way `kill -9` has yet to work.
fn is_alive(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// A local cluster in the middle of a long job, with its children.
fn running_cluster() -> (Process, Vec<u32>) {
    let cluster = Process::start("psctl", &["local", "--rounds=0", "--compute-delay-ms=5"]);
    let id = cluster.id();
    let children = wait_until("a server and four workers", || {
        let children = children_of(id);
        (children.len() == 5).then_some(children)
    });
    (cluster, children)
}

#[test]
fn codes_130_and_143_leave_no_process_behind() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let (cluster, children) = running_cluster();
        cluster.signal(signal);
        cluster.expect_exit(code);
        wait_until("the children's end", || children.iter().all(|&id| !is_alive(id)).then_some(()));
    }
    let (cluster, children) = running_cluster();
    cluster.signal("KILL");
    wait_until("the children's end", || children.iter().all(|&id| !is_alive(id)).then_some(()));

    let (server, _) = Process::server(&[]);
    server.signal("INT");
    server.expect_exit(130);
}

#[test]
fn a_killed_worker_of_a_local_cluster_is_started_again() {
    let folder = folder();
    let report = folder.path().join("report.json").to_string_lossy().into_owned();
    let port = free_port();
    let cluster = Process::start(
        "psctl",
        &[
            "local",
            "--dtype=f64",
            // Long enough to be found in its middle.
            "--compute-delay-ms=60",
            "--lease-ms=4000",
            "--report",
            &report,
            "--port",
            &port.to_string(),
        ],
    );
    let url = format!("http://127.0.0.1:{port}");
    wait_until("the tenth round", || {
        let (_, output) = Process::start("psctl", &["status", "--json", "--server", &url]).wait();
        let status: serde_json::Value = serde_json::from_str(output.lines().last()?).ok()?;
        (status["version"].as_u64()? >= 10).then_some(())
    });
    let id = cluster.id();
    let victim = children_of(id).into_iter().find(|id| {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.contains("--rank") && line.contains("worker")
    });
    let victim = victim.expect("workers are children");
    let killed = std::process::Command::new("kill").args(["-9", &victim.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    cluster.expect_exit(0);
    let text = std::fs::read_to_string(&report).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let undisturbed = ps_tests::local(&["--dtype=f64"]);
    assert_eq!(theta_sha256(&report), theta_sha256(&undisturbed));
}

/// psctl beside programs of another build: they must not be run, it plays both roles itself.
#[test]
fn a_stale_program_beside_psctl_is_not_run() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let psctl = folder.path().join("psctl");
    // By another process: a file that this one has open for writing, or a child that it is about to
    // start, cannot be run.
    let mut copy = std::process::Command::new("cp");
    let copied = copy.args([&ps_tests::binary("psctl"), &psctl]).status();
    assert!(copied.expect("cp runs").success());
    for name in ["ps-server", "ps-worker"] {
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo '{name} 0.0.1 (build 0)' && exit 0\n\
             touch '{}/{name}.was-run'; exit 1\n",
            folder.path().display()
        );
        let path = folder.path().join(name);
        std::fs::write(&path, script).expect("written");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("permitted");
    }
    let mut command = std::process::Command::new(&psctl);
    command.args(["local", "--json", "--dtype=f64"]).env("PATH", folder.path());
    let output = Process::spawn("psctl", command).expect_exit(0);
    assert!(output.contains("theta_sha256"), "{output}");
    for name in ["ps-server", "ps-worker"] {
        assert!(!folder.path().join(format!("{name}.was-run")).exists(), "{name} was run");
    }
}
