//! Files that are refused: always with their name, the place, and what was expected.

use super::*;

#[track_caller]
fn refuse(bytes: impl AsRef<[u8]>, flags: &str, begins: &str, says: &str) {
    let case = Case::with("a", bytes);
    case.write("y", "1\n1\n");
    let message = case.bad_data(&format!("--data @a {flags}"));
    assert!(message.starts_with(begins) && message.contains(says), "{message}");
}

#[test]
fn csv() {
    refuse("1,2\n3,x\n", "", "a:2:3: ", "field 2 is `x`, expected a finite number");
    refuse("a,b\r\n1,2\r\n\r\n3,x\r\n", "", "a:4:3: ", "`x`");
    refuse("1,2\n3,\n", "", "a:2:3: ", "field 2 is ``");
    refuse("1,2\n3,NaN\n", "", "a:2:3: ", "`NaN`");
    refuse("inf,2\n", "", "a:1:1: ", "`inf`");
    refuse("1,2\n1e999,2\n", "", "a:2:1: ", "`1e999`");
    refuse("1,2\n3,4,5\n", "", "a:2:5: ", "3 fields, expected 2");
    refuse("1,2,3\n3,4\n", "", "a:2:", "2 fields, expected 3");
    refuse("1\t2\t3\n3\t4\t\n", "", "a:2:5: ", "field 3 is ``");
    refuse("1 2\n3   x\n", "", "a:2:5: ", "`x`");
    // A missing value does not make a header of the first row.
    refuse("1,NA\n3,4\n", "", "a:1:3: ", "`NA`");
    refuse("a,b\n1,\"2\n3,4\n", "", "a:2:3: ", "quoted field that does not end");
    refuse("1,2\n\"3\"x,4\n", "", "a:2:1: ", "goes on after its closing quote");
    refuse(b"1,2\n\xff,4\n", "", "a:2:1: ", "expected a finite number");
    refuse("", "", "a: ", "no rows");
    refuse("a,b\n", "", "a: ", "no rows");
    refuse("1\n2\n", "", "a:1: ", "no features beside the target");
}

#[test]
fn libsvm() {
    refuse("1 1:1\n0 2:1 2:3\n", "", "a:2:7: ", "`2:3`: expected an index above 2");
    refuse("1 1:1\n0 3:1 2:3\n", "", "a:2:7: ", "above 3");
    refuse("1 1:1\nx 2:1\n", "", "a:2:1: ", "`x`: expected a label");
    refuse("1 1:1\n0 2:one\n", "", "a:2:3: ", "`2:one`: expected index:value");
    refuse("1 1:1\n0 2:inf\n", "", "a:2:3: ", "finite");
    refuse("1 1:1\n0 2\n", "", "a:2:3: ", "`2`: expected index:value");
    refuse("1 1:1\n0 -1:2\n", "", "a:2:3: ", "`-1:2`");
    refuse("1 1:1\n0 :2\n", "", "a:2:3: ", "`:2`");
    refuse("1 1:1\n0 99999999999:2\n", "", "a:2:3: ", "`99999999999:2`");
    refuse("1 4294967295:1\n", "", "a:1: ", "too large");
    refuse("1 1:1\n0 0:2\n", "--index-base 1", "a:2:3: ", "indices from 1");
    refuse("1 1:1\n0 3:2\n", "--index-base 1 --features 2", "a:2:3: ", "up to 2");
    refuse("1 0:1\n0 2:2\n", "--features 2", "a:2: ", "index 2, expected at most 1");
    refuse("# 1:2 3:4\n", "--format libsvm", "a: ", "no rows");
    refuse("1\n0\n", "--format libsvm", "a: ", "no features");
}

#[test]
fn idx_files() {
    let good = idx(8, &[2, 3], &[1, 2, 3, 4, 5, 6]);
    refuse(&good[..good.len() - 1], "--labels @y", "a: ", "ends at byte 17 within row 1");
    refuse(&good[..good.len() - 4], "--labels @y", "a: ", "ends at byte 14 within row 0");
    refuse(&good[..9], "--labels @y", "a: ", "ends at byte 9 within its header");
    refuse([&good[..], &[0]].concat(), "--labels @y", "a: ", "has bytes after byte 18");
    refuse(b"\0\0\x0a\x01", "--format idx --labels @y", "a: byte 2: ", "0x0a");
    refuse(b"\0\0\x08\0", "--format idx --labels @y", "a: byte 3: ", "no dimensions");
    refuse(b"PK\x03\x04", "--format idx --labels @y", "a: byte 0: ", "expected the IDX magic");
    refuse(idx(8, &[2, 0], &[]), "--labels @y", "a: byte 4: ", "dimensions [2, 0]");
    refuse(idx(8, &[u32::MAX; 9], &[]), "--labels @y", "a: byte 4: ", "too large");
    // A header may claim what it likes: memory follows the bytes that are there.
    refuse(idx(8, &[9, u32::MAX, 64], &[1]), "--labels @y", "a: byte 4: ", "too large");
    refuse(idx(8, &[9, 1 << 16, 64], &[1]), "--labels @y", "a: ", "ends at byte 17 within row 0");
    let nan = [1f32, f32::NAN].iter().flat_map(|x| x.to_be_bytes()).collect::<Vec<_>>();
    refuse(idx(13, &[1, 2], &nan), "--labels @y", "a: row 0, column 1", "byte 16) is NaN");
}

