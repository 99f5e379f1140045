//! Join, Heartbeat, Leave.

use std::time::Duration;

use super::enums::{Parse, aggregate_from, aggregate_into};
use super::{bad_field, finite, millis, pb, required, seconds};
use crate::calls::{Caller, JoinAnswer, JoinRequest, Leave};
use crate::error::{Error, ErrorCode};
use crate::job::{Fingerprint, Metrics, PROTOCOL_VERSION, WorkerStats};
use crate::tables::{Initializer, Table, Tables};

/// Longest key or value of a fingerprint, bytes.
const FINGERPRINT_TEXT_MAX: usize = 4096;

impl TryFrom<pb::JoinRequest> for JoinRequest {
    type Error = Error;
    fn try_from(request: pb::JoinRequest) -> Result<Self, Error> {
        // Another version may mean anything by the rest.
        if request.protocol_version != PROTOCOL_VERSION {
            return Err(Error::new(
                ErrorCode::ProtoVersion,
                format!(
                    "this server speaks version {PROTOCOL_VERSION} of the wire, the caller {}; \
                     run server and workers of one release",
                    request.protocol_version
                ),
            )
            .with("want", PROTOCOL_VERSION)
            .with("got", request.protocol_version));
        }
        Ok(Self {
            protocol_version: request.protocol_version,
            fingerprint: fingerprint_from("fingerprint", request.fingerprint)?,
            role: request.role.parse()?,
            rank: request.rank,
            tables: tables_from(request.tables)?,
            dtype: if request.dtype == 0 { None } else { Some(request.dtype.parse()?) },
            program: request.program,
            acknowledged_clock: request.acknowledged_clock,
            overlap: request.overlap,
        })
    }
}

impl From<JoinRequest> for pb::JoinRequest {
    fn from(request: JoinRequest) -> Self {
        Self {
            protocol_version: request.protocol_version,
            role: pb::Role::from(request.role).into(),
            rank: request.rank,
            fingerprint: request.fingerprint,
            tables: request.tables.as_ref().map(tables_into).unwrap_or_default(),
            dtype: request.dtype.map_or(0, |d| pb::Dtype::from(d).into()),
            program: request.program,
            acknowledged_clock: request.acknowledged_clock,
            overlap: request.overlap,
        }
    }
}

impl TryFrom<pb::JoinResponse> for JoinAnswer {
    type Error = Error;
    fn try_from(answer: pb::JoinResponse) -> Result<Self, Error> {
        let tables = required("tables", tables_from(answer.tables)?)?;
        if tables.dim() as u64 != answer.dim {
            return Err(bad_field(
                "dim",
                format!("is {}, the tables have {}", answer.dim, tables.dim()),
            ));
        }
        Ok(Self {
            caller: Caller { rank: answer.rank, incarnation: answer.incarnation },
            lease: Duration::from_millis(answer.lease_ms.into()),
            clock: answer.clock,
            shard: answer.shard,
            n_shards: answer.n_shards,
            dim: tables.dim(),
            dtype: answer.dtype.parse()?,
            mode: answer.mode.parse()?,
            aggregate: aggregate_from((answer.aggregate, answer.trimmed))?,
            rounds: (answer.rounds != 0).then_some(answer.rounds),
            version: answer.version,
            state: answer.state.parse()?,
            program: answer.program,
            fingerprint: answer.fingerprint,
            first_keys: first_keys_from(answer.first_keys, tables.dim())?,
            tables,
        })
    }
}

impl From<JoinAnswer> for pb::JoinResponse {
    fn from(answer: JoinAnswer) -> Self {
        let (aggregate, trimmed) = aggregate_into(answer.aggregate);
        Self {
            rank: answer.caller.rank,
            incarnation: answer.caller.incarnation,
            lease_ms: millis(answer.lease),
            clock: answer.clock,
            shard: answer.shard,
            n_shards: answer.n_shards,
            dim: answer.dim as u64,
            dtype: pb::Dtype::from(answer.dtype).into(),
            mode: pb::Mode::from(answer.mode).into(),
            aggregate,
            trimmed,
            rounds: answer.rounds.unwrap_or(0),
            version: answer.version,
            state: pb::JobState::from(answer.state).into(),
            program: answer.program,
            fingerprint: answer.fingerprint,
            tables: tables_into(&answer.tables),
            first_keys: answer.first_keys.iter().map(|&key| key as u64).collect(),
        }
    }
}

