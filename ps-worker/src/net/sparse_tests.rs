//! Whole lives of a worker that pulls and pushes rows of theta, and its calls, message by message.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use ps_common::ErrorCode;
use ps_common::calls::{Caller, Outcome, PullRequest, PushHeader};
use ps_common::codec::Encoding;
use ps_common::exit::Exit;
use ps_common::rows::{Rows, elements, n_elements};
use ps_common::wire::pb;
use tempfile::NamedTempFile;

use super::client::ROWS_ASKED_MAX;
use super::session::join_request;
use super::session_tests::{Fake, Fault, LR, ROUNDS, args, learner_of, serve};
use super::tensor::Parcel;
use super::{Client, excerpt};
use crate::learning::Problem;
use crate::run::run;

/// Seven rows over 50 features, one of them without any.
fn data() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    let rows = "1 3:0.5 9:2\n0 9:1 40:0.25\n1\n0 1:1 2:-1 3:0.5\n1 50:3\n1 9:0.5 50:-1\n0 17:1\n";
    file.write_all(rows.as_bytes()).expect("written");
    file
}

fn flags(file: &NamedTempFile, more: &[&str]) -> Vec<String> {
    let data = format!("--data={}", file.path().display());
    let fixed = [data.as_str(), "--dtype=f64", "--shuffle=false"];
    fixed.iter().chain(more).map(|flag| (*flag).to_owned()).collect()
}

/// Where theta begins: nowhere 0, where an fm or mlp would stay.
fn start(dim: usize) -> Vec<f64> {
    (0..dim).map(|key| ((key * 7919) % 101) as f64 / 101.0 - 0.4).collect()
}

/// theta after all rounds but the skipped ones, by a learner of all of theta without a server.
fn expected(flags: &[&str], skipped: Option<u64>) -> Vec<f64> {
    let (mut learner, dim) = learner_of(flags);
    let (mut theta, mut gradient) = (start(dim), vec![0.0; dim]);
    for clock in (0..ROUNDS).filter(|clock| Some(*clock) != skipped) {
        learner.compute(clock, &theta, &mut gradient);
        theta.iter_mut().zip(&gradient).for_each(|(t, g)| *t -= LR * g);
    }
    theta
}

/// A life with these flags and faults; its server and the flags.
async fn live(faults: &[(u64, Fault)], file: &NamedTempFile, more: &[&str]) -> (Fake, Vec<String>) {
    let (fake, url) = serve(faults);
    let flags = flags(file, more);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--sparse"]).collect();
    fake.job().theta = start(learner_of(&flags).1);
    run(args(&url, &flags)).await.expect("done");
    (fake, flags.into_iter().map(str::to_owned).collect())
}

fn numbers(rows: &[Rows]) -> Vec<(u32, Vec<u32>)> {
    rows.iter().map(|of| (of.table(), of.numbers().to_vec())).collect()
}

#[tokio::test]
async fn a_step_brings_the_rows_of_its_batch_and_asks_for_those_of_the_next() {
    let file = data();
    let (fake, flags) = live(&[], &file, &["--model=logistic", "--bias", "--batch=2"]).await;
    let job = fake.job();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(job.theta, expected(&flags, None));
    // Before the first step its rows, at the end those of the whole shard.
    let [first, last] = &job.asked[..] else { panic!("two pulls: {:?}", job.asked) };
    assert_eq!(numbers(first), [(0, vec![2, 8, 39]), (1, vec![0])]);
    assert_eq!(numbers(last), [(0, vec![0, 1, 2, 8, 16, 39, 49]), (1, vec![0])]);
    // Features of the batches of two rows, in the order of the file, from 0; then from the start again.
    let batches: [&[u32]; 6] = [&[2, 8, 39], &[0, 1, 2], &[8, 49], &[16], &[2, 8, 39], &[0, 1, 2]];
    let mut messages = job.messages.iter();
    let mut next = |clock: u64, part: pb::Part| {
        let message = messages.next().expect("one more");
        assert_eq!(message.part, i32::from(part), "clock {clock}");
        assert_eq!(message.header.is_some(), part == pb::Part::Rows && message.table == 0);
        if let Some(header) = message.header {
            assert!(header.sparse && header.clock == clock && header.version_pulled == clock);
        }
        message
    };
    let bytes = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    for (clock, batch) in (0..).zip(batches) {
        for (table, numbers) in [(0, batch), (1, &[0][..])] {
            let message = next(clock, pb::Part::Rows);
            assert_eq!((message.table, &message.data[..]), (table, &bytes(numbers)[..]));
            assert!(!message.last);
        }
        // The last step asks for nothing.
        if let Some(asked) = batches.get(clock as usize + 1) {
            for (table, numbers) in [(0, *asked), (1, &[0][..])] {
                let message = next(clock, pb::Part::Asked);
                assert_eq!((message.table, &message.data[..]), (table, &bytes(numbers)[..]));
                assert!(!message.last);
            }
        }
        let values = next(clock, pb::Part::Values);
        assert_eq!((values.key, values.last, values.data.len()), (0, true, 8 * (batch.len() + 1)));
        assert_eq!(values.dtype, i32::from(pb::Dtype::F64));
    }
    assert!(messages.next().is_none());
}

