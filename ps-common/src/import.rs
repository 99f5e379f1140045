//! theta from a file: .npy, .csv and .safetensors as `export` writes them, read back and compared
//! with the tables of a job.
//!
//! A file is checked in two steps: what it is by itself ([`read_theta`]: bad data), and whether it
//! is theta of these tables ([`Imported::into_theta`]: configuration). Knows no jobs and no servers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::check::first_non_finite;
use crate::dtype::{Dtype, Element, copy_from_le_bytes};
use crate::exit::{Exit, ExitError};
use crate::export::Format;
use crate::tables::Tables;

/// What a file says of theta.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    path: PathBuf,
    values: Values,
    /// Names and shapes in order of key; of .npy there are no names, of .csv no shapes.
    parts: Vec<Part>,
    /// What .safetensors say of the job, else empty.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Part {
    name: Option<String>,
    shape: Option<Vec<u64>>,
    n_elements: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Decimal: a number of either type.
    Text(Vec<f64>, Vec<f32>),
}

/// Reads theta in the format that the ending of `path` names.
///
/// # Errors
/// [`Exit::Config`] for an unknown ending, [`Exit::Io`] where the file cannot be read,
/// [`Exit::BadData`] where it is not what its ending says, or holds a number that is not finite: the
/// message names the file, the place and what was expected.
pub fn read_theta(path: &Path) -> Result<Imported, ExitError> {
    Format::of(path)?;
    let bytes = std::fs::read(path).map_err(|e| {
        ExitError::new(Exit::Io, format!("cannot read {}", path.display())).because(e)
    })?;
    parse_theta(path, &bytes)
}

/// As [`read_theta`], of a file that holds `bytes`.
///
/// # Errors
/// As there, but [`Exit::Io`].
pub fn parse_theta(path: &Path, bytes: &[u8]) -> Result<Imported, ExitError> {
    let parsed = match Format::of(path)? {
        Format::Npy => parse_npy(bytes),
        Format::Csv => parse_csv(bytes),
        Format::Safetensors => parse_safetensors(bytes),
    };
    let bad = |what| ExitError::new(Exit::BadData, format!("{}: {what}", path.display()));
    let (values, parts, metadata) = parsed.map_err(bad)?;
    if let Some(key) = values.first_non_finite() {
        return Err(bad(format!("element {key} is not finite, as theta must be")));
    }
    Ok(Imported { path: path.to_owned(), values, parts, metadata })
}

impl Imported {
    /// The element type; `None` where it is written in decimal (.csv) and may be either.
    pub fn dtype(&self) -> Option<Dtype> {
        match self.values {
            Values::F32(_) => Some(Dtype::F32),
            Values::F64(_) => Some(Dtype::F64),
            Values::Text(..) => None,
        }
    }

    /// Elements.
    pub fn dim(&self) -> usize {
        self.parts.iter().map(|part| part.n_elements).sum()
    }

    /// Whether it may be theta of a job of this element type.
    ///
    /// # Errors
    /// Configuration, naming the file and both types.
    pub fn check_dtype(&self, dtype: Dtype) -> Result<(), ExitError> {
        match (self.dtype().filter(|has| *has != dtype), &self.values) {
            (None, Values::Text(_, single)) if dtype == Dtype::F32 => {
                match single.iter().position(|x| !x.is_finite()) {
                    None => Ok(()),
                    Some(key) => Err(ExitError::config(format!(
                        "{}: element {key} is beyond the range of f32: say --dtype f64",
                        self.path.display()
                    ))),
                }
            }
            (None, _) => Ok(()),
            (Some(has), _) => Err(ExitError::config(format!(
                "{} holds {has}, the job's theta is {dtype}: say --dtype {has}, or give a .csv, \
                 which is read as either",
                self.path.display()
            ))),
        }
    }

