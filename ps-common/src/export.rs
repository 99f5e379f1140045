//! theta and other results as files: .npy, .csv and .safetensors, written whole or not at all.
//!
//! Owns the formats and the atomic write. Knows nothing of jobs, servers or where theta is from.
//! Equal inputs give equal bytes, so that files can be compared as the report's digest can.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::dtype::{Dtype, Element, as_le_bytes};
use crate::exit::{Exit, ExitError};
use crate::tables::Tables;

/// How theta is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// numpy's array file: the table's shape where there is one table, else theta flat.
    Npy,
    /// A line `table,key,value` for each element; a value reads back as the same float.
    Csv,
    /// One tensor for each table, with metadata.
    Safetensors,
}

impl Format {
    /// The format that the ending of `path` names.
    ///
    /// # Errors
    /// [`Exit::Config`] for any other ending; the message begins with the path.
    pub fn of(path: &Path) -> Result<Self, ExitError> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("csv") => Ok(Self::Csv),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(ExitError::config(format!(
                "{}: theta is written as .npy, .csv or .safetensors; give the file one of these \
                 endings",
                path.display()
            ))),
        }
    }
}

/// Writes theta in the format that the ending of `path` names. `metadata` goes into .safetensors
/// only; the other formats have no place for it.
///
/// # Errors
/// [`Exit::Config`] for an unknown ending, else as [`write_atomically`].
///
/// # Panics
/// If `theta` is not as long as `tables` say.
pub fn write_theta<T: Element>(
    path: &Path,
    tables: &Tables,
    theta: &[T],
    metadata: &BTreeMap<String, String>,
) -> Result<(), ExitError> {
    assert_eq!(theta.len(), tables.dim(), "theta is the concatenation of its tables");
    let format = Format::of(path)?;
    write_atomically(path, |out| match format {
        Format::Npy => write_npy(out, tables, theta),
        Format::Csv => write_csv(out, tables, theta),
        Format::Safetensors => write_safetensors(out, tables, theta, metadata),
    })
}

/// Writes a file whole or not at all: beside its place, synced, then renamed into it. What exists
/// and is no regular file (a pipe, `/dev/null`) is written to as it is.
///
/// # Errors
/// [`Exit::CannotCreate`] where the file cannot come into being, [`Exit::Io`] where writing fails;
/// both name the path. Nothing is left behind.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ExitError> {
    let io_error =
        |e| ExitError::new(Exit::Io, format!("cannot write {}", path.display())).because(e);
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        let file = OpenOptions::new().write(true).open(path).map_err(|e| cannot_create(path, e))?;
        return fill(&file, write).map_err(io_error);
    }
    let aside = aside(path)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&aside)
        .map_err(|e| cannot_create(path, e))?;
    let done = fill(&file, write)
        .and_then(|()| file.sync_all())
        .map_err(io_error)
        .and_then(|()| std::fs::rename(&aside, path).map_err(|e| cannot_create(path, e)));
    if done.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_file(&aside);
        return done;
    }
    sync_directory(path).map_err(io_error)
}

/// Whether a file can come into being at `path`, found out before hours of work depend on it.
///
/// # Errors
/// [`Exit::CannotCreate`] if `path` is a directory or its directory does not exist.
pub fn check_creatable(path: &Path) -> Result<(), ExitError> {
    let directory = directory_of(path);
    if path.is_dir() {
        return Err(ExitError::new(
            Exit::CannotCreate,
            format!("cannot create {}: it is a directory; give the name of a file", path.display()),
        ));
    }
    if !directory.is_dir() {
        return Err(ExitError::new(
            Exit::CannotCreate,
            format!(
                "cannot create {}: there is no directory {}",
                path.display(),
                directory.display()
            ),
        ));
    }
    Ok(())
}