#[tokio::test]
async fn a_worker_goes_through_every_fault_to_the_theta_of_dense_pushes() {
    let file = data();
    let faults = [
        (0, Fault::Wait),
        (1, Fault::Refuse(ErrorCode::Draining)),
        (2, Fault::LoseAnswer),
        (3, Fault::Refuse(ErrorCode::LeaseExpired)),
        (4, Fault::Refuse(ErrorCode::NotInitialized)),
        (5, Fault::LoseAnswer),
    ];
    for model in ["--model=fm,factors=2,loss=logistic", "--model=mlp,hidden=3,classes=2"] {
        for batch in ["--batch=2", "--batch=full"] {
            let (fake, flags) = live(&faults, &file, &[model, batch]).await;
            let job = fake.job();
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            assert_eq!(job.theta, expected(&flags, None), "{flags:?}");
            assert_eq!(job.pushed, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
            assert_eq!(job.joins.len(), 3);
            // The first, after both joins, and the last.
            assert_eq!(job.asked.len(), 4);
            let (learner, _) = learner_of(&flags);
            let final_metrics = job.left[0].final_metrics.expect("measured");
            assert_eq!(final_metrics, learner.metrics(&job.theta), "over all of theta");
            assert_eq!(job.left[0].stats.pushes, ROUNDS);
        }
    }
}

#[tokio::test]
async fn rows_of_a_clock_that_is_skipped_are_not_used_for_another() {
    let file = data();
    let model = ["--model=logistic", "--batch=2"];
    let (fake, flags) = live(&[(1, Fault::SkipNext)], &file, &model).await;
    let job = fake.job();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(job.pushed, [0, 1, 3, 4, 5]);
    assert_eq!(job.theta, expected(&flags, Some(2)));
    let [_, of_clock_3, _] = &job.asked[..] else { panic!("three pulls: {:?}", job.asked) };
    assert_eq!(numbers(of_clock_3), [(0, vec![16])]);
}

#[tokio::test]
async fn a_shard_without_features_pushes_a_row_that_does_not_move() {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(b"1\n0\n").expect("written");
    let more = ["--model=logistic", "--bias", "--features=9", "--format=libsvm"];
    let (fake, flags) = live(&[], &file, &more).await;
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(fake.job().theta, expected(&flags, None));
    assert!(fake.job().asked.iter().all(|asked| numbers(asked) == [(0, vec![0]), (1, vec![0])]));
}

#[tokio::test]
async fn dense_data_ends_a_sparse_worker_before_it_joins() {
    let (fake, url) = serve(&[]);
    let error = run(args(&url, &["--sparse"])).await.expect_err("dense");
    assert!(error.exit == Exit::Config && error.message.contains("the data is dense"), "{error:?}");
    assert!(fake.job().joins.is_empty());
}

/// A member of a job over `file` with these flags, what its shard touches, and theta's length.
async fn member(
    url: &str,
    file: &NamedTempFile,
    more: &[&str],
) -> (Client, Caller, Arc<[Rows]>, usize) {
    let flags = flags(file, more);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let problem = Problem::survey(&args(url, &flags).learn).expect("good data");
    let client = Client::connect(url, Duration::from_secs(30)).await.expect("it listens");
    let role = ps_common::job::Role::Worker;
    let request = join_request(&problem, None, role, None);
    let answer = client.join(request).await.expect("let in");
    let rows = learner_of(&flags).0.sparse().touched(0).expect("rows");
    (client, answer.caller, rows, answer.dim)
}

fn header(caller: Caller, clock: u64) -> PushHeader {
    PushHeader {
        caller,
        clock,
        version_pulled: clock,
        n_samples: 1,
        loss: None,
        penalty: None,
        wait_max: None,
        exchange: 0,
    }
}

#[tokio::test]
async fn rows_come_in_the_order_of_their_naming() {
    let file = data();
    let (fake, url) = serve(&[(0, Fault::Wait)]);
    let (client, caller, rows, dim) = member(&url, &file, &["--model=fm,factors=2"]).await;
    fake.job().theta = (0..dim).map(|key| key as f64).collect();
    let named = [rows[1].with(vec![49, 0]), rows[0].with(vec![8, 2])];
    let at: Vec<f64> = elements(&named).map(|key| key as f64).collect();
    assert_eq!(at.len(), 6);
    let mut theta = vec![0.0; 6];
    let request =
        PullRequest { caller, version_min: 0, r#final: false, wait_max: None, exchange: 0 };
    let pulled = client.pull_rows(Encoding::Plain, request, &named, &mut theta).await;
    assert_eq!((pulled.expect("answered").version, &theta), (0, &at));
    assert_eq!(numbers(&fake.job().asked[0]), numbers(&named));
    // A step moves its rows, is asked again where it waits, and brings what it asks for.
    let gradient = vec![1.0; 6];
    let mut steps = client.steps();
    let asked = [rows[0].with(vec![8, 9])];
    let mut theta = vec![0.0; 2];
    let parcel = Parcel::from(&gradient).of_rows(&named, &asked);
    let result = steps.step(header(caller, 0), parcel, &mut theta).await.expect("answered");
    assert_eq!((result.outcome, steps.theta_version()), (Outcome::Applied, 1));
    assert_eq!(theta, [8.0 - LR, 9.0]);
    // And nothing where it asks for nothing, brings it anything or not.
    let parcel = Parcel::from(&gradient).of_rows(&named, &[]);
    let result = steps.step(header(caller, 1), parcel, &mut []).await.expect("answered");
    assert_eq!(result.version, 2);
    let nothing = Vec::<f64>::new();
    let parcel = Parcel::from(&nothing).of_rows(&[], &[]);
    steps.step(header(caller, 2), parcel, &mut []).await.expect("answered");
    let job = fake.job();
    let last = job.messages.last().expect("pushed");
    assert!(last.last && last.data.is_empty() && last.header.is_some_and(|h| h.sparse));
    let expected = elements(&named).map(|key| (key, key as f64 - LR - LR));
    assert!(expected.into_iter().all(|(key, theta)| job.theta[key] == theta));
    assert_eq!(n_elements(&named), 6);
}

#[tokio::test]
async fn more_rows_than_one_request_can_name_are_picked_out_of_all_of_theta() {
    let file = data();
    let (fake, url) = serve(&[]);
    let features = format!("--features={}", 2 * ROWS_ASKED_MAX);
    let more = [features.as_str(), "--format=libsvm"];
    let (client, caller, _, dim) = member(&url, &file, &more).await;
    fake.job().theta = (0..dim).map(|key| key as f64).collect();
    let tables = fake.job().tables.clone().expect("joined");
    for n_rows in [ROWS_ASKED_MAX, ROWS_ASKED_MAX + 1] {
        let odd = (0..n_rows as u32 - 1).map(|row| 2 * row + 1).chain([0]).collect();
        let rows = [Rows::new(&tables, 0, odd).expect("there")];
        let expected: Vec<f64> = elements(&rows).map(|key| key as f64).collect();
        let request =
            PullRequest { caller, version_min: 0, r#final: false, wait_max: None, exchange: 0 };
        let mut theta = vec![0.0; n_rows];
        excerpt::pull(&client, request, Encoding::Plain, &rows, (dim, &mut theta))
            .await
            .expect("answered");
        assert!(theta == expected, "{n_rows} rows");
    }
    assert_eq!(fake.job().asked.len(), 1, "the first was asked by number");
}