    /// Whether it is theta of these tables: as many elements, and tables of the same names and
    /// shapes as far as the format has them.
    ///
    /// # Errors
    /// Configuration, naming the file, the difference and what was expected.
    pub fn check_tables(&self, tables: &Tables) -> Result<(), ExitError> {
        let differ =
            |what: String| Err(ExitError::config(format!("{}: {what}", self.path.display())));
        if self.dim() != tables.dim() {
            return differ(format!(
                "theta has {} elements, the job's has {}: it is of another model, or of data of \
                 another width",
                self.dim(),
                tables.dim()
            ));
        }
        // A flat .npy says no more.
        if let [Part { name: None, shape: Some(shape), .. }] = &self.parts[..]
            && shape.len() == 1
        {
            return Ok(());
        }
        let want: Vec<_> = tables.iter().collect();
        if self.parts.len() != want.len() {
            return differ(format!("has {} tables, the job has {}", self.parts.len(), want.len()));
        }
        for (part, (table, keys)) in self.parts.iter().zip(tables.ranges()) {
            let alike = part.name.as_ref().is_none_or(|name| *name == table.name)
                && part.shape.as_ref().is_none_or(|shape| *shape == table.shape)
                && part.n_elements == keys.len();
            if !alike {
                return differ(format!(
                    "has {}, where the job has table `{}` of shape {:?}",
                    part.describe(),
                    table.name,
                    table.shape
                ));
            }
        }
        Ok(())
    }

    /// theta of these tables.
    ///
    /// # Errors
    /// As [`Imported::check_dtype`] and [`Imported::check_tables`].
    pub fn into_theta<T: Element>(self, tables: &Tables) -> Result<Vec<T>, ExitError> {
        self.check_dtype(T::DTYPE)?;
        self.check_tables(tables)?;
        Ok(self.values())
    }

    /// All elements, in order of key.
    ///
    /// # Panics
    /// If [`Imported::check_dtype`] refuses `T`.
    pub fn values<T: Element>(&self) -> Vec<T> {
        match (&self.values, T::DTYPE) {
            (Values::F32(values) | Values::Text(_, values), Dtype::F32) => {
                bytemuck::cast_slice(values).to_vec()
            }
            (Values::F64(values) | Values::Text(values, _), Dtype::F64) => {
                bytemuck::cast_slice(values).to_vec()
            }
            (_, dtype) => panic!("{} is not of {dtype}", self.path.display()),
        }
    }
}

impl Part {
    fn describe(&self) -> String {
        let name = self.name.as_ref().map_or(String::new(), |name| format!(" `{name}`"));
        match &self.shape {
            Some(shape) => format!("a table{name} of shape {shape:?}"),
            None => format!("a table{name} of {} elements", self.n_elements),
        }
    }
}

impl Values {
    fn of_bytes(dtype: Dtype, bytes: &[u8]) -> Self {
        fn values<T: Element>(bytes: &[u8]) -> Vec<T> {
            let mut values = vec![T::ZERO; bytes.len() / size_of::<T>()];
            copy_from_le_bytes(&mut values, bytes);
            values
        }
        match dtype {
            Dtype::F32 => Self::F32(values(bytes)),
            Dtype::F64 => Self::F64(values(bytes)),
        }
    }

    fn first_non_finite(&self) -> Option<usize> {
        match self {
            Self::F32(values) => first_non_finite(values),
            Self::F64(values) | Self::Text(values, _) => first_non_finite(values),
        }
    }
}

type Parsed = (Values, Vec<Part>, BTreeMap<String, String>);

fn n_elements(shape: &[u64]) -> Option<usize> {
    let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    usize::try_from(product).ok().filter(|n| *n > 0)
}