fn cannot_create(path: &Path, error: io::Error) -> ExitError {
    ExitError::new(Exit::CannotCreate, format!("cannot create {}", path.display())).because(error)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// In the same directory, because a rename is atomic only within one file system.
fn aside(path: &Path) -> Result<PathBuf, ExitError> {
    let name = path.file_name().ok_or_else(|| {
        ExitError::new(
            Exit::CannotCreate,
            format!("cannot create {}: it names no file", path.display()),
        )
    })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(directory_of(path).join(hidden))
}

fn fill(file: &File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, file);
    write(&mut out)?;
    out.flush()
}

/// The name is durable only once its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory_of(path))?.sync_all() } else { Ok(()) }
}

/// Version 1.0 of numpy's format (NEP 1): magic, version, length of the header, the header as a
/// Python dictionary padded with spaces to a multiple of 64 bytes, the elements.
fn write_npy<T: Element>(out: &mut dyn Write, tables: &Tables, theta: &[T]) -> io::Result<()> {
    let mut declared = tables.iter();
    let shape = match (declared.next(), declared.next()) {
        (Some(only), None) => only.shape.clone(),
        _ => vec![theta.len() as u64],
    };
    let descr = match T::DTYPE {
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
    };
    let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
    // A Python tuple of one element ends in a comma.
    let comma = if dims.len() == 1 { "," } else { "" };
    let mut header = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        dims.join(", ")
    );
    const PREAMBLE_BYTES: usize = 10;
    let whole = (PREAMBLE_BYTES + header.len() + 1).next_multiple_of(64);
    let padding = whole - PREAMBLE_BYTES - header.len() - 1;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let header_bytes = u16::try_from(header.len())
        .map_err(|_| io::Error::other("the shape has too many dimensions for an .npy file"))?;
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&header_bytes.to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    out.write_all(as_le_bytes(theta))
}

fn write_csv<T: Element>(out: &mut dyn Write, tables: &Tables, theta: &[T]) -> io::Result<()> {
    writeln!(out, "table,key,value")?;
    for (table, keys) in tables.ranges() {
        let name = csv_field(&table.name);
        for key in keys {
            // Display of a float is the shortest text that reads back as the same float.
            writeln!(out, "{name},{key},{}", theta[key])?;
        }
    }
    Ok(())
}

/// RFC 4180: quoted where it must be.
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Where a tensor's bytes are, as the safetensors header says it.
#[derive(Serialize)]
struct TensorInfo<'a> {
    dtype: &'static str,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

