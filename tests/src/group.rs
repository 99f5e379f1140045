//! The servers of one job, and a worker that speaks to all of them in the words of `proto/` alone.

use std::path::Path;
use std::process::Command;

use ps_common::partition::{Partition, staged_digest};
use ps_common::wire::pb;
use ps_common::wire::pb::partition_client::PartitionClient;
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use crate::{Caller, Process, binary, free_port, header};

/// Several servers of one job, each at a port that it keeps.
pub struct Group {
    folder: TempDir,
    ports: Vec<u16>,
    servers: Vec<Process>,
    job: Vec<String>,
    is_kept: bool,
}

impl Group {
    /// Starts `n` servers of a job, with checkpoints or without.
    pub fn start(n: usize, job: &[&str], is_kept: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut group = Self {
            folder,
            ports: (0..n).map(|_| free_port()).collect(),
            servers: Vec::new(),
            job: job.iter().map(|flag| (*flag).to_owned()).collect(),
            is_kept,
        };
        for index in 0..n {
            std::fs::create_dir(group.checkpoints(index)).expect("a folder");
        }
        group.servers = (0..n).map(|index| group.server(index)).collect();
        group
    }

    fn checkpoints(&self, index: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("checkpoints-{index}"))
    }

    fn server(&self, index: usize) -> Process {
        let n = self.ports.len();
        let mut arguments = vec![
            format!("--listen=127.0.0.1:{}", self.ports[index]),
            format!("--partition={index}/{n}"),
        ];
        if index == 0 {
            arguments.push(format!("--peers={}", self.urls_from(1).join(",")));
            arguments.push(format!("--report={}", self.file("report.json")));
        }
        if self.is_kept {
            arguments.push(format!("--checkpoint-dir={}", self.checkpoints(index).display()));
        }
        arguments.extend(self.job.iter().cloned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Process::start("ps-server", &arguments)
    }

    /// A file of this job.
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn urls_from(&self, first: usize) -> Vec<String> {
        self.ports[first..].iter().map(|port| format!("http://127.0.0.1:{port}")).collect()
    }

    /// The URLs of all servers, as `--server` takes them.
    pub fn urls(&self) -> String {
        self.urls_from(0).join(",")
    }

    /// `HOST:PORT` of each server.
    pub fn addresses(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Starts the worker of `rank`.
    pub fn worker(&self, rank: u32, learn: &[&str]) -> Process {
        let mut command = Command::new(binary("ps-worker"));
        command.args([&format!("--server={}", self.urls()), &format!("--rank={rank}")]);
        command.arg("--connect-timeout=60s").args(learn);
        Process::spawn("ps-worker", command)
    }

    /// One of the servers.
    pub fn process(&mut self, index: usize) -> &mut Process {
        &mut self.servers[index]
    }

    /// Kills a server and starts it again at its port.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].signal("KILL");
        let again = self.server(index);
        assert_eq!(std::mem::replace(&mut self.servers[index], again).wait().0, None);
    }

    /// Waits until all servers have ended well; the report.
    pub fn end(self) -> Value {
        for server in self.servers {
            server.expect_exit(0);
        }
        report_in(self.folder.path())
    }
}

fn report_in(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// A worker of several servers.
pub struct GroupCaller {
    /// At the first server.
    pub first: Caller,
    others: Vec<PartitionClient<Channel>>,
    dim: u64,
    exchange: u64,
}

impl GroupCaller {
    /// Connects to all and joins at the first as `rank` with a theta of `dim` elements of f32.
    ///
    /// # Errors
    /// Whatever comes in between.
    pub async fn join(
        addresses: &[String],
        rank: u32,
        dim: u64,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut channels = Vec::new();
        for address in addresses {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
            channels.push(endpoint.tcp_nodelay(true).connect().await?);
        }
        let mut first = Caller::over(channels.remove(0));
        let answer = first.join(Caller::join_request(Some(rank), dim)).await?;
        assert_eq!(answer.first_keys.len(), addresses.len(), "each server has a part");
        let others = channels.into_iter().map(PartitionClient::new).collect();
        Ok(Self { first, others, dim, exchange: 0 })
    }

    fn part(&self, index: usize) -> std::ops::Range<usize> {
        let count = u32::try_from(self.others.len() + 1).expect("few");
        let index = u32::try_from(index).expect("few");
        Partition { index, count }.keys(self.dim as usize)
    }

    /// Pushes a gradient, its parts staged at the others first.
    ///
    /// # Errors
    /// What any of the servers answers.
    pub async fn push(
        &mut self,
        clock: u64,
        version: u64,
        gradient: &[f32],
    ) -> Result<pb::PushResult, Status> {
        let mut digests = Vec::new();
        for index in 1..=self.others.len() {
            let mut message = self.message(index, clock, version, gradient);
            message.header = Some(header(&self.first, clock, version));
            let call = self.others[index - 1].stage(tokio_stream::iter([message]));
            digests.push(call.await?.into_inner().digest);
        }
        let mut message = self.message(0, clock, version, gradient);
        message.staged = Some(staged_digest(&digests));
        self.first.push_messages(vec![message]).await
    }

    fn message(&self, index: usize, clock: u64, version: u64, gradient: &[f32]) -> pb::PushRequest {
        let keys = self.part(index);
        let mut message = self.first.message(clock, version, &gradient[keys.clone()]);
        message.key = keys.start as u64;
        message
    }

    /// theta and its version, which all parts have.
    ///
    /// # Errors
    /// What any of the servers answers.
    pub async fn pull(&mut self) -> Result<(u64, Vec<f32>), Status> {
        self.exchange += 1;
        let (rank, incarnation) = (self.first.rank, self.first.incarnation);
        let request = pb::PullRequest {
            rank,
            incarnation,
            exchange: self.exchange,
            ..pb::PullRequest::default()
        };
        let take = pb::TakeRequest {
            rank,
            incarnation,
            exchange: self.exchange,
            wait_ms_max: 30_000,
            ..pb::TakeRequest::default()
        };
        let own = self.first.parameters.pull(request).await?.into_inner();
        let (version, mut theta) = read(own).await?;
        for index in 1..=self.others.len() {
            let part = self.others[index - 1].take(take).await?.into_inner();
            let (of_part, values) = read(part).await?;
            assert_eq!(of_part, version, "partition {index} gives another version");
            assert_eq!(theta.len(), self.part(index).start, "parts are adjacent");
            theta.extend(values);
        }
        assert_eq!(theta.len() as u64, self.dim);
        Ok((version, theta))
    }
}

/// Version and elements of a part of theta.
async fn read(mut chunks: tonic::Streaming<pb::PullResponse>) -> Result<(u64, Vec<f32>), Status> {
    let (mut version, mut values) = (None, Vec::new());
    while let Some(chunk) = chunks.message().await? {
        assert_eq!(*version.get_or_insert(chunk.version), chunk.version, "one version");
        values.extend(
            chunk.data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))),
        );
    }
    Ok((version.expect("a chunk"), values))
}
