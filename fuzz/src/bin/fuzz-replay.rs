//! Runs one target over one input, without libFuzzer: `fuzz-replay TARGET FILE`, or with the bytes on
//! standard input where no file is named.
#![allow(clippy::print_stdout)]

use std::io::Read;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let names = ps_fuzz::TARGETS.map(|target| target.name).join(", ");
    let name = arguments.next().filter(|name| names.split(", ").any(|known| known == name));
    let Some(name) = name else {
        let what = format!("fuzz-replay TARGET [FILE]; the targets are {names}");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    };
    let mut bytes = Vec::new();
    match arguments.next() {
        Some(path) => bytes = std::fs::read(path)?,
        None => std::io::stdin().read_to_end(&mut bytes).map(drop)?,
    }
    let accepted = ps_fuzz::run(&name, &bytes);
    let verdict = if accepted { "accepted" } else { "refused" };
    println!("{name}: {} bytes, {verdict}: no promise is broken", bytes.len());
    Ok(())
}
