//! The shapes, not the decimals; and what may not stand beside a scenario.

use super::*;
use crate::simulate::results;

fn play(scenario: Scenario) -> Findings {
    let findings = scenario.play(&mut Lab::new(None, true)).expect("plays");
    for row in &findings.rows {
        assert_eq!(row.len(), findings.columns.len(), "{scenario:?}");
    }
    assert!(!findings.chart.series.is_empty());
    findings
}

/// Where the least of `values` is.
fn lowest(values: &[f64]) -> usize {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order[0]
}

#[test]
fn bounded_delay_is_u_shaped_and_idles_ever_less() {
    let findings = play(Scenario::BoundedDelay);
    let times = findings.column("time_seconds");
    let best = lowest(&times);
    assert!((1..times.len() - 2).contains(&best), "{times:?}");
    assert!(times[..=best].is_sorted_by(|a, b| a > b), "{times:?}");
    assert!(times[best..].is_sorted() && times[0] > 2.0 * times[best], "{times:?}");
    assert!(times[best + 1..].iter().all(|time| *time > 1.5 * times[best]), "{times:?}");
    let idle = findings.column("idle_share");
    assert!(idle.is_sorted_by(|a, b| a >= b), "{idle:?}");
    assert!((0.7..0.8).contains(&idle[0]) && idle[idle.len() - 1] < 0.1, "{idle:?}");
}

#[test]
fn ssp_idles_less_with_every_larger_bound() {
    let idle = play(Scenario::SspIdle).column("idle_share");
    assert!(idle.is_sorted_by(|a, b| a > b), "{idle:?}");
    assert!(idle[0] > 0.5 && idle[idle.len() - 1] < 0.2, "{idle:?}");
}

#[test]
fn a_few_spare_workers_are_best() {
    let findings = play(Scenario::BackupWorkers);
    let spare = findings.column("spare_share");
    let abandon = findings.column("abandon_time_seconds");
    let best = lowest(&abandon);
    assert!((0.05..=0.12).contains(&spare[best]), "{spare:?}: {abandon:?}");
    assert!((2.4..4.0).contains(&(abandon[0] / abandon[best])), "{abandon:?}");
    assert!(abandon[abandon.len() - 1] > 1.05 * abandon[best], "{abandon:?}");
    // Fewer gradients a round, more rounds.
    let rounds = findings.column("abandon_rounds");
    assert!(rounds.is_sorted_by(|a, b| a < b), "{rounds:?}");
    // Who finishes what is late stays out of step: more spare workers are needed for less.
    let finish = findings.column("finish_time_seconds");
    assert!(lowest(&finish) > best && finish[lowest(&finish)] > abandon[best], "{finish:?}");
}

#[test]
fn stale_gradients_are_rescued_by_scaling_and_compensation() {
    let errors = play(Scenario::StalenessRescue).column("train_error_share");
    let [one, plain, scaled, compensated] = errors[..] else { panic!("{errors:?}") };
    assert!(one < 0.1, "{errors:?}");
    assert!(plain.is_nan() || plain > 0.5, "{errors:?}");
    assert!(scaled < one + 0.05 && compensated < one + 0.05, "{errors:?}");
}

#[test]
fn topologies_are_in_the_published_order() {
    let findings = play(Scenario::Topologies);
    for error in ["own_loss", "train_error_share"] {
        let errors = findings.column(error);
        assert!(errors[..5].is_sorted_by(|a, b| a < b), "{error}: {errors:?}");
    }
    let disagreement = findings.column("disagreement");
    let connected = disagreement[..5].iter().copied().fold(0.0, f64::max);
    assert!(disagreement[5] > 2.0 * connected, "{disagreement:?}");
    // Zero, as far as eigenvalues of f64 tell.
    let gaps = findings.column("spectral_gap");
    assert!(gaps[5].abs() < 1e-12 && gaps[..5].iter().all(|gap| *gap > 0.01), "{gaps:?}");
}

#[test]
fn one_server_speeds_up_and_then_slows_down() {
    let speedups = play(Scenario::OneServerSpeedup).column("speedup");
    let best = speedups.len() - 1 - {
        let reversed: Vec<f64> = speedups.iter().rev().map(|speedup| -speedup).collect();
        lowest(&reversed)
    };
    assert!((1..speedups.len() - 1).contains(&best), "{speedups:?}");
    assert!(speedups[..=best].is_sorted() && speedups[best..].is_sorted_by(|a, b| a > b));
    assert!(speedups[best] > 2.0 && speedups[speedups.len() - 1] < 1.2, "{speedups:?}");
}

