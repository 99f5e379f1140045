//! Data files through both passes of a worker: survey, then load, in either type.

use std::cell::RefCell;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use ps_common::Element;
use ps_common::exit::{Exit, ExitError};
use ps_worker::data::{
    BatchSize, DataArgs, DataSpec, Format, IndexBase, Preprocessing, Rows, Scale, Survey, Target,
    load as load_rows, survey,
};
use tempfile::TempDir;

/// What the first two bytes of an input say about the rest.
#[derive(Debug, Clone, Copy)]
struct Options([u8; 2]);

impl Options {
    fn bits(self, byte: usize, from: u32, n: u32) -> u8 {
        (self.0[byte] >> from) & ((1 << n) - 1)
    }

    /// Whether the file is compressed before it is read.
    fn is_gzipped(self) -> bool {
        self.bits(0, 0, 1) == 1
    }

    fn labels(self) -> Labels {
        match self.bits(0, 1, 2) {
            0 => Labels::None,
            1 => Labels::Unlabelled,
            2 => Labels::Same,
            _ => Labels::Three,
        }
    }

    fn scale(self) -> Scale {
        match self.bits(0, 3, 2) {
            0 => Scale::None,
            1 => Scale::Standard,
            2 => Scale::Minmax,
            _ => Scale::Divide(0.5),
        }
    }

    fn target(self) -> Option<Target> {
        match self.bits(0, 5, 2) {
            0 | 1 => None,
            2 => Some(Target::Index(1)),
            _ => Some(Target::Name("y".to_owned())),
        }
    }

    fn data_is_shard(self) -> bool {
        self.bits(0, 7, 1) == 1
    }

    fn index_base(self) -> Option<IndexBase> {
        [None, Some(IndexBase::Auto), Some(IndexBase::Zero), Some(IndexBase::One)]
            [usize::from(self.bits(1, 0, 2))]
    }

    fn features(self) -> Option<u32> {
        (self.bits(1, 2, 1) == 1).then_some(3)
    }

    fn take(self) -> Option<u64> {
        (self.bits(1, 3, 1) == 1).then_some(2)
    }

    fn shuffle(self) -> Option<bool> {
        (self.bits(1, 4, 1) == 1).then_some(true)
    }

    /// Of how many shards one is loaded.
    fn n_shards(self) -> u32 {
        1 + u32::from(self.bits(1, 5, 2))
    }
}

/// Where targets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Labels {
    /// The data file.
    None,
    /// Nowhere.
    Unlabelled,
    /// A file of labels with the same bytes.
    Same,
    /// A file with three labels.
    Three,
}

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(tempfile::tempdir().expect("a folder"));
}

