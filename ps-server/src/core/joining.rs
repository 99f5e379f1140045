//! Who is let in, as what, and on which terms (rules C1 to C4).

use ps_common::calls::{Caller, JoinRequest, WorkerState};
use ps_common::job::{JobState, Role};
use ps_common::{Error, ErrorCode};

use super::members::Holder;
use super::{Answer, ConnId, Core, Effect, Job, Time, Welcome};

impl Core {
    pub(super) fn join(
        &mut self,
        now: Time,
        conn: ConnId,
        address: String,
        request: JoinRequest,
        out: &mut Vec<Effect>,
    ) -> Result<Answer, Error> {
        match self.state {
            JobState::Empty | JobState::Running => {}
            // A worker that crashed has not measured its shard yet.
            JobState::Finishing if request.role == Role::Observer || !self.concluding => {}
            JobState::Finishing | JobState::Done | JobState::Failed => return Err(self.ended()),
        }
        self.refuse_when_draining()?;
        self.agree(&request)?;
        let rank = match request.role {
            Role::Observer => None,
            Role::Worker => Some(self.choose_rank(now, request.rank)?),
        };
        // Nobody is refused from here on: a refused first join leaves no job behind.
        if self.job.is_none() {
            self.begin(now, &request, out)?;
        }
        let holder = Holder {
            incarnation: self.members.next_incarnation(),
            conn: Some(conn),
            lease_end: now + self.config.lease,
            last_heard: now,
            program: request.program,
            address: address.clone(),
            overlaps: request.overlap,
        };
        let incarnation = holder.incarnation;
        let mut undone = 0;
        self.wake_at(holder.lease_end);
        let (rank, clock) = match rank {
            None => (self.members.admit(holder), 0),
            Some(rank) => {
                undone = self.members.undone(rank, request.acknowledged_clock);
                self.members.seat(rank, holder);
                self.fence_waits_of(rank, out);
                self.take_back(rank);
                self.skip_clocks(now, out);
                (rank, self.members.ranks[rank as usize].clock)
            }
        };
        let seconds = self.seconds(now);
        let what = match request.acknowledged_clock {
            Some(clock) if undone > 0 => format!(
                "from {address}, again, acknowledged up to clock {clock}: {undone} undone by the restart"
            ),
            Some(clock) => format!("from {address}, again, acknowledged up to clock {clock}"),
            None => format!("from {address}"),
        };
        self.count_undone(undone);
        let kind = if request.role == Role::Worker { "joined" } else { "observer joined" };
        self.record.event(seconds, kind, Some(rank), what);
        if let Some(job) = &mut self.job {
            // What the job had left open, the first to say it decides.
            for (key, value) in request.fingerprint {
                job.fingerprint.entry(key).or_insert(value);
            }
        }
        let caller = Caller { rank, incarnation };
        let (version, state) = (self.version, self.state);
        Ok(Answer::Joined(Box::new(Welcome { caller, clock, version, state })))
    }

    /// Holds a caller to the terms of the job (rule C2).
    fn agree(&self, request: &JoinRequest) -> Result<(), Error> {
        if let Some(got) = request.dtype
            && got != self.dtype
        {
            return Err(mismatch("dtype", self.dtype.name(), got.name()));
        }
        if request.overlap {
            let refused = self.config.consistency.check_overlap();
            refused.map_err(|what| {
                Error::new(ErrorCode::ConfigMismatch, what).with("field", "overlap")
            })?;
        }
        if let Some(job) = &self.job {
            for (key, want) in &job.fingerprint {
                match request.fingerprint.get(key) {
                    Some(got) if got != want => return Err(mismatch(key, want, got)),
                    _ => {}
                }
            }
            if let Some(got) = &request.tables
                && *got != job.tables
            {
                let show = |tables: &ps_common::tables::Tables| {
                    let each: Vec<_> =
                        tables.iter().map(|t| format!("{}{:?}", t.name, t.shape)).collect();
                    each.join(" ")
                };
                return Err(mismatch("tables", &show(&job.tables), &show(got)));
            }
        }
        Ok(())
    }

    /// Makes the first join's terms the job's (rule C1).
    fn begin(
        &mut self,
        now: Time,
        request: &JoinRequest,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        let Some(tables) = &request.tables else {
            return Err(not_initialized());
        };
        self.job = Some(Job {
            fingerprint: request.fingerprint.clone(),
            tables: tables.clone(),
            dtype: self.dtype,
            began: now,
            elapsed_before: Time::ZERO,
        });
        for seat in &mut self.members.ranks {
            seat.vacant_since = now;
        }
        self.state = JobState::Running;
        self.wake_at(now + self.config.replacement_timeout);
        if let Some(end) = self.time_limit() {
            self.wake_at(end);
        }
        out.push(Effect::Create { tables: tables.clone(), dtype: self.dtype });
        self.capture(now, out);
        Ok(())
    }