#[test]
fn exchanges_cost_what_they_are_published_to() {
    let findings = play(Scenario::RoundCost);
    let last = |name: &str| *findings.column(name).last().expect("rows");
    let order = [
        "gossip_seconds",
        "ring_seconds",
        "tree_seconds",
        "star_of_4_servers_seconds",
        "star_seconds",
    ];
    let seconds = order.map(last);
    assert!(seconds.is_sorted_by(|a, b| a < b), "{seconds:?}");
    let star = findings.column("star_seconds");
    assert!(star.windows(2).all(|pair| (1.9..2.01).contains(&(pair[1] / pair[0]))), "{star:?}");
    let ring = findings.column("ring_seconds");
    assert!(ring[5] < 2.5 * ring[0], "{ring:?}");
}

fn args(flags: &str) -> SimulateArgs {
    lab::parse(flags).expect("parses")
}

/// As the command line tells which flags were given.
fn called(flags: &str) -> Result<String, ExitError> {
    let words = flags.split_whitespace().filter_map(|word| word.strip_prefix("--"));
    let given: Vec<String> = words.map(str::to_owned).collect();
    let mut out = Vec::new();
    run(&args(flags), &given, &mut out)?;
    Ok(String::from_utf8(out).expect("text"))
}

#[test]
fn flags_of_ones_own_are_refused_by_name() {
    for (flags, says) in [
        ("--scenario ssp-idle --lr 0.1", "--lr has no meaning with --scenario ssp-idle"),
        ("--scenario round-cost --plot-speedup x.svg", "--plot-speedup has no meaning"),
        ("--scenario round-cost --sim-seed 1", "--sim-seed has no meaning"),
        ("--scenario ssp-idle --sim-seed 1,2", "a scenario takes one seed"),
        ("--scenario round-cost --plot x.gif", "ends in .svg or .png"),
        ("--scenarios --scenario round-cost", "--scenario has no meaning with --scenarios"),
    ] {
        let error = called(flags).expect_err(says);
        assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
    }
}

#[test]
fn late_needs_rounds_that_close_without_somebody() {
    for flags in ["--late finish", "--mode sync --late abandon --backup-workers 0"] {
        let error = results(&args(flags), false).expect_err(flags);
        assert!(error.message.starts_with("--late has no meaning"), "{error}");
    }
}

#[test]
fn the_list_has_a_line_for_each() {
    let text = called("--scenarios").expect("listed");
    assert_eq!(text.lines().count(), Scenario::value_variants().len());
    for (line, scenario) in text.lines().zip(Scenario::value_variants()) {
        let About { paper, seen } = scenario.about();
        assert!(line.starts_with(&scenario.name()), "{line}");
        assert!(line.contains(paper) && line.ends_with(seen), "{line}");
    }
}

#[test]
fn json_csv_and_picture_have_the_tables_figures() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (csv, svg) = (path("a.csv"), path("a.svg"));
    let text = called(&format!("--scenario round-cost --json --csv {csv} --plot {svg}"));
    let value: serde_json::Value = serde_json::from_str(&text.expect("played")).expect("JSON");
    assert_eq!(value["scenario"], "round-cost");
    assert_eq!(value["paper"], Scenario::RoundCost.about().paper);
    assert_eq!(value["rows"][0]["workers"], 2);
    assert_eq!(value["rows"][0]["gossip_seconds"], 0.321);
    let csv = std::fs::read_to_string(csv).expect("written");
    assert!(csv.starts_with("workers,star_seconds,") && csv.contains("\n2,"), "{csv}");
    assert_eq!(csv.lines().count(), 7);
    assert!(std::fs::read_to_string(svg).expect("written").contains("star, 4 servers"));
}

#[test]
fn calls_are_shown_by_what_they_share() {
    let commands = ["a --b 1 --c 2", "a --b 1 --c 3"].map(str::to_owned);
    assert_eq!(calls(&commands), "  a --b 1\n    --c 2\n    --c 3\n\n");
    let commands = ["a --b 1", "a --b 1 --c 3"].map(str::to_owned);
    assert_eq!(calls(&commands), "  a --b 1\n    --c 3\n\n");
    assert_eq!(calls(&commands[..1]), "  a --b 1\n\n");
    assert_eq!(calls(&[]), "");
}

#[test]
fn a_table_shows_names_and_seconds_as_persons_read_them() {
    let text = show(
        Scenario::OneServerSpeedup,
        &Lab::new(None, true),
        &play(Scenario::OneServerSpeedup),
        &Look::plain(false),
    );
    assert!(text.starts_with("one-server-speedup: Dean et al. 2012"), "{text}");
    assert!(text.contains("workers        time  speedup    idle\n"), "{text}");
}