#[test]
fn npy_files() {
    let good = npy("|u1", "(2, 3)", &[1, 2, 3, 4, 5, 6]);
    let end = good.len();
    let at = format!("ends at byte {} within row 1", end - 1);
    refuse(&good[..end - 1], "--labels @y", "a: ", &at);
    refuse(&good[..50], "--labels @y", "a: ends at byte 50 within its header", "");
    refuse(&good[..9], "--labels @y", "a: ends at byte 9 within its header", "");
    refuse([&good[..], &[0]].concat(), "--labels @y", "a: has bytes after", "2 rows end");
    refuse(b"\x93NUMPY\x09\0", "--labels @y", "a: byte 6: ", "version 9");
    refuse(b"\x93NUMPY\x02\0\0\0\0\x7f", "--labels @y", "a: byte 8: ", "header of");
    refuse("1,2\n", "--format npy --labels @y", "a: byte 0: ", "NPY magic");
    let text = String::from_utf8_lossy(&good[10..end - 6]).replace("False,", "True ,");
    let fortran = [&good[..10], text.as_bytes(), &good[end - 6..]].concat();
    refuse(fortran, "--labels @y", "a: header at byte 10: ", "Fortran order");
    refuse(npy("<c8", "(1,)", &[0; 8]), "--labels @y", "a: header at byte 10: ", "`<c8`");
    let inf = f64::NEG_INFINITY.to_le_bytes();
    refuse(npy("<f8", "(1, 1)", &inf), "--labels @y", "a: row 0, column 0", "is -inf");
}

#[test]
fn damaged_gzip() {
    let text: String = (0..50_000).map(|i| format!("{i},{}\n", i * 7919 % 10_007)).collect();
    let whole = gzip(&text);
    let says = "truncated or damaged";
    refuse(&whole[..whole.len() / 2], "", "a: cannot be read beyond byte ", says);
    refuse(&whole[..whole.len() - 4], "", "a: cannot be read beyond byte ", says);
    refuse(&whole[..15], "", "a: cannot be read beyond byte 0 ", says);
    let mut flipped = whole.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    refuse(&flipped, "", "a: cannot be read beyond byte ", says);
}

#[test]
fn files_that_are_none() {
    let case = Case::with("a", "1,2\n");
    assert!(case.bad_data("--data @absent").starts_with("absent: cannot be opened: No such file"));
    assert!(case.bad_data("--data @a,@absent").starts_with("absent: cannot be opened"));
    std::fs::create_dir(case.folder.path().join("d")).expect("a folder");
    assert!(case.bad_data("--data @d").starts_with("d: not a regular file"));
}

#[test]
fn pairs_that_do_not_match() {
    let case = Case::with("x", "1,2\n3,4\n5,6\n");
    case.write("y2", "1\n2\n");
    case.write("y4", "1\n2\n3\n4\n");
    case.write("wide", "1,1\n2,2\n3,3\n");
    case.write("other", "1,2,3\n");
    let message = case.bad_data("--data @x --labels @y2");
    assert!(message.contains("--data has 3 rows, --labels has 2"), "{message}");
    let message = case.bad_data("--data @x --labels @y4");
    assert!(message.contains("--data has 3 rows, --labels has 4"), "{message}");
    let message = case.bad_data("--data @x --labels @wide");
    assert!(message.starts_with("wide:1: 2 values, expected one target"), "{message}");
    let message = case.bad_data("--data @x,@other");
    assert!(message.starts_with("other:1: 2 features, expected 1"), "{message}");
}

#[test]
fn a_quoted_field_over_many_lines_is_given_up_soon() {
    // Splitting all of it again at each line took minutes for a megabyte.
    let begin = std::time::Instant::now();
    refuse(format!("1,2\n\"{}", "\n".repeat(900_000)), "", "a:2:1: ", "does not end");
    assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn a_line_without_end_is_not_kept() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let megabyte = vec![b'1'; 1 << 20];
    for _ in 0..65 {
        bomb.write_all(&megabyte).expect("memory");
    }
    let bomb = bomb.finish().expect("memory");
    assert!(bomb.len() < 1 << 20);
    for format in ["csv", "libsvm"] {
        refuse(&bomb, &format!("--format {format}"), "a: ", "has more than 64 MiB");
    }
}

#[test]
fn rows_that_would_fill_the_memory_are_refused() {
    // Indices and dimensions cost nothing in a file; rows of as many numbers do.
    for scale in ["standard", "minmax"] {
        let flags = format!("--scale {scale}");
        refuse("1 1:1\n0 4000000000:1\n", &flags, "a:2: ", "expected at most 4194304");
    }
    let flags = "--data-is-shard --labels @y --scale standard";
    refuse(idx(8, &[0, u32::MAX], &[]), flags, "a: ", "too large");
    refuse(npy("<f8", "(0, 1000000000000)", &[]), flags, "a: ", "too large");
}
