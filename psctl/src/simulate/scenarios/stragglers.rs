//! What spare workers are good for where a few steps take long.

use ps_common::exit::ExitError;

use super::About;
use super::findings::{Cell, Findings};
use super::lab::Lab;
use crate::show::chart::{Axis, Chart, Series};

pub(super) const BACKUP_WORKERS: About = About {
    paper: "Chen, Pan et al. 2016, section 3",
    seen: "of 50 workers with 2 % stragglers about 8 % spare are best, nearly 3 times faster",
};

/// `--aggregate sum` with a rate per gradient: a round of fewer gradients makes a smaller step, and
/// more rounds are needed. The paper draws the times of each round anew, which is `--late abandon`.
pub(super) fn backup_workers(lab: &mut Lab) -> Result<Findings, ExitError> {
    let mut rows = Vec::new();
    let mut lines = ["abandon", "finish"].map(|late| (late, Vec::new()));
    for spare in [0, 1, 2, 3, 4, 5, 6, 8, 12] {
        let mut row = vec![Cell::Count(spare), Cell::Share(spare as f64 / 50.0)];
        // Nobody is late for a round that waits for all.
        let mut alike = None;
        for (late, points) in &mut lines {
            let figures = match alike {
                Some(figures) => figures,
                None => time_to_loss(lab, spare, late)?,
            };
            if spare == 0 {
                alike = Some(figures);
            }
            let (seconds, rounds) = figures;
            row.extend([Cell::Seconds(seconds), Cell::Count(rounds)]);
            points.push((spare as f64, seconds));
        }
        rows.push(row);
    }
    Ok(Findings {
        columns: vec![
            "spare",
            "spare_share",
            "abandon_time_seconds",
            "abandon_rounds",
            "finish_time_seconds",
            "finish_rounds",
        ],
        rows,
        chart: Chart {
            title: "Backup workers: time to a loss of 0.006, 50 workers, simulated".to_owned(),
            x: Axis::linear("spare workers"),
            y: Axis::linear("virtual seconds"),
            series: lines
                .map(|(late, points)| Series::line(format!("late: {late}"), points))
                .into(),
        },
    })
}

/// Virtual seconds and rounds.
fn time_to_loss(lab: &mut Lab, spare: u64, late: &str) -> Result<(f64, u64), ExitError> {
    let options = match spare {
        0 => String::new(),
        _ => format!(" --backup-workers {spare} --late {late}"),
    };
    let runs = lab.simulate(&format!(
        "--mode sync --workers 50 --aggregate sum --lr 0.002 --target-loss 0.006 --rounds 2000 \
         --stragglers share=0.02,factor=5{options}"
    ))?;
    let run = super::consistency::only(runs)?;
    Ok((run.virtual_seconds, run.rounds as u64))
}
