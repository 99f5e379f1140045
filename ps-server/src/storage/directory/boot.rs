//! The number of a server's life on its directory: larger than in any life before.

use std::io::{self, Read};

use super::{Directory, Error};

const BOOT: &str = "boot";
/// While it is written.
pub(super) const BOOT_ASIDE: &str = "boot.tmp";

/// Longer than any number's text.
const TEXT_BYTES_MAX: u64 = 64;

const DAMAGED: &str =
    "not `next boot N crc32 X` with the right X; put back a good copy, or use another directory";

impl Directory {
    /// A number that no life before was given, nor any call in this one: 0 at first. When this
    /// returns, the next one is durable; a life that ends earlier leaves a gap at most.
    ///
    /// # Errors
    /// [`Error::Bad`] if the file is damaged: the numbers given so far are not known then, and
    /// nothing is changed. [`Error::Io`].
    pub fn next_boot(&self) -> Result<u32, Error> {
        let path = self.path.join(BOOT);
        let bad = |what: &str| Error::Bad {
            path: path.clone(),
            offset: 0,
            section: None,
            what: what.to_owned(),
        };
        let boot = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io("open", &path)(error)),
            Ok(file) => {
                let mut text = Vec::new();
                file.take(TEXT_BYTES_MAX)
                    .read_to_end(&mut text)
                    .map_err(Error::io("read", &path))?;
                number_in(&text).ok_or_else(|| bad(DAMAGED))?
            }
        };
        let next = boot
            .checked_add(1)
            .ok_or_else(|| bad("there is no number after it; use another directory"))?;
        let aside = self.path.join(BOOT_ASIDE);
        self.write_aside(&aside, |out| out.write_all(text_of(next).as_bytes()))?;
        self.put_in_place(&aside, &path)?;
        Ok(boot)
    }
}

fn text_of(next: u32) -> String {
    let text = format!("next boot {next}");
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} crc32 {crc:08x}\n")
}

fn number_in(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    let next = text.split(' ').nth(2)?.parse().ok()?;
    (text == text_of(next)).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use super::super::tests::{ForgetsDirectories, PLACE, disk, names, open};
    use super::*;
    use crate::storage::disk::{Disk, RealDisk};
    use crate::storage::faulty::{Fault, FaultyDisk, Loss};
    use ps_common::exit::Exit;

    const N_LIVES: u32 = 3;

    fn path() -> PathBuf {
        Path::new(PLACE).join(BOOT)
    }

    /// Boots again and again until the power fails; adds the numbers that were given.
    fn boot_until_dark(disk: &FaultyDisk, given: &mut Vec<u32>) {
        for _ in 0..N_LIVES {
            let Ok(directory) = open(disk, 2) else { return };
            given.extend(directory.next_boot().ok());
        }
    }

    fn assert_rising(given: &[u32], what: &str) {
        assert!(given.is_sorted_by(|a, b| a < b), "{what}: {given:?}");
    }

    #[test]
    fn every_life_has_the_next_number() {
        let place = tempfile::tempdir().expect("temporary directory");
        for life in 0..4 {
            let real = Directory::open(Arc::new(RealDisk), place.path(), 2).expect("opened");
            assert_eq!(real.next_boot().expect("given"), life);
        }
        let text = std::fs::read_to_string(place.path().join(BOOT)).expect("there");
        assert_eq!(text, "next boot 4 crc32 28e4bdde\n");

        let disk = disk();
        let directory = open(&disk, 2).expect("opened");
        assert_eq!([0, 1].map(|_| directory.next_boot().expect("given")), [0, 1]);
        assert_eq!(names(&disk), [BOOT], "and nothing aside");
    }

    #[test]
    fn no_number_is_given_twice_whenever_the_power_fails() {
        let n_operations = {
            let disk = disk();
            boot_until_dark(&disk, &mut Vec::new());
            disk.n_operations()
        };
        assert!(n_operations >= 8 * u64::from(N_LIVES), "only {n_operations} operations");
        let losses = [Loss::Everything, Loss::Nothing].into_iter().chain((0..8).map(Loss::Some));
        for loss in losses {
            for first in 0..=n_operations {
                for second in 0..=n_operations {
                    let disk = disk();
                    let mut given = Vec::new();
                    for crash_in in [first, second] {
                        disk.order(disk.n_operations() + crash_in, Fault::Crash);
                        boot_until_dark(&disk, &mut given);
                        disk.restart(loss);
                    }
                    let n_before = given.len();
                    boot_until_dark(&disk, &mut given);
                    assert_eq!(given.len(), n_before + N_LIVES as usize, "it goes on");
                    assert_rising(&given, &format!("crashes in {first} and {second}, {loss:?}"));
                }
            }
        }
    }

    #[test]
    fn no_number_is_given_twice_whatever_fails() {
        for fault in [Fault::NoSpace, Fault::Io] {
            for n_before in 0..40 {
                for loss in [Loss::Everything, Loss::Nothing] {
                    let disk = disk();
                    disk.order(n_before, fault);
                    let mut given = Vec::new();
                    for _ in 0..3 {
                        boot_until_dark(&disk, &mut given);
                        disk.restart(loss);
                    }
                    assert!(given.len() >= 2 * N_LIVES as usize, "{given:?}");
                    assert_rising(&given, &format!("{fault:?} after {n_before}, {loss:?}"));
                }
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_synced_would_be_noticed() {
        let disk = disk();
        for _ in 0..2 {
            let careless = Arc::new(ForgetsDirectories(disk.clone()));
            let directory = Directory::open(careless, Path::new(PLACE), 2).expect("opened");
            assert_eq!(directory.next_boot().expect("given"), 0, "the same number twice");
            drop(directory);
            disk.restart(Loss::Everything);
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_stays() {
        let written = |text: &[u8]| {
            let disk = disk();
            let file = disk.create(&path()).expect("created");
            file.write(&mut [io::IoSlice::new(text)]).expect("written");
            disk
        };
        let refused = |text: &[u8]| {
            let disk = written(text);
            let error = open(&disk, 2).expect("opened").next_boot().expect_err("damaged");
            assert_eq!(error.exit(), Exit::BadData);
            assert!(error.to_string().starts_with("/ckpt/boot: bad at byte 0: "), "{error}");
            assert_eq!(disk.bytes(&path()).expect("there"), text);
        };
        let good = text_of(1234).into_bytes();
        assert_eq!(open(&written(&good), 2).expect("opened").next_boot().expect("good"), 1234);
        for cut in 0..good.len() {
            refused(&good[..cut]);
        }
        for bit in 0..8 * good.len() {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused(&flipped);
        }
        refused(&[&good[..], b"\n"].concat());
        refused(&vec![0; 4096]);
        refused(text_of(u32::MAX).as_bytes());
    }
}