/// Reads what follows two bytes of options as a data file of `format`, which by `Auto` may be
/// compressed already.
pub(crate) fn load(format: Format, input: &[u8]) -> bool {
    let Some((&options, bytes)) = input.split_first_chunk() else { return false };
    let options = Options(options);
    FOLDER.with_borrow(|folder| {
        let path = folder.path().join("data").to_string_lossy().into_owned();
        let three = folder.path().join("three").to_string_lossy().into_owned();
        let gzipped = (options.is_gzipped() && format != Format::Auto).then(|| gzip(bytes));
        std::fs::write(&path, gzipped.as_deref().unwrap_or(bytes)).expect("written");
        std::fs::write(&three, "0\n1\n2\n").expect("written");
        match read(format, options, &path, &three) {
            Ok(()) => true,
            Err(error) => {
                let is_named = error.message.contains(&path) || error.message.contains("--");
                let is_known = [Exit::BadData, Exit::Config].contains(&error.exit);
                assert!(is_named && is_known, "{error:?}");
                false
            }
        }
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn read(format: Format, options: Options, path: &str, three: &str) -> Result<(), ExitError> {
    let labels = options.labels();
    let args = DataArgs {
        data: vec![path.to_owned()],
        labels: match labels {
            Labels::None | Labels::Unlabelled => Vec::new(),
            Labels::Same => vec![path.to_owned()],
            Labels::Three => vec![three.to_owned()],
        },
        format,
        target: options.target(),
        scale: options.scale(),
        take: options.take(),
        seed: 1,
        shuffle: options.shuffle(),
        batch: BatchSize::Full,
        data_is_shard: options.data_is_shard(),
        index_base: options.index_base(),
        features: options.features(),
    };
    let spec = match labels {
        Labels::Unlabelled => args.check_without_targets()?,
        _ => args.check()?,
    };
    let found = survey(&spec)?;
    assert!(found.n_features > 0 && (found.n_samples > 0 || spec.data_is_shard), "{found:?}");
    // The mean of numbers near the end of f64's range, say, is refused.
    let preprocessing = Preprocessing::new(spec.scale, &found, None)?;
    let n_shards = options.n_shards();
    for index in 0..n_shards {
        let rows = Rows::of_worker(&spec, index, n_shards, found.n_samples);
        check::<f64>(&spec, &found, &preprocessing, rows)?;
        check::<f32>(&spec, &found, &preprocessing, rows)?;
    }
    Ok(())
}

/// Loads `rows`: as many as the survey promised, of finite numbers.
fn check<T: Element>(
    spec: &DataSpec,
    found: &Survey,
    preprocessing: &Preprocessing,
    rows: Rows,
) -> Result<(), ExitError> {
    let samples = match load_rows::<T>(spec, preprocessing, rows) {
        // A number beyond the type's range after scaling.
        Err(error) if error.message.contains("beyond the range") => return Ok(()),
        samples => samples?,
    };
    let n_rows = match rows {
        Rows::All => found.n_samples,
        Rows::Shard(shard) => shard.range().end - shard.range().start,
    };
    assert_eq!(samples.targets.len() as u64, n_rows, "{:?}", T::DTYPE);
    assert_eq!(samples.n_features(), found.n_features);
    assert!(samples.targets.iter().all(|target| target.is_finite()));
    Ok(())
}

/// Small files of a format, with options that apply; by `Auto` compressed ones of all formats.
pub(crate) fn seeds(format: Format) -> Vec<Vec<u8>> {
    let with = |options: &[[u8; 2]], files: &[Vec<u8>]| {
        let one = |options: &[u8; 2]| {
            files.iter().map(|file| [&options[..], file].concat()).collect::<Vec<_>>()
        };
        options.iter().flat_map(one).collect::<Vec<_>>()
    };
    let scales = [[0, 0], [1, 0x10], [1 << 3, 0x20], [2 << 3, 0x40], [3 << 3, 0x08]];
    // With three labels, or none.
    let three = [[3 << 1, 0], [7 | 1 << 3, 0x20], [1 << 1, 0], [3 << 1 | 2 << 3, 0x10]];
    match format {
        Format::Csv => with(&scales, &csv()),
        Format::Libsvm => with(&scales, &libsvm()),
        Format::Idx => with(&three, &idx()),
        Format::Npy => with(&three, &npy()),
        Format::Auto => {
            let compressed =
                |files: Vec<Vec<u8>>| files.iter().map(|f| gzip(f)).collect::<Vec<_>>();
            let mut seeds = with(&scales, &compressed([csv(), libsvm()].concat()));
            seeds.extend(with(&three, &compressed([idx(), npy()].concat())));
            seeds
        }
    }
}

fn csv() -> Vec<Vec<u8>> {
    [
        "1,2,0\n3,4,1\n5,6.5e-3,0\n",
        "\u{feff}\"a \"\"b\"\"\";x;y\r\n\r\n1;2;0\r\n\"3\"; 4 ;1\r\n-5;6;0",
        "a\tb\ty\n1\t2\t0\n3\t4\t1\n5\t6\t1\n",
        "1 2  0\n 3   4 1\n5 6 1\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn libsvm() -> Vec<Vec<u8>> {
    ["# rows\n+1 1:0.5 3:2\n-1 qid:7 2:1\n1 1:1 2:2 3:3 # all\n", "0 0:1 2:1e-3\n1\n2 1:4\n"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn idx() -> Vec<Vec<u8>> {
    let file = |kind: u8, dimensions: &[u32], bytes: &[u8]| {
        let mut file = vec![0, 0, kind, dimensions.len() as u8];
        dimensions.iter().for_each(|d| file.extend(d.to_be_bytes()));
        [&file[..], bytes].concat()
    };
    vec![
        file(8, &[3, 2], &[1, 2, 3, 4, 5, 255]),
        file(11, &[3, 2, 1], &[0, 1, 0xff, 2, 0, 3, 0, 4, 0, 5, 0x80, 0]),
        file(13, &[3, 1], &[1.5f32, -2.0, 3.0].map(f32::to_be_bytes).concat()),
    ]
}

fn npy() -> Vec<Vec<u8>> {
    let file = |version: u8, header: &str, bytes: &[u8]| {
        let mut file = [b"\x93NUMPY", &[version, 0][..]].concat();
        let length = header.len() as u32;
        file.extend(&length.to_le_bytes()[..if version == 1 { 2 } else { 4 }]);
        [&file[..], header.as_bytes(), bytes].concat()
    };
    let header = |descr: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")
    };
    let single = [1.5f32, -2.0, 3.0, 4.0, 5.0, 6.0];
    vec![
        file(1, &header("<f4", "(3, 2)"), &single.map(f32::to_le_bytes).concat()),
        file(2, &header(">i2", "(3, 1, 2)"), &[0, 1, 0xff, 2, 0, 3, 0, 4, 0, 5, 0x80, 0]),
        file(1, &header("|b1", "(3,)"), &[0, 1, 2]),
        file(3, &header("<u8", "(3,)"), &[1u64, 2, u64::MAX].map(u64::to_le_bytes).concat()),
    ]
}
