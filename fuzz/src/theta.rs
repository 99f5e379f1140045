//! theta out of a file that somebody brings: .npy, .csv, .safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use ps_common::exit::Exit;
use ps_common::export::write_theta;
use ps_common::import::parse_theta;
use ps_common::tables::{Table, Tables};
use ps_common::{Dtype, Element};

const NAMES: [&str; 3] = ["theta.npy", "theta.csv", "theta.safetensors"];

/// Reads a file of the format that the first byte names.
pub(crate) fn import(input: &[u8]) -> bool {
    let Some((&kind, file)) = input.split_first() else { return false };
    let name = NAMES[usize::from(kind) % NAMES.len()];
    let imported = match parse_theta(Path::new(name), file) {
        Ok(imported) => imported,
        Err(error) => {
            assert!(error.message.contains(name) && error.exit == Exit::BadData, "{error:?}");
            return false;
        }
    };
    let n_values = match imported.dtype() {
        Some(Dtype::F32) => imported.values::<f32>().len(),
        Some(Dtype::F64) | None => imported.values::<f64>().len(),
    };
    assert_eq!(imported.dim(), n_values, "as many elements as its shapes say");
    check::<f32>(&imported, n_values);
    check::<f64>(&imported, n_values);
    true
}

/// Whatever it says of its tables, theta of a job is finite and as long as the job's tables.
fn check<T: Element>(imported: &ps_common::import::Imported, n_values: usize) {
    let flat = Table::zeros("w", &[n_values as u64], true);
    for tables in [Tables::new(vec![flat]).expect("some elements"), tables()] {
        if let Ok(theta) = imported.clone().into_theta::<T>(&tables) {
            assert_eq!(theta.len(), tables.dim());
            assert!(theta.iter().all(|x| x.is_finite()));
        }
    }
}

fn tables() -> Tables {
    let tables = vec![Table::zeros("W", &[2, 3], true), Table::zeros("b,\"", &[2], false)];
    Tables::new(tables).expect("valid")
}

/// Files as `psctl export` writes them.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = BTreeMap::from([("model".to_owned(), "linear".to_owned())]);
    let one = Tables::new(vec![Table::zeros("w", &[2, 4], true)]).expect("valid");
    let mut seeds = Vec::new();
    for (kind, name) in (0u8..).zip(NAMES) {
        let path = folder.path().join(name);
        let mut keep = |tables: &Tables, double: bool| {
            let values = [1.5, -2.0, 3.25e-3, 0.0, 1e30, -1.0, 2.0, 7.0];
            let single = values.map(|x| x as f32);
            match double {
                true => write_theta(&path, tables, &values, &metadata),
                false => write_theta(&path, tables, &single, &metadata),
            }
            .expect("written");
            seeds.push([&[kind], &std::fs::read(&path).expect("written")[..]].concat());
        };
        keep(&one, true);
        keep(&tables(), false);
    }
    seeds
}