/// The safetensors format: length of the header (8 bytes, little-endian), the header as JSON padded
/// with spaces to a multiple of 8, the tensors without gaps. Written here and not through the
/// library, which keeps metadata in random order and needs a second copy of theta.
fn write_safetensors<T: Element>(
    out: &mut dyn Write,
    tables: &Tables,
    theta: &[T],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    const METADATA: &str = "__metadata__";
    let dtype = match T::DTYPE {
        Dtype::F32 => "F32",
        Dtype::F64 => "F64",
    };
    let mut header = serde_json::Map::new();
    header.insert(METADATA.to_owned(), serde_json::to_value(metadata)?);
    for (table, keys) in tables.ranges() {
        let offset = |key: usize| (key * T::DTYPE.size_bytes()) as u64;
        let data_offsets = [offset(keys.start), offset(keys.end)];
        let info = TensorInfo { dtype, shape: &table.shape, data_offsets };
        if header.insert(table.name.clone(), serde_json::to_value(info)?).is_some() {
            return Err(io::Error::other(format!(
                "a table cannot be called {METADATA} in a .safetensors file"
            )));
        }
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    out.write_all(as_le_bytes(theta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Table;

    fn two_tables() -> Tables {
        Tables::new(vec![Table::zeros("W", &[2, 3], true), Table::zeros("b", &[2], false)])
            .expect("valid")
    }

    fn written<T: Element>(
        write: impl FnOnce(&mut dyn Write, &Tables, &[T]) -> io::Result<()>,
        tables: &Tables,
        theta: &[T],
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, tables, theta).expect("a Vec takes everything");
        bytes
    }

    /// Reads what numpy's own rules demand, and gives the header's text and the rest.
    fn npy_parts(bytes: &[u8]) -> (String, Vec<u8>) {
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert!((10 + len).is_multiple_of(64), "data begins at {}", 10 + len);
        let header = std::str::from_utf8(&bytes[10..10 + len]).expect("ASCII");
        assert!(header.ends_with('\n'));
        (header.trim_end().to_owned(), bytes[10 + len..].to_vec())
    }

    #[test]
    fn npy_keeps_the_shape_of_a_single_table_and_flattens_several() {
        let one = Tables::new(vec![Table::zeros("w", &[2, 2], true)]).expect("valid");
        let (header, data) = npy_parts(&written(write_npy, &one, &[1.0f64, 2.0, 3.0, -0.5]));
        assert_eq!(header, "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }");
        assert_eq!(data[24..], (-0.5f64).to_le_bytes());

        let theta: Vec<f32> = (0u8..8).map(f32::from).collect();
        let (header, data) = npy_parts(&written(write_npy, &two_tables(), &theta));
        assert_eq!(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (8,), }");
        assert_eq!((data.len(), &data[28..]), (32, &7f32.to_le_bytes()[..]));
    }

    #[test]
    fn csv_values_read_back_bit_for_bit() {
        let theta = [0.1f32, -0.0, 1e-45, f32::MAX, 1.0 / 3.0, 5.0, 6.0, 7.0];
        let text = String::from_utf8(written(write_csv, &two_tables(), &theta)).expect("ASCII");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("table,key,value"));
        for (key, line) in lines.enumerate() {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!((cells[0], cells[1]), (if key < 6 { "W" } else { "b" }, &*key.to_string()));
            assert_eq!(cells[2].parse::<f32>().expect("a float").to_bits(), theta[key].to_bits());
        }
        assert_eq!(text.lines().count(), 9);
        assert_eq!(csv_field("a,\"b\""), "\"a,\"\"b\"\"\"");
    }

    #[test]
    fn safetensors_reads_back_with_the_reference_implementation() {
        let theta: Vec<f64> = (0u8..8).map(f64::from).collect();
        let metadata = BTreeMap::from([("version".to_owned(), "7".to_owned())]);
        let bytes = written(
            |out, tables, theta| write_safetensors(out, tables, theta, &metadata),
            &two_tables(),
            &theta,
        );
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        assert_eq!(header.metadata().as_ref().expect("metadata")["version"], "7");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
        let (w, b) = (tensors.tensor("W").expect("W"), tensors.tensor("b").expect("b"));
        assert_eq!((w.shape(), b.shape()), (&[2usize, 3][..], &[2usize][..]));
        assert_eq!(w.dtype(), safetensors::Dtype::F64);
        assert_eq!(w.data(), as_le_bytes(&theta[..6]));
        assert_eq!(b.data(), as_le_bytes(&theta[6..]));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("theta.csv");
        write_atomically(&path, |out| out.write_all(b"old")).expect("written");
        let error = write_atomically(&path, |out| {
            out.write_all(b"ne")?;
            Err(io::Error::other("the disk is full"))
        })
        .expect_err("writing fails");
        assert_eq!(error.exit, Exit::Io);
        assert!(error.message.contains("theta.csv"), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn what_cannot_be_created_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let lost = directory.path().join("none/theta.npy");
        for error in [
            check_creatable(&lost).expect_err("no directory"),
            check_creatable(directory.path()).expect_err("a directory"),
            write_atomically(&lost, |_| Ok(())).expect_err("no directory"),
        ] {
            assert_eq!(error.exit, Exit::CannotCreate);
            assert!(error.message.contains(&*directory.path().to_string_lossy()), "{error}");
        }
        check_creatable(&directory.path().join("theta.npy")).expect("possible");
        assert_eq!(Format::of(Path::new("a.bin")).expect_err("unknown").exit, Exit::Config);
    }

    #[test]
    #[cfg(unix)]
    fn a_device_is_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write_atomically(Path::new("/dev/null"), |out| out.write_all(b"x")).expect("swallowed");
        let kind = std::fs::metadata("/dev/null").expect("there").file_type();
        assert!(kind.is_char_device());
    }
}
