//! Join, Heartbeat, Leave.

use std::time::Duration;

use super::enums::{Parse, aggregate_from, aggregate_into};
use super::{bad_field, finite, millis, pb, required, seconds};
use crate::calls::{Caller, JoinAnswer, JoinRequest, Leave};
use crate::error::{Error, ErrorCode};
use crate::job::{Metrics, PROTOCOL_VERSION, WorkerStats};
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
        for text in request.fingerprint.iter().flat_map(|(k, v)| [k, v]) {
            if text.len() > FINGERPRINT_TEXT_MAX {
                return Err(bad_field("fingerprint", "has a key or value above 4096 bytes"));
            }
        }
        Ok(Self {
            protocol_version: request.protocol_version,
            role: request.role.parse()?,
            rank: request.rank,
            fingerprint: request.fingerprint,
            tables: tables_from(request.tables)?,
            dtype: if request.dtype == 0 { None } else { Some(request.dtype.parse()?) },
            program: request.program,
            acknowledged_clock: request.acknowledged_clock,
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
        }
    }
}

fn tables_from(tables: Vec<pb::Table>) -> Result<Option<Tables>, Error> {
    if tables.is_empty() {
        return Ok(None);
    }
    let tables = tables
        .into_iter()
        .map(|table| {
            let kind = required("tables.initializer", table.initializer)?.kind;
            match pb::initializer::Kind::try_from(kind) {
                Ok(pb::initializer::Kind::Zeros) => {}
                _ => {
                    return Err(Error::new(
                        ErrorCode::NotBuilt,
                        format!(
                            "table `{}` wants initializer number {kind}; this server has 1 (zeros)",
                            table.name
                        ),
                    )
                    .with("field", "tables.initializer"));
                }
            }
            Ok(Table {
                name: table.name,
                shape: table.shape,
                initializer: Initializer::Zeros,
                penalized: table.penalized,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Tables::new(tables).map(Some).map_err(|e| bad_field("tables", format!("is wrong: {e}")))
}

fn tables_into(tables: &Tables) -> Vec<pb::Table> {
    tables
        .iter()
        .map(|table| pb::Table {
            name: table.name.clone(),
            shape: table.shape.clone(),
            initializer: Some(pb::Initializer {
                kind: match table.initializer {
                    Initializer::Zeros => pb::initializer::Kind::Zeros.into(),
                },
            }),
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