    /// Whether a holder of `rank` has something left to do: once theta is final, to measure it (rule
    /// L5).
    fn is_missed(&self, rank: u32) -> bool {
        let seat = &self.members.ranks[rank as usize];
        self.state != JobState::Finishing
            || seat.final_metrics.is_none() && seat.state != WorkerState::Left
    }

    /// The wished rank if nobody alive holds it, else the lowest that is free.
    fn choose_rank(&self, now: Time, wish: Option<u32>) -> Result<u32, Error> {
        let n_workers = self.config.n_workers;
        let free = |rank: u32| {
            let seat = &self.members.ranks[rank as usize];
            // A holder whose connection is gone may be replaced before its lease ends (rule C3).
            let connected = seat.holder.as_ref().is_some_and(|h| h.conn.is_some());
            seat.state != WorkerState::Live || !connected
        };
        if let Some(rank) = wish {
            if rank >= n_workers {
                return Err(Error::new(
                    ErrorCode::ConfigMismatch,
                    format!(
                        "rank {rank} is wished, this job has {n_workers} workers (ranks 0 to {}); \
                         start the server with a larger --workers or the worker with a lower --rank",
                        n_workers - 1
                    ),
                )
                .with("field", "rank")
                .with("want", n_workers)
                .with("got", rank));
            }
            if !self.is_missed(rank) {
                return Err(self.ended());
            }
            if !free(rank) {
                let error = Error::new(
                    ErrorCode::RankTaken,
                    format!("rank {rank} has a live holder; wish for another rank, or for none"),
                )
                .with("rank", rank);
                // The holder may be dead, whatever call of it is held: then the rank is free at its
                // lease's end, or before (rule C3).
                return Err(match &self.members.ranks[rank as usize].holder {
                    Some(holder) => error.retry_after(holder.lease_end.saturating_sub(now)),
                    None => error,
                });
            }
            return Ok(rank);
        }
        let ranks = || (0..n_workers).filter(|&rank| self.is_missed(rank));
        let never_live = |&rank: &u32| self.members.ranks[rank as usize].state != WorkerState::Live;
        // A lease that a restart granted again is its old holder's, who names its rank.
        let left_over = |&rank: &u32| free(rank) && !self.members.is_regranted(rank);
        ranks().find(never_live).or_else(|| ranks().find(left_over)).ok_or_else(|| {
            if self.state == JobState::Finishing {
                return self.ended();
            }
            let error = Error::new(
                ErrorCode::NoVacancy,
                format!("all {n_workers} ranks have live holders; the job needs no more workers"),
            );
            match self.members.next_lease_end(|_| false) {
                Some(end) => error.retry_after(end.saturating_sub(now)),
                None => error,
            }
        })
    }

    /// Checks the caller: whether it is who holds its rank (rules C5, D5).
    pub(super) fn identify(&self, caller: Caller) -> Result<(), Error> {
        if self.job.is_none() {
            return Err(not_initialized());
        }
        if self.members.is_of_earlier_boot(caller) {
            return Err(Error::new(
                ErrorCode::EpochChanged,
                format!(
                    "the server was started again and theta is at version {}; join again",
                    self.version
                ),
            )
            .with("version", self.version));
        }
        self.members.authenticate(caller)
    }

    /// Checks the caller and renews its lease.
    pub(super) fn authenticate(&mut self, now: Time, caller: Caller) -> Result<(), Error> {
        self.identify(caller)?;
        self.members.renew(caller, now, self.config.lease);
        Ok(())
    }

    /// The refusal of anything that needs a running job.
    pub(super) fn ended(&self) -> Error {
        let error = match self.state {
            JobState::Failed => {
                Error::new(ErrorCode::JobEnded, format!("the job failed: {}", self.reason))
            }
            _ => Error::new(ErrorCode::JobEnded, "the job has ended"),
        };
        error.with("state", self.state)
    }
}

pub(super) fn not_initialized() -> Error {
    Error::new(
        ErrorCode::NotInitialized,
        "no worker has joined yet, so there is no theta; join with the model's tables first",
    )
    .retry_after(std::time::Duration::from_millis(100))
}

pub(super) fn mismatch(field: &str, want: &str, got: &str) -> Error {
    Error::new(
        ErrorCode::ConfigMismatch,
        format!("`{field}` is `{want}` in the running job, `{got}` at this caller"),
    )
    .with("field", field)
    .with("want", want)
    .with("got", got)
}
