//! The parts of theta that several servers have are those of the whole, to the last bit.

use ps_common::import::parse_theta;
use ps_common::partition::Partition;
use ps_common::tables::Initializer;

use super::super::{Compensation, SharedStore};
use super::updates::{decayed, gradient};
use super::*;

const DIM: usize = 2 * 2048 + 907;
const N_SERVERS: [u32; 4] = [1, 2, 3, 7];

/// Four tables whose borders are not those of parts, chunks or blocks; the first and the third are
/// penalised.
fn tables() -> Tables {
    let uniform = Initializer::Uniform { bound: 1.0, seed: 7 };
    let normal = Initializer::Normal { std: 0.5, seed: 7 };
    let tables = vec![
        Table::new("W", &[31, 70], uniform, true),
        Table::zeros("b", &[31], false),
        Table::new("V", &[1501], normal, true),
        Table::new("c", &[DIM as u64 - 31 * 71 - 1501], normal, false),
    ];
    Tables::new(tables).expect("sane")
}

fn parts(n_servers: u32) -> impl Iterator<Item = Partition> {
    (0..n_servers).map(move |index| Partition { index, count: n_servers })
}

fn as_gradient(values: &[f64], dtype: Dtype) -> Gradient {
    match dtype {
        Dtype::F32 => Gradient::F32(values.iter().map(|&x| x as f32).collect()),
        Dtype::F64 => Gradient::F64(values.to_vec().into()),
    }
}

/// The bytes of theta and of what the rule remembers, by section, after some updates, the second by a
/// gradient that is corrected.
fn train(partition: Partition, rule: &str, combine: Combine, dtype: Dtype) -> Vec<Vec<u8>> {
    let keys = partition.keys(DIM);
    let mut store = Store::part(&tables(), partition, dtype, optimizer(&decayed(rule)), 8 * 613);
    assert_eq!(store.snapshot().dim, keys.len());
    let pulled = store.snapshot();
    for step in 0..4_usize {
        let part =
            |rank: usize| (as_gradient(&gradient(step + 5 * rank, DIM)[keys.clone()], dtype), 0.3);
        let gradients: Vec<_> = (0..5).map(part).collect();
        let corrected = Compensation { lambda: 0.4, pulled: &pulled };
        let update = match step {
            1 => Update { compensation: Some(corrected), ..sum(&gradients[..1]) },
            _ => Update { combine, ..sum(&gradients) },
        };
        store.update(&update).expect("finite");
    }
    let captured = store.capture();
    let slots = captured.slots().filter(|(name, _)| *name != "n_steps");
    let slots = slots.map(|(_, parts)| parts.concat());
    std::iter::once(captured.theta().chunks().collect::<Vec<_>>().concat()).chain(slots).collect()
}

#[test]
fn parts_put_together_are_the_whole() {
    let combines = [Combine::Sum, Combine::InTurn, Combine::Median, Combine::TrimmedMean { k: 1 }];
    for (rule, dtype) in
        [("sgd", Dtype::F32), ("adam", Dtype::F64), ("adamw", Dtype::F32), (RULES[7], Dtype::F64)]
    {
        for combine in combines {
            let whole = train(Partition::WHOLE, rule, combine, dtype);
            for n_servers in N_SERVERS {
                let parts: Vec<_> = parts(n_servers)
                    .map(|partition| train(partition, rule, combine, dtype))
                    .collect();
                for (section, whole) in whole.iter().enumerate() {
                    let together: Vec<u8> =
                        parts.iter().flat_map(|part| part[section].iter().copied()).collect();
                    assert!(
                        together == *whole,
                        "{rule}, {combine:?}, {n_servers} servers: section {section} differs"
                    );
                }
            }
        }
    }
}

#[test]
fn an_overflow_is_told_by_its_key_in_all_of_theta() {
    let bad = DIM - 3;
    let mut values = vec![1.0; DIM];
    values[bad] = f64::from(f32::MAX);
    for partition in parts(3) {
        let keys = partition.keys(DIM);
        let part = as_gradient(&values[keys.clone()], Dtype::F32);
        let gradients = [(part.clone(), 1.0), (part.clone(), 1.0)];
        let want = if keys.contains(&bad) { Err(bad) } else { Ok(()) };
        let sgd = Optimizer::sgd(1.0);
        let mut store = Store::part(&tables(), partition, Dtype::F32, sgd, 1 << 12);
        let shared = SharedStore::new(&store, 1 << 12);
        assert_eq!(store.update(&sum(&gradients)), want, "{partition}");
        assert_eq!(shared.update(&mut part.clone(), 2.0), want, "{partition}, without locks");
    }
}

#[test]
fn each_part_starts_from_its_keys_of_a_file() {
    let numbers: Vec<f64> = (0..DIM).map(|key| key as f64 * 0.5 - 7.0).collect();
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({DIM},), }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let start = parse_theta("theta.npy".as_ref(), &file).expect("a good file");
    for partition in parts(3) {
        let sgd = Optimizer::sgd(1.0);
        let mut store = Store::part(&tables(), partition, Dtype::F64, sgd, 1 << 12);
        store.start_from(&start);
        assert_eq!(store.snapshot().values::<f64>(), numbers[partition.keys(DIM)], "{partition}");
    }
}

#[test]
fn a_part_that_is_put_back_goes_on_as_the_part_that_was_captured() {
    let partition = Partition { index: 1, count: 3 };
    let keys = partition.keys(DIM);
    let wish = decayed("adam");
    let mut first = Store::part(&tables(), partition, Dtype::F64, optimizer(&wish), 1 << 12);
    let step = |store: &mut Store, step| {
        let values = as_gradient(&gradient(step, DIM)[keys.clone()], Dtype::F64);
        store.update(&sum(&[(values, 1.0)])).expect("finite");
    };
    step(&mut first, 0);
    let captured = first.capture();
    let tables = tables();
    let part = (&tables, partition);
    let mut restoring = Store::restoring(part, Dtype::F64, optimizer(&wish), 1 << 10, 1);
    for chunk in captured.theta().chunks() {
        restoring.append("theta", &chunk).expect("fits");
    }
    for (name, parts) in captured.slots() {
        for bytes in parts {
            restoring.append(&format!("optimizer/{name}"), bytes).expect("fits");
        }
    }
    let mut second = restoring.finish().expect("whole");
    for store in [&mut first, &mut second] {
        step(store, 1);
    }
    assert_eq!(first.snapshot().sha256(), second.snapshot().sha256());
    assert_eq!(first.state(), second.state());
}