/// NEP 1, versions 1.0 and 2.0: one C-ordered array of little-endian floats.
fn parse_npy(bytes: &[u8]) -> Result<Parsed, String> {
    let no_npy = || "is no .npy file (numpy.save writes one)".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(no_npy)?;
    let (header_len, rest) = match rest {
        [1, 0, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2, 0, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        _ => return Err("is .npy of an unknown version, expected 1.0 or 2.0".to_owned()),
    };
    let (header, data) = rest.split_at_checked(header_len).ok_or("ends within its .npy header")?;
    let header = std::str::from_utf8(header).map_err(|_| no_npy())?;
    let after =
        |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start_matches([' ', ':']));
    let dtype = match after("'descr'").and_then(|rest| rest.split('\'').nth(1)) {
        Some("<f4") => Dtype::F32,
        Some("<f8") => Dtype::F64,
        other => {
            return Err(format!(
                "holds elements of type {}, expected little-endian floats '<f4' or '<f8'",
                other.unwrap_or("unknown")
            ));
        }
    };
    if !after("'fortran_order'").is_some_and(|rest| rest.starts_with("False")) {
        return Err("is in Fortran order, expected C order (numpy.ascontiguousarray)".to_owned());
    }
    let shape = after("'shape'")
        .and_then(|rest| rest.strip_prefix('(')?.split_once(')'))
        .and_then(|(dims, _)| {
            let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty());
            dims.map(|dim| dim.parse().ok()).collect::<Option<Vec<u64>>>()
        })
        .ok_or_else(no_npy)?;
    let n = n_elements(&shape).ok_or_else(|| format!("is empty or too large: {shape:?}"))?;
    if n.checked_mul(dtype.size_bytes()) != Some(data.len()) {
        return Err(format!(
            "has {} bytes of data, expected those of {n} elements of {dtype}",
            data.len()
        ));
    }
    let part = Part { name: None, shape: Some(shape), n_elements: n };
    Ok((Values::of_bytes(dtype, data), vec![part], BTreeMap::new()))
}

/// `table,key,value` lines, keys in order from 0.
fn parse_csv(bytes: &[u8]) -> Result<Parsed, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_owned())?;
    let mut lines = (1..).zip(text.lines());
    if lines.next().is_none_or(|(_, line)| line != "table,key,value") {
        return Err("line 1: expected `table,key,value`".to_owned());
    }
    let (mut double, mut single) = (Vec::new(), Vec::new());
    let mut parts: Vec<Part> = Vec::new();
    for (number, line) in lines {
        let mut fields = line.rsplitn(3, ',');
        let (Some(value), Some(key), Some(table)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("line {number}: expected `table,key,value`, got `{line}`"));
        };
        if key.parse() != Ok(double.len()) {
            return Err(format!("line {number}: key `{key}`, expected {}", double.len()));
        }
        let no_number = |_| format!("line {number}: value `{value}`, expected a number");
        double.push(value.parse::<f64>().map_err(no_number)?);
        single.push(value.parse::<f32>().map_err(no_number)?);
        let name = unquoted(table);
        match parts.last_mut() {
            Some(part) if part.name.as_ref() == Some(&name) => part.n_elements += 1,
            _ => parts.push(Part { name: Some(name), shape: None, n_elements: 1 }),
        }
    }
    if parts.is_empty() {
        return Err("has no elements after its first line".to_owned());
    }
    Ok((Values::Text(double, single), parts, BTreeMap::new()))
}

/// A field of RFC 4180 without its quotes.
fn unquoted(field: &str) -> String {
    match field.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => field.to_owned(),
    }
}

/// Where a tensor's bytes are.
#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [usize; 2],
}

