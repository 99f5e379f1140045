//! The way back: the newest good checkpoint, then the journal's records after it; or, with several
//! servers, the checkpoint that all of them have.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ps_common::Dtype;
use ps_common::partition::{CheckpointName, Partition};
use ps_common::statistics::Statistics;

use super::job::{JobSection, rule_of};
use super::record::Record;
use super::{Files, journal};
use crate::applier::Applier;
use crate::core::{Config, Core};
use crate::storage::journal::Recovered;
use crate::storage::{Error, FileReader, Loaded, Refused};

/// How a job was taken up again.
#[derive(Debug)]
pub struct Resumption {
    /// The checkpoint's file.
    pub path: PathBuf,
    /// Of theta in it.
    pub version: u64,
    /// Newer checkpoints that were damaged.
    pub refused: Vec<Refused>,
    /// What the journal had beyond it.
    pub recovered: Recovered,
}

/// A job that was taken up again; its theta is in the applier.
#[derive(Debug)]
pub struct Resumed {
    /// As it was.
    pub core: Core,
    /// That ranks had sent.
    pub statistics: BTreeMap<u32, Statistics>,
    /// How.
    pub resumption: Resumption,
}

/// Where a job is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// At the newest good checkpoint, where there is one.
    Newest,
    /// At this one and no other, or anew: newer ones get out of the way.
    Chosen(Option<CheckpointName>),
}

/// This life of the server, which the job has to fit.
#[derive(Debug, Clone, Copy)]
struct Life<'a> {
    config: &'a Config,
    dtype: Dtype,
    applier: &'a Applier,
}

/// Gives the job's number beside it.
pub(super) fn resume(
    files: &Files,
    origin: Origin,
    config: &Config,
    dtype: Dtype,
    applier: &Applier,
) -> Result<Option<(u64, Resumed)>, Error> {
    let life = Life { config, dtype, applier };
    let loaded = match origin {
        Origin::Newest => files.directory.load(|reader| load(reader, life))?,
        Origin::Chosen(None) => files.directory.undo_after(None).map(|()| None)?,
        Origin::Chosen(Some(name)) => {
            Some(files.directory.load_chosen(name.version, |reader| {
                let value = load(reader, life)?;
                match value.0.name() == name {
                    true => Ok(value),
                    false => Err(reader.refusal("it is not the one that all servers have")),
                }
            })?)
        }
    };
    let Some(loaded) = loaded else { return Ok(None) };
    let Loaded { version, path, value: (job, mut core, store), refused } = loaded;
    applier.restore(store);
    let directory = files.directory.path();
    let recovered = journal::recover(&*files.disk, directory, job.id, version, |made, payload| {
        replay(&mut core, life, payload).map_err(|what| Error::Bad {
            path: directory.to_owned(),
            offset: 0,
            section: None,
            what: format!("the journal's record of version {made}: {what}"),
        })
    })?;
    if core.n_workers() != config.n_workers {
        core = core.dealt_anew(config.clone());
    }
    let resumption = Resumption { path, version, refused, recovered };
    let statistics = job.statistics();
    Ok(Some((job.id, Resumed { core, statistics, resumption })))
}

pub(super) fn names(files: &Files, partition: Partition) -> Result<Vec<CheckpointName>, Error> {
    let mut names = Vec::new();
    for (version, job) in files.directory.heads()? {
        let Ok(job) = serde_json::from_slice::<JobSection>(&job) else { continue };
        if job.partition != partition {
            let path = files.directory.path().to_owned();
            return Err(Error::Mismatch {
                path,
                what: of_another(version, job.partition, partition),
            });
        }
        names.push(job.name());
    }
    Ok(names)
}

/// theta is cut by the number of servers, and each has its part.
fn of_another(version: u64, got: Partition, want: Partition) -> String {
    format!(
        "its checkpoint of version {version} is by server {got}, this one is {want}; start it with \
         --partition {got}, or with another --checkpoint-dir"
    )
}

type Value = (JobSection, Core, crate::table::Store);

fn load(reader: &mut FileReader, life: Life<'_>) -> Result<Value, Error> {
    let job: JobSection = serde_json::from_slice(reader.job())
        .map_err(|e| reader.refusal(&format!("the job's section: {e}")))?;
    let (want, got) = (rule_of(life.applier.optimizer()), &job.rule);
    if want != *got {
        let what = format!(
            "its --optimizer is `{got}`, this server's `{want}`: what the one remembers of each \
             element is of no use to the other"
        );
        return Err(reader.mismatch(what));
    }
    let (got, want) = (job.partition, life.config.partition);
    if got != want {
        return Err(reader.mismatch(of_another(reader.version(), got, want)));
    }
    // The journal's records are of the ranks that there were; others come after them.
    let config = Config { n_workers: job.saved.n_workers(), ..life.config.clone() };
    let core = Core::restore(config, life.dtype, job.saved.clone())
        .map_err(|e| reader.mismatch(e.message))?;
    let mut restoring = life.applier.restoring(job.saved.tables(), life.dtype, reader.version());
    super::read_theta(reader, &mut restoring)?;
    let store = restoring.finish().map_err(|what| reader.refusal(&what))?;
    Ok((job, core, store))
}

/// Does one recorded update again.
fn replay(core: &mut Core, life: Life<'_>, payload: &[u8]) -> Result<(), String> {
    let (_, dtype) = life.applier.shape().expect("put back before");
    let tables = life.applier.tables().expect("put back before");
    let record = Record::parse(payload, dtype, tables)?;
    for ((call, _), gradient) in record.order.parts.iter().zip(record.gradients) {
        life.applier.hold(*call, gradient);
    }
    let fresh = life.applier.update(&record.order).map_err(|e| format!("{e:?}"))?;
    life.applier.publish(fresh);
    core.replay(&record.counted)
}
