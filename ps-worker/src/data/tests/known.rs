//! Known data sets: what numpy and their descriptions say of them.

use super::*;

#[test]
fn the_reference_problem() {
    let case = Case::new();
    let survey = case.survey("").expect("ok");
    assert_eq!((survey.n_samples, survey.n_features), (1000, 10));
    let whole = case.load("").expect("ok");
    // Losses of its description, (1 / 2m) * |X theta - y|^2, at zero and at the theta behind it.
    let theta = [
        0.3736408184666985,
        0.3329120962314033,
        0.17615391250286005,
        0.6072666701014879,
        0.4766241605086289,
        0.8657009923240037,
        0.03210958048205825,
        0.6438679275551263,
        0.7629488785115611,
        0.759486569188307,
    ];
    for (theta, expected) in [([0.0; 10], 3.23824830986434), (theta, 0.0052342037616431095)] {
        let residual =
            |(x, y): (&Vec<f64>, &f64)| x.iter().zip(theta).map(|(x, t)| x * t).sum::<f64>() - y;
        let loss: f64 =
            rows(&whole).iter().zip(&whole.targets).map(residual).map(|r| r * r / 2000.0).sum();
        assert!((loss - expected).abs() < 1e-12, "{loss}");
    }
    // The second of its four shards begins with row 791 of the unshuffled problem.
    let second = case.shard("", 1, 4).expect("ok");
    assert_eq!(second.len(), 250);
    assert_eq!(rows(&second)[0][..2], [0.8806505774645779, 0.41291118958921325]);
}

#[test]
fn diabetes_scaled_as_numpy_scales_it() {
    // Mean and standard deviation (ddof 0) by numpy 2.4.6.
    let mean = [
        48.51809954751131,
        1.4683257918552035,
        26.37579185520364,
        94.64701357466065,
        189.14027149321268,
        115.43914027149319,
        49.78846153846154,
        4.070248868778281,
        4.641410859728506,
        91.26018099547511,
    ];
    let std = [
        13.09419020798002,
        0.49899573599220226,
        4.413120855492464,
        13.815628311857537,
        34.568880126921385,
        30.378657550243783,
        12.919562419379742,
        1.288989285051803,
        0.5217992869003063,
        11.483322471735475,
    ];
    let case = Case::new();
    let files = format!(
        "--data {} --labels {}",
        shared("diabetes/diabetes_data_raw.csv.gz"),
        shared("diabetes/diabetes_target.csv.gz")
    );
    let survey = case.survey(&format!("{files} --scale standard")).expect("ok");
    assert_eq!((survey.n_samples, survey.n_features), (442, 10));
    assert_eq!((survey.targets.min, survey.targets.max), (25.0, 346.0));
    let raw = rows(&case.load(&files).expect("ok"));
    let scaled = rows(&case.load(&format!("{files} --scale standard")).expect("ok"));
    assert_eq!(raw[0], [59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]);
    for (x, z) in raw.iter().zip(&scaled) {
        for j in 0..10 {
            assert!((z[j] - (x[j] - mean[j]) / std[j]).abs() < 1e-12, "feature {j}");
        }
    }
}

#[test]
fn iris_with_its_unusual_first_line() {
    let case = Case::new();
    let flags = format!("--data {}", shared("iris/iris.csv"));
    let survey = case.survey(&flags).expect("ok");
    assert_eq!((survey.n_samples, survey.n_features), (150, 4));
    assert_eq!(survey.targets.n_classes(), Some(3));
    let samples = case.load(&flags).expect("ok");
    assert_eq!(rows(&samples)[0], [5.1, 3.5, 1.4, 0.2]);
    assert_eq!(samples.targets[149], 2.0);
    let message = case.config(&format!("{flags} --target petal"));
    assert!(message.contains("the columns are 150, 4, setosa, versicolor, virginica"), "{message}");
}

#[test]
fn agaricus() {
    let case = Case::new();
    let survey =
        case.survey(&format!("--data {}", shared("agaricus/agaricus.txt.train"))).expect("ok");
    assert_eq!((survey.n_samples, survey.n_features, survey.index_base), (6513, 126, 1));
    assert_eq!(survey.targets.n_classes(), Some(2));
    let samples =
        case.load(&format!("--data {}", shared("agaricus/agaricus.txt.train"))).expect("ok");
    let Features::Sparse(sparse) = samples.features else { panic!("sparse") };
    assert_eq!(sparse.indices.len(), 6513 * 22);
    assert_eq!(sparse.indices[..3], [2, 9, 10]);
    assert!(sparse.values.iter().all(|&x| x == 1.0));
}

#[test]
fn fashion_mnist() {
    let folder = std::env::var("PS_DATA_DIR").unwrap_or_else(|_| "(PS_DATA_DIR is not set)".into());
    let file = |name: String| format!("{folder}/fashion-mnist/{name}");
    let data: Vec<_> =
        (0..5).map(|i| file(format!("train-images-part{i}-idx3-ubyte.gz"))).collect();
    let labels = file("train-labels-idx1-ubyte.gz".into());
    if let Some(absent) = data.iter().chain([&labels]).find(|path| !PathBuf::from(path).exists()) {
        println!("skipped: no file {absent}");
        return;
    }
    let flags = format!("--data {} --labels {labels} --scale divide=255", data.join(","));
    let case = Case::new();
    let survey = case.survey(&flags).expect("ok");
    assert_eq!((survey.n_samples, survey.n_features), (60_000, 784));
    assert_eq!(survey.targets.n_classes(), Some(10));
    let spec = case.args(&flags).check().expect("ok");
    let preprocessing = Preprocessing::new(spec.scale, &survey, None).expect("ok");
    let started = std::time::Instant::now();
    let samples: Samples<f32> = load(&spec, &preprocessing, Rows::All).expect("ok");
    println!("read in {:?}", started.elapsed());
    for class in 0..10u8 {
        let n = samples.targets.iter().filter(|&&y| y == f32::from(class)).count();
        assert_eq!(n, 6000, "class {class}");
    }
    let Features::Dense(x) = samples.features else { panic!("dense") };
    assert!(x.iter().all(|&v| (0.0..=1.0).contains(&v)));
}

#[test]
fn the_clusters() {
    let case = Case::new();
    for (name, classes) in [("clusters", [0.0, 1.0, 2.0]), ("clusters-sorted", [0.0; 3])] {
        let survey = case.survey(&format!("--data {name}")).expect("ok");
        assert_eq!((survey.n_samples, survey.n_features), (3200, 16));
        assert_eq!(survey.targets.n_classes(), Some(10));
        let whole = case.load(&format!("--data {name} --shuffle false")).expect("ok");
        assert_eq!(whole.targets[..3], classes);
        let (rows, targets) = (rows(&whole), &whole.targets);
        let of_class_0: Vec<_> =
            rows.iter().zip(targets).filter(|(_, y)| **y == 0.0).map(|(x, _)| x[0]).collect();
        assert_eq!(of_class_0.len(), 320);
        // The same rows in either order, and the same bits in every build.
        let ends = (of_class_0[0], of_class_0[319]);
        assert_eq!(ends, (-1.3399824604857713, 0.0023036019410938025));
    }
}
