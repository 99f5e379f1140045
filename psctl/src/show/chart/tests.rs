//! Edge cases of charts, and that both formats hold what was asked for.

use super::*;

fn chart(series: Vec<Series>) -> Chart {
    Chart { title: "a title".into(), x: Axis::linear("round"), y: Axis::linear("loss"), series }
}

fn pixels(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let decoder = png::Decoder::new(std::io::Cursor::new(png));
    let mut reader = decoder.read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("size")];
    let info = reader.next_frame(&mut bytes).expect("an image");
    (info.width, info.height, bytes)
}

/// Pixels of exactly this colour.
fn count(png: &[u8], colour: [u8; 3]) -> usize {
    pixels(png).2.chunks_exact(3).filter(|pixel| *pixel == colour).count()
}

const BLUE: [u8; 3] = [0x00, 0x72, 0xb2];
const VERMILION: [u8; 3] = [0xd5, 0x5e, 0x00];

#[test]
fn svg_is_xml_with_every_text() {
    let chart = chart(vec![
        Series::line("sync <1> & \"more\"", vec![(0.0, 1.0), (1.0, 0.5)]),
        Series::points("async", vec![(0.5, 0.7)]),
    ]);
    let svg = chart.to_svg();
    let document = roxmltree::Document::parse(&svg).expect("well-formed");
    let texts: Vec<&str> = document
        .descendants()
        .filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text")))
        .filter_map(|node| node.text())
        .collect();
    for expected in ["a title", "round", "loss", "sync <1> & \"more\"", "async"] {
        assert!(texts.contains(&expected), "{expected} is not in {texts:?}");
    }
}

#[test]
fn png_has_its_size_and_both_curves() {
    let falling = (0..100).map(|i| (f64::from(i), (-f64::from(i) / 20.0).exp())).collect();
    let flat = vec![(0.0, 0.5), (99.0, 0.5)];
    let png = chart(vec![Series::line("a", falling), Series::line("b", flat)]).to_png();
    let (width, height, _) = pixels(&png);
    assert_eq!((width, height), (1600, 1000));
    // A line three pixels wide across 1400 of them.
    assert!(count(&png, BLUE) > 2500, "{}", count(&png, BLUE));
    assert!(count(&png, VERMILION) > 2500, "{}", count(&png, VERMILION));
}

#[test]
fn every_input_gives_a_picture() {
    let wild = vec![(0.0, f64::NAN), (f64::INFINITY, 1.0), (1.0, 1e300), (2.0, -1e308), (3.0, 0.0)];
    let inputs = [
        vec![],
        vec![Series::line("empty", vec![])],
        vec![Series::line("one", vec![(3.0, 3.0)])],
        vec![Series::line("constant", vec![(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)])],
        vec![Series::line("zero", vec![(0.0, 0.0), (0.0, 0.0)])],
        vec![Series::line("wild", wild.clone()), Series::points("wild too", wild)],
        vec![Series::line("only nan", vec![(f64::NAN, f64::NAN)])],
        vec![Series::band("band", &[(0.0, -1.0, 2.0), (1.0, f64::NAN, 1.0), (2.0, 0.0, 3.0)])],
        (0..60).map(|i| Series::line(format!("many {i}"), vec![(0.0, f64::from(i))])).collect(),
        vec![Series::line("ctrl \u{1b}[0m \0 東京 \u{ffff}".repeat(20), vec![(1.0, 1.0)])],
    ];
    for series in inputs {
        for log in [false, true] {
            let mut chart = chart(series.clone());
            (chart.x.log, chart.y.log) = (log, log);
            let svg = chart.to_svg();
            roxmltree::Document::parse(&svg).expect("well-formed");
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
            assert!(pixels(&chart.to_png()).2.iter().any(|&byte| byte < 0x80), "blank");
        }
    }
}

#[test]
fn nothing_to_show_is_said() {
    assert!(chart(vec![Series::line("x", vec![(0.0, f64::NAN)])]).to_svg().contains("no data"));
    assert!(!chart(vec![Series::line("x", vec![(0.0, 0.0)])]).to_svg().contains("no data"));
}

#[test]
fn a_skipped_point_leaves_a_gap() {
    let points = vec![(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.0)];
    let svg = chart(vec![Series::line("", points)]).to_svg();
    assert_eq!(svg.matches("stroke=\"#0072b2\"").count(), 2);
}

#[test]
fn a_long_series_is_thinned_but_keeps_its_extremes() {
    let spike = 54_321;
    let points = (0..100_000).map(|i| (f64::from(i), if i == spike { 9.0 } else { 1.0 })).collect();
    let long = chart(vec![Series::line("long", points)]);
    let svg = long.to_svg();
    assert!(svg.len() < 200_000, "{}", svg.len());
    let short = chart(vec![Series::line("long", vec![(0.0, 1.0), (54_321.0, 9.0), (1e5, 1.0)])]);
    let top = |svg: &str| {
        let line = svg.lines().find(|l| l.contains("#0072b2") && l.len() > 150).expect("curve");
        let points = line.split('"').nth(1).expect("points");
        let ys = points.split([' ', ',']).skip(1).step_by(2);
        ys.map(|y| y.parse::<f64>().expect("number")).fold(f64::INFINITY, f64::min)
    };
    assert!((top(&svg) - top(&short.to_svg())).abs() < 0.02);
}

#[test]
fn a_band_and_a_line_of_one_name_share_colour_and_key() {
    let svg = chart(vec![
        Series::band("loss", &[(0.0, 1.0, 2.0), (1.0, 1.0, 2.0)]),
        Series::line("loss", vec![(0.0, 1.5), (1.0, 1.5)]),
    ])
    .to_svg();
    assert_eq!(svg.matches(">loss</text>").count(), 2, "the axis and one key");
    assert!(svg.contains("stroke=\"#0072b2\"") && svg.contains("fill=\"#0072b2\""));
}

#[test]
fn write_picks_the_format_and_replaces_the_file() {
    let directory = tempfile::tempdir().expect("tempdir");
    let chart = chart(vec![Series::line("x", vec![(0.0, 0.0), (1.0, 1.0)])]);
    for (name, magic) in [("a.svg", &b"<svg"[..]), ("b.PNG", b"\x89PNG")] {
        let path = directory.path().join(name);
        std::fs::write(&path, "old").expect("write");
        chart.write(&path).expect("written");
        assert!(std::fs::read(&path).expect("read").starts_with(magic));
    }
    let left = std::fs::read_dir(directory.path()).expect("list").count();
    assert_eq!(left, 2, "nothing else stays behind");
}

#[test]
fn write_refuses_other_formats_and_names_what_it_cannot_create() {
    let chart = chart(vec![]);
    for path in ["curve.pdf", "curve", ".png"] {
        let error = chart.write(Path::new(path)).expect_err("refused");
        assert_eq!(error.exit, Exit::Config);
        assert!(error.message.contains("--plot") && error.message.contains(path), "{error}");
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let missing = directory.path().join("no/such/curve.svg");
    let error = chart.write(&missing).expect_err("refused");
    assert_eq!(error.exit, Exit::CannotCreate);
    assert!(error.message.contains(&missing.display().to_string()), "{error}");
}

#[cfg(unix)]
#[test]
fn the_file_is_readable_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("tempdir");
    let (plot, plain) = (directory.path().join("a.svg"), directory.path().join("plain"));
    chart(vec![]).write(&plot).expect("written");
    std::fs::write(&plain, "").expect("written");
    let mode = |path| std::fs::metadata(path).expect("metadata").permissions().mode();
    assert_eq!(mode(&plot), mode(&plain));
}
