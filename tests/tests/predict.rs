//! `psctl predict`: an exported theta over data files, against what training reported.

use ps_tests::{Process, data, local};
use serde_json::Value;

fn predict(code: i32, arguments: &[&str]) -> String {
    Process::start("psctl", &[&["predict"], arguments].concat()).expect_exit(code)
}

/// theta of a run of `arguments`, in a file, and the run's report.
fn trained(folder: &tempfile::TempDir, ending: &str, arguments: &[&str]) -> (String, Value) {
    let path = folder.path().join(format!("theta.{ending}")).to_string_lossy().into_owned();
    let report = local(&[arguments, &["--theta-out", &path]].concat());
    (path, report)
}

/// The numbers below the header, line by line.
fn table(output: &str, header: &str) -> Vec<Vec<f64>> {
    let lines = output.lines().skip_while(|line| *line != header).skip(1);
    let numbers = |line: &str| line.split(',').map(|x| x.parse().ok()).collect();
    lines.map_while(numbers).collect()
}

/// The columns of the iris file without and with its last, the class.
fn iris() -> (String, Vec<f64>) {
    let text = std::fs::read_to_string(data("iris/iris.csv")).expect("part of the repository");
    let rows = text.lines().filter_map(|line| line.rsplit_once(','));
    let rows = rows.filter_map(|(x, y)| Some((x, y.trim().parse::<f64>().ok()?)));
    let (mut features, mut classes) = (String::new(), vec![]);
    for (x, y) in rows.filter(|(x, _)| x.split(',').all(|x| x.parse::<f64>().is_ok())) {
        features.push_str(x);
        features.push('\n');
        classes.push(y);
    }
    (features, classes)
}

#[test]
fn predictions_are_as_good_as_the_report_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = data("iris/iris.csv");
    let flags = ["--data", &file, "--model=mlp,hidden=6,activation=tanh", "--scale=standard"];
    let training = [&flags[..], &["--rounds=200", "--lr=0.3", "--workers=2"]].concat();
    let (theta, report) = trained(&folder, "safetensors", &training);
    let asked = [&flags[..], &["--theta", &theta, "--train-data", &file]].concat();
    let said = predict(0, &asked);
    let accuracy = report["final"]["train_accuracy"].as_f64().expect("a classifier");
    let loss = report["final"]["loss"].as_f64().expect("a loss");
    assert!(said.contains(&format!("150 rows, loss {loss:.6}")), "{loss}: {said}");
    assert!(said.contains(&format!("accuracy {:.2} %", 100.0 * accuracy)), "{said}");
    let classes = table(&said, "prediction");
    assert_eq!(classes.len(), 150, "{said}");

    // Without targets: every column is a feature.
    let (rows, targets) = iris();
    let path = folder.path().join("rows.csv").to_string_lossy().into_owned();
    std::fs::write(&path, rows).expect("written");
    let out = folder.path().join("out.csv").to_string_lossy().into_owned();
    let asked = [
        "--data",
        &path,
        "--unlabelled",
        "--model=mlp,hidden=6,activation=tanh",
        "--scale=standard",
        "--train-data",
        &file,
        "--theta",
        &theta,
    ];
    let said = predict(0, &[&asked[..], &["--proba", "--out", &out]].concat());
    assert!(said.contains(&format!("{} rows\n", targets.len())), "{said}");
    let text = std::fs::read_to_string(&out).expect("written");
    let probabilities = table(&text, "class_0,class_1,class_2");
    assert_eq!(probabilities.len(), targets.len());
    for (row, class) in probabilities.iter().zip(&classes[150 - targets.len()..]) {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{row:?}");
        let largest = row.iter().copied().fold(0.0, f64::max);
        assert_eq!(row[class[0] as usize], largest, "{row:?}");
    }
    let npy = folder.path().join("out.npy").to_string_lossy().into_owned();
    predict(0, &[&asked[..], &["--proba", "--out", &npy]].concat());
    let bytes = std::fs::read(&npy).expect("written");
    let numbers = &bytes[bytes.len() - 24 * targets.len()..];
    let first = f64::from_le_bytes(numbers[..8].try_into().expect("eight"));
    assert_eq!(first, probabilities[0][0]);
}

#[test]
fn sparse_rows_and_a_theta_in_decimal() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (train, test) = (data("agaricus/agaricus.txt.train"), data("agaricus/agaricus.txt.test"));
    let flags = ["--model=logistic", "--bias", "--dtype=f64", "--lr=0.5", "--rounds=20"];
    let (theta, report) =
        trained(&folder, "csv", &[&flags[..], &["--data", &train, "--test-data", &test]].concat());
    let said = predict(
        0,
        &["--model=logistic", "--bias", "--data", &test, "--train-data", &train, "--theta", &theta],
    );
    let accuracy = report["final"]["test_accuracy"].as_f64().expect("measured");
    assert!(said.contains(&format!("accuracy {:.2} %", 100.0 * accuracy)), "{said}");
    assert!(table(&said, "prediction").iter().all(|row| row[0] == 0.0 || row[0] == 1.0));
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = data("iris/iris.csv");
    let training = ["--data", &file, "--model=softmax", "--rounds=2"];
    let (theta, _) = trained(&folder, "safetensors", &training);
    for (code, more, says) in [
        (78, &["--model=softmax", "--scale=standard"][..], "--scale standard needs the statistics"),
        (78, &["--model=softmax", "--scale=divide=2"], "was trained with --scale none"),
        (78, &["--model=softmax", "--bias"], "was trained with --bias false"),
        (78, &["--model=mlp"], "was trained with --model softmax,classes=3"),
        (78, &["--model=softmax", "--batch=3"], "--batch has no meaning here"),
        (78, &["--model=softmax", "--train-take=3"], "--train-take has no meaning without"),
        (78, &["--model=softmax", "--unlabelled", "--target=last"], "--target and --unlabelled"),
        (78, &["--model=softmax", "--unlabelled"], "theta has 12 elements, the job's has 15"),
        (78, &["--model=softmax", "--out=x.svg"], "--out x.svg: predictions are written as"),
        (73, &["--model=softmax", "--out=/no/such/place/x.csv"], "cannot create"),
    ] {
        let said = predict(code, &[&["--data", &file, "--theta", &theta], more].concat());
        assert!(said.contains(says), "{more:?}: {said}");
    }
    let torn = folder.path().join("torn.csv").to_string_lossy().into_owned();
    std::fs::write(&torn, "table,key,value\n").expect("written");
    let said = predict(65, &["--data", &file, "--theta", &torn, "--model=softmax"]);
    assert!(said.contains("--theta: ") && said.contains("has no elements"), "{said}");
    let said = predict(78, &["--theta", &theta, "--model=linear", "--proba"]);
    assert!(said.contains("--model is linear, but"), "{said}");
}