/// Ascending from 0, and each below `dim`; a server that says nothing is alone.
fn first_keys_from(keys: Vec<u64>, dim: usize) -> Result<Vec<usize>, Error> {
    if keys.is_empty() {
        return Ok(vec![0]);
    }
    let ascend = keys[0] == 0 && keys.windows(2).all(|two| two[0] < two[1]);
    if !ascend || keys.last().is_some_and(|&last| last >= dim as u64) {
        return Err(bad_field("first_keys", format!("is {keys:?}, which does not cut {dim} keys")));
    }
    Ok(keys.into_iter().map(|key| key as usize).collect())
}

/// Keys and values of a length that a person can read.
pub(super) fn fingerprint_from(field: &str, map: Fingerprint) -> Result<Fingerprint, Error> {
    let is_long = |text: &String| text.len() > FINGERPRINT_TEXT_MAX;
    if map.iter().any(|(key, value)| is_long(key) || is_long(value)) {
        return Err(bad_field(field, "has a key or value above 4096 bytes"));
    }
    Ok(map)
}

pub(super) fn tables_from(tables: Vec<pb::Table>) -> Result<Option<Tables>, Error> {
    if tables.is_empty() {
        return Ok(None);
    }
    let tables = tables
        .into_iter()
        .map(|table| {
            let initializer = required("tables.initializer", table.initializer)?;
            Ok(Table {
                initializer: initializer_from(initializer, &table.name)?,
                name: table.name,
                shape: table.shape,
                penalized: table.penalized,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Tables::new(tables).map(Some).map_err(|e| bad_field("tables", format!("is wrong: {e}")))
}

fn initializer_from(initializer: pb::Initializer, table: &str) -> Result<Initializer, Error> {
    let pb::Initializer { kind, scale, seed } = initializer;
    match pb::initializer::Kind::try_from(kind) {
        Ok(pb::initializer::Kind::Zeros) if scale != 0.0 || seed != 0 => Err(bad_field(
            "tables.initializer",
            format!("of table `{table}` is zeros with scale {scale} and seed {seed}, not 0 and 0"),
        )),
        Ok(pb::initializer::Kind::Zeros) => Ok(Initializer::Zeros),
        Ok(pb::initializer::Kind::Uniform) => Ok(Initializer::Uniform { bound: scale, seed }),
        Ok(pb::initializer::Kind::Normal) => Ok(Initializer::Normal { std: scale, seed }),
        Ok(pb::initializer::Kind::Unspecified) | Err(_) => Err(Error::new(
            ErrorCode::NotBuilt,
            format!(
                "table `{table}` wants initializer number {kind}; this server has 1 (zeros), 2 \
                 (uniform) and 3 (normal)"
            ),
        )
        .with("field", "tables.initializer")),
    }
}

fn initializer_into(initializer: Initializer) -> pb::Initializer {
    let (kind, seed) = match initializer {
        Initializer::Zeros => (pb::initializer::Kind::Zeros, 0),
        Initializer::Uniform { seed, .. } => (pb::initializer::Kind::Uniform, seed),
        Initializer::Normal { seed, .. } => (pb::initializer::Kind::Normal, seed),
    };
    pb::Initializer { kind: kind.into(), scale: initializer.scale(), seed }
}

pub(super) fn tables_into(tables: &Tables) -> Vec<pb::Table> {
    tables
        .iter()
        .map(|table| pb::Table {
            name: table.name.clone(),
            shape: table.shape.clone(),
            initializer: Some(initializer_into(table.initializer)),
            penalized: table.penalized,
        })
        .collect()
}

/// A worker's measurements; absent ones are zero.
pub(super) fn stats_from(stats: Option<pb::WorkerStats>) -> Result<WorkerStats, Error> {
    let stats = stats.unwrap_or_default();
    Ok(WorkerStats {
        pushes: stats.pushes,
        samples: stats.samples,
        compute_seconds: seconds("stats.compute_seconds", stats.compute_seconds)?,
        wait_seconds: seconds("stats.wait_seconds", stats.wait_seconds)?,
        comm_seconds: seconds("stats.comm_seconds", stats.comm_seconds)?,
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        loss_sum: stats.loss_sum.map(|sum| finite("stats.loss_sum", sum)).transpose()?,
    })
}

impl From<WorkerStats> for pb::WorkerStats {
    fn from(stats: WorkerStats) -> Self {
        Self {
            pushes: stats.pushes,
            samples: stats.samples,
            compute_seconds: stats.compute_seconds,
            wait_seconds: stats.wait_seconds,
            comm_seconds: stats.comm_seconds,
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            loss_sum: stats.loss_sum,
        }
    }
}

impl TryFrom<pb::Metrics> for Metrics {
    type Error = Error;
    fn try_from(metrics: pb::Metrics) -> Result<Self, Error> {
        Ok(Self {
            n_samples: metrics.n_samples,
            loss: finite("metrics.loss", metrics.loss)?,
            penalty: finite("metrics.penalty", metrics.penalty)?,
            n_correct: metrics.n_correct,
        })
    }
}

impl From<Metrics> for pb::Metrics {
    fn from(metrics: Metrics) -> Self {
        Self {
            n_samples: metrics.n_samples,
            loss: metrics.loss,
            penalty: metrics.penalty,
            n_correct: metrics.n_correct,
        }
    }
}

impl TryFrom<pb::HeartbeatRequest> for (Caller, WorkerStats) {
    type Error = Error;
    fn try_from(request: pb::HeartbeatRequest) -> Result<Self, Error> {
        let caller = Caller { rank: request.rank, incarnation: request.incarnation };
        Ok((caller, stats_from(request.stats)?))
    }
}

impl TryFrom<pb::LeaveRequest> for Leave {
    type Error = Error;
    fn try_from(request: pb::LeaveRequest) -> Result<Self, Error> {
        Ok(Self {
            caller: Caller { rank: request.rank, incarnation: request.incarnation },
            stats: stats_from(request.stats)?,
            final_metrics: request.final_metrics.map(Metrics::try_from).transpose()?,
        })
    }
}

impl From<Leave> for pb::LeaveRequest {
    fn from(leave: Leave) -> Self {
        Self {
            rank: leave.caller.rank,
            incarnation: leave.caller.incarnation,
            stats: Some(leave.stats.into()),
            final_metrics: leave.final_metrics.map(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: i32, scale: f64, seed: u64) -> Vec<pb::Table> {
        let initializer = Some(pb::Initializer { kind, scale, seed });
        vec![pb::Table { name: "v".to_owned(), shape: vec![2], initializer, penalized: true }]
    }

    #[test]
    fn initializers_round_trip() {
        for initializer in [
            Initializer::Zeros,
            Initializer::Uniform { bound: 0.125, seed: u64::MAX },
            Initializer::Normal { std: 1e-3, seed: 7 },
        ] {
            let tables = Tables::new(vec![Table::new("v", &[2, 3], initializer, true)]);
            let tables = tables.expect("valid");
            assert_eq!(tables_from(tables_into(&tables)).expect("its own"), Some(tables));
        }
    }

    #[test]
    fn initializers_that_mean_nothing_are_refused() {
        for (kind, scale, seed, code) in [
            (0, 0.0, 0, ErrorCode::NotBuilt),
            (4, 0.5, 0, ErrorCode::NotBuilt),
            (1, 0.5, 0, ErrorCode::BadField),
            (1, 0.0, 3, ErrorCode::BadField),
            (2, -0.5, 0, ErrorCode::BadField),
            (2, f64::NAN, 0, ErrorCode::BadField),
            (3, f64::INFINITY, 0, ErrorCode::BadField),
        ] {
            let error = tables_from(wire(kind, scale, seed)).expect_err("refused");
            assert_eq!(error.code, code, "{kind} {scale} {seed}: {error}");
        }
        let none = vec![pb::Table { initializer: None, ..wire(1, 0.0, 0).remove(0) }];
        assert_eq!(tables_from(none).expect_err("none").code, ErrorCode::BadField);
    }
}