/// Tensors without gaps, in order of their bytes; all of one type.
fn parse_safetensors(bytes: &[u8]) -> Result<Parsed, String> {
    let no_tensors = |why: &str| format!("is no .safetensors file: {why}");
    let (len, rest) = bytes.split_at_checked(8).ok_or_else(|| no_tensors("it is too short"))?;
    let len = u64::from_le_bytes(len.try_into().expect("eight bytes"));
    let (header, data) = usize::try_from(len)
        .ok()
        .and_then(|len| rest.split_at_checked(len))
        .ok_or_else(|| no_tensors("it ends within its header"))?;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| no_tensors(&e.to_string()))?;
    let (mut metadata, mut tensors) = (BTreeMap::new(), Vec::new());
    for (name, value) in header {
        let wrong = |e: serde_json::Error| no_tensors(&format!("`{name}`: {e}"));
        if name == "__metadata__" {
            metadata = serde_json::from_value(value).map_err(wrong)?;
        } else {
            let tensor: Tensor = serde_json::from_value(value).map_err(wrong)?;
            tensors.push((name, tensor));
        }
    }
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let dtype = match tensors.first().map(|(_, tensor)| &*tensor.dtype) {
        Some("F32") => Dtype::F32,
        Some("F64") => Dtype::F64,
        Some(other) => return Err(format!("holds elements of {other}, expected F32 or F64")),
        None => return Err("holds no tensors".to_owned()),
    };
    let (mut at, mut parts) = (0usize, Vec::new());
    for (name, tensor) in &tensors {
        if tensor.dtype != tensors[0].1.dtype {
            return Err(format!("tensor `{name}` is {}, the first is {dtype}", tensor.dtype));
        }
        let n = n_elements(&tensor.shape)
            .ok_or_else(|| format!("tensor `{name}` is empty or too large: {:?}", tensor.shape))?;
        let [from, to] = tensor.data_offsets;
        let end = n.checked_mul(dtype.size_bytes()).and_then(|bytes| at.checked_add(bytes));
        if from != at || end != Some(to) {
            return Err(format!(
                "tensor `{name}` has the bytes {from} to {to}, expected {n} elements of {dtype} \
                 from byte {at} on"
            ));
        }
        at = to;
        let (name, shape) = (Some(name.clone()), Some(tensor.shape.clone()));
        parts.push(Part { name, shape, n_elements: n });
    }
    if data.len() != at {
        return Err(format!("has {} bytes of data, its header says {at}", data.len()));
    }
    Ok((Values::of_bytes(dtype, data), parts, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::write_theta;
    use crate::tables::Table;

    fn tables() -> Tables {
        Tables::new(vec![Table::zeros("W", &[2, 3], true), Table::zeros("b,\"", &[2], false)])
            .expect("valid")
    }

    #[test]
    fn a_tensor_that_ends_before_it_begins_is_refused() {
        // 2^61 elements of 8 bytes are as little a length as -8 is.
        let header = r#"{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},
            "b":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[16,8]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length[..], header.as_bytes(), &[0; 8]].concat();
        let error = parse_theta(Path::new("theta.safetensors"), &file).expect_err("refused");
        assert!(error.message.contains("tensor `b`"), "{error}");
    }

    fn round_trip<T: Element>(theta: &[T]) {
        let folder = tempfile::tempdir().expect("a folder");
        let metadata = BTreeMap::from([("model".to_owned(), "linear".to_owned())]);
        let (one, two) = (Tables::new(vec![Table::zeros("w", &[8], true)]), tables());
        for tables in [one.expect("valid"), two] {
            for ending in ["npy", "csv", "safetensors"] {
                let path = folder.path().join(format!("theta.{ending}"));
                write_theta(&path, &tables, theta, &metadata).expect("written");
                let read = read_theta(&path).expect("its own");
                assert_eq!(read.dim(), 8);
                assert_eq!(read.metadata.contains_key("model"), ending == "safetensors");
                let back: Vec<T> = read.into_theta(&tables).expect("the same tables");
                assert_eq!(back, theta, "{ending}");
            }
        }
    }

    #[test]
    fn what_is_written_reads_back_bit_for_bit() {
        round_trip::<f32>(&[0.1, -0.0, 1e-45, f32::MAX, 1.0 / 3.0, 5.0, 6.0, -7.5]);
        round_trip::<f64>(&[0.1, -0.0, 5e-324, 1e30, 1.0 / 3.0, 5.0, 6.0, -7.5]);
    }

    #[test]
    fn another_theta_is_a_matter_of_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |ending: &str| folder.path().join(format!("theta.{ending}"));
        for ending in ["npy", "csv", "safetensors"] {
            write_theta(&path(ending), &tables(), &[1f32; 8], &BTreeMap::new()).expect("written");
        }
        let of = |list: &[(&str, &[u64])]| {
            let list = list.iter().map(|(name, shape)| Table::zeros(name, shape, true));
            Tables::new(list.collect()).expect("valid")
        };
        for (ending, tables, says) in [
            ("npy", of(&[("w", &[7])]), "theta has 8 elements, the job's has 7"),
            ("csv", of(&[("W", &[6]), ("b,\"", &[3])]), "8 elements, the job's has 9"),
            ("csv", of(&[("W", &[6]), ("c", &[2])]), "`b,\"` of 2 elements, where the job has"),
            ("csv", of(&[("W", &[5]), ("b,\"", &[3])]), "a table `W` of 6 elements"),
            ("csv", of(&[("W", &[8])]), "has 2 tables, the job has 1"),
            ("safetensors", of(&[("W", &[3, 2]), ("b,\"", &[2])]), "`W` of shape [2, 3], where"),
        ] {
            let error = read_theta(&path(ending)).expect("whole").check_tables(&tables);
            let error = error.expect_err(says);
            assert!(error.exit == Exit::Config && error.message.contains(says), "{error}");
        }
        for ending in ["npy", "safetensors"] {
            let error = read_theta(&path(ending)).expect("whole").into_theta::<f64>(&tables());
            let error = error.expect_err("another type");
            assert!(error.exit == Exit::Config && error.message.contains("--dtype f32"), "{error}");
        }
        std::fs::write(path("csv"), "table,key,value\nw,0,1e300\n").expect("written");
        let wide = read_theta(&path("csv")).expect("finite");
        let one = of(&[("w", &[1])]);
        assert!(wide.clone().into_theta::<f64>(&one).is_ok_and(|theta| theta == [1e300]));
        let error = wide.into_theta::<f32>(&one).expect_err("beyond f32");
        assert!(error.exit == Exit::Config && error.message.contains("--dtype f64"), "{error}");
        assert_eq!(read_theta(Path::new("x.bin")).expect_err("ending").exit, Exit::Config);
        assert_eq!(read_theta(Path::new("/no/theta.npy")).expect_err("none").exit, Exit::Io);
    }

    #[test]
    fn a_bad_file_is_bad_data_and_names_the_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let refuse = |ending: &str, bytes: &[u8], says: &str| {
            let path = folder.path().join(format!("theta.{ending}"));
            std::fs::write(&path, bytes).expect("written");
            let error = read_theta(&path).expect_err(says);
            assert!(error.exit == Exit::BadData, "{error}");
            assert!(error.message.contains(says) && error.message.contains("theta."), "{error}");
        };
        refuse("csv", b"w,0,1\n", "line 1: expected `table,key,value`");
        refuse("csv", b"table,key,value\n", "has no elements");
        refuse("csv", b"table,key,value\nw,0,1\nw,2,1\n", "line 3: key `2`, expected 1");
        refuse("csv", b"table,key,value\nw,0,one\n", "line 2: value `one`");
        refuse("csv", b"table,key,value\nw,0,NaN\n", "element 0 is not finite");
        refuse("csv", b"table,key,value\nw\n", "line 2: expected `table,key,value`");
        refuse("csv", b"\xff", "is no text");
        refuse("npy", b"PK\x03\x04", "is no .npy file");
        refuse("npy", b"\x93NUMPY\x03\x00", "unknown version");
        refuse("npy", b"\x93NUMPY\x01\x00\xff\xff{", "ends within its .npy header");
        let npy = |descr: &str, order: &str, shape: &str, data: &[u8]| {
            let header =
                format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
            let len = (header.len() as u16).to_le_bytes();
            [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
        };
        refuse("npy", &npy("<i8", "False", "(1,)", &[0; 8]), "elements of type <i8");
        refuse("npy", &npy("<f8", "True", "(1, 2)", &[0; 16]), "Fortran order");
        refuse(
            "npy",
            &npy("<f8", "False", "(2,)", &[0; 8]),
            "8 bytes of data, expected those of 2",
        );
        refuse("npy", &npy("<f8", "False", "(0,)", &[]), "is empty");
        refuse("npy", &npy("<f4", "False", "(1,)", &f32::NAN.to_le_bytes()), "element 0 is not");
        let tensors = |header: &str, data: &[u8]| {
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
        };
        refuse("safetensors", b"abc", "too short");
        refuse("safetensors", &[255; 16], "ends within its header");
        refuse("safetensors", &tensors("{", &[]), "is no .safetensors file");
        refuse("safetensors", &tensors("{}", &[]), "holds no tensors");
        let tensor = |dtype: &str, to: usize| {
            format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":[2],\"data_offsets\":[0,{to}]}}}}")
        };
        refuse("safetensors", &tensors(&tensor("I32", 8), &[0; 8]), "elements of I32");
        refuse("safetensors", &tensors(&tensor("F32", 9), &[0; 9]), "bytes 0 to 9");
        refuse("safetensors", &tensors(&tensor("F32", 8), &[0; 9]), "9 bytes of data");
    }
}
