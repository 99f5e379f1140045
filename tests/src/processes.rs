//! Spawning, watching and ending real processes.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;

/// The workspace's folder.
pub fn project_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

/// The path of one of the project's programs, built if it is not up to date.
///
/// `cargo test -p ps-tests` does not build other packages' programs, so this does.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // With a test among the targets the dev-dependencies' features count, as they do in `cargo
        // test --workspace`: what that has built is taken, and not all of it built once more.
        cargo.current_dir(project_root()).args(["build", "--quiet", "--workspace", "--bins"]);
        cargo.args(["--test", "tidy"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "the programs do not build");
        let test = std::env::current_exe().expect("a test has a path");
        test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").to_owned()
    });
    folder.join(name)
}

/// The folder of the big data sets, or `None` with a printed reason.
pub fn data_dir(what: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("PS_DATA_DIR").map(PathBuf::from) else {
        println!("skipped: {what} is too large for the repository; set PS_DATA_DIR to its folder");
        return None;
    };
    let path = folder.join(what);
    if !path.exists() {
        println!("skipped: PS_DATA_DIR has no {}", path.display());
        return None;
    }
    Some(path)
}

/// A port of the loopback that was free a moment ago, of those that the system gives to nobody who
/// asks for any: neither another server nor a connection's own end takes it while its server is away.
pub fn free_port() -> u16 {
    const FIRST: u64 = 10_000;
    let given = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let lowest = given.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    let n_others = lowest.unwrap_or(32_768u64).saturating_sub(FIRST);
    let any = |wish: u16| TcpListener::bind(("127.0.0.1", wish)).ok()?.local_addr().ok();
    let other = |n: u64| {
        let chance = RandomState::new().hash_one(n).checked_rem(n_others)?;
        any(u16::try_from(FIRST + chance).ok()?)
    };
    let address = (0..1000).find_map(other).or_else(|| any(0));
    address.expect("loopback has free ports").port()
}

/// Waits until `condition` gives something.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The most that was ever resident of a process, in KiB, where the system tells.
pub fn resident_kib_max(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A running program; killed when it is dropped, its output shown when a test fails.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    /// Of its port file: who is seen to have written it has yet to sync the folder.
    folder: Option<TempDir>,
}

impl Process {
    /// Starts one of the project's programs with the environment's `PS_...` variables cleared.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary(program));
        command.args(arguments);
        Self::spawn(program, command)
    }

    /// Starts `command`, reading what it prints.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PS_")) {
            command.env_remove(key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        let output = Arc::new(Mutex::new(String::new()));
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let readers = vec![collect(stdout, &output), collect(stderr, &output)];
        Self { name: name.to_owned(), child, output, readers, folder: None }
    }

    /// A server on a free port, once it serves; gives its address too.
    pub fn server(arguments: &[&str]) -> (Self, String) {
        Self::server_by(Command::new(binary("ps-server")), arguments)
    }

    /// As [`Process::server`], by a command that ends in the server's arguments.
    pub fn server_by(mut command: Command, arguments: &[&str]) -> (Self, String) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port_file = folder.path().join("port");
        command.args(["--listen", "127.0.0.1:0", "--port-file"]).arg(&port_file).args(arguments);
        let mut server = Self::spawn("ps-server", command);
        let port = wait_until("the server's port file", || {
            assert!(server.child.try_wait().expect("waitable").is_none(), "{server:?}");
            std::fs::read_to_string(&port_file).ok()
        });
        server.folder = Some(folder);
        (server, format!("127.0.0.1:{}", port.trim()))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waitable").is_none()
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("no reader panics").clone()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "kill -{name} {self:?}");
    }

    /// Processor time used so far, in user and system mode together.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the name ends");
        let ticks = |n: usize| fields.split(' ').nth(n).expect("a field").parse::<u64>();
        let n_ticks = ticks(11).expect("a number") + ticks(12).expect("a number");
        // Linux counts them in hundredths of a second here, whatever its timer.
        Duration::from_millis(n_ticks * 10)
    }

    /// Waits for the end; gives the exit code (`None`: a signal) and all output.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let status = self.wait_status();
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
        (status.code(), self.output())
    }

    fn wait_status(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waitable") {
                return status;
            }
            assert!(Instant::now() < end, "still running after {PATIENCE:?}: {self:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for exit code `code`.
    ///
    /// # Panics
    /// With the output, if it is another.
    pub fn expect_exit(self, code: i32) -> String {
        let name = self.name.clone();
        let (got, output) = self.wait();
        assert_eq!(got, Some(code), "exit of {name}, which printed:\n{output}");
        output
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {}), which printed:\n{}", self.name, self.id(), self.output())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{self:?}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(
    source: impl Read + Send + 'static,
    output: &Arc<Mutex<String>>,
) -> std::thread::JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            let mut all = output.lock().expect("no reader panics");
            all.push_str(&String::from_utf8_lossy(&line));
            all.push('\n');
        }
    })
}
