//! How long messages travel: latency, bandwidth, the server's own link, partitions.
//!
//! Each worker has a link of its own, full duplex. A message of B bytes takes B / bandwidth, then
//! the latency. Where the server's link has a bandwidth, too, all messages of one direction go
//! through it one after the other in the order in which they were begun, each at the pace of the
//! slower of the two links.
//!
//! A message that begins during a partition of its worker waits for the partition's end. One that
//! would arrive during a partition is lost, and sent again at its end: what a TCP connection does
//! that outlives it.

use std::time::Duration;

use ps_common::exit::ExitError;
use ps_common::units::parse_duration;

use super::faults::Faults;
use super::pace::span;
use super::queue::Time;

/// Bytes of a message besides theta or a gradient.
pub(super) const HEADER_BYTES: u64 = 64;

/// What the flags say of links.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Links {
    pub(super) latency: Duration,
    /// Bits per second of each worker's link.
    pub(super) bandwidth: f64,
    /// Bits per second of the server's link; `None`: it holds nobody up.
    pub(super) server_bandwidth: Option<f64>,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives.
    Arrives(Time),
    /// It is to be sent again then: a partition ends.
    Again(Time),
}

/// The links and what goes through them.
#[derive(Debug)]
pub(super) struct Network {
    links: Links,
    /// When the server's link is free again, by way.
    server_free: [Time; 2],
}

impl Network {
    pub(super) fn new(links: Links) -> Self {
        Self { links, server_free: [Time::ZERO; 2] }
    }

    /// Sends `bytes` between `rank` and the server.
    pub(super) fn send(
        &mut self,
        now: Time,
        (rank, way): (u32, Way),
        bytes: u64,
        faults: &Faults,
    ) -> Fate {
        if let Some(end) = faults.partition_end(rank, now, now) {
            return Fate::Again(end);
        }
        let bits = bytes as f64 * 8.0;
        let mut begin = now;
        let mut pace = self.links.bandwidth;
        if let Some(shared) = self.links.server_bandwidth {
            let free = &mut self.server_free[way as usize];
            begin = begin.max(*free);
            *free = begin + span(bits / shared);
            pace = pace.min(shared);
        }
        let arrival = begin + span(bits / pace) + self.links.latency;
        match faults.partition_end(rank, now, arrival) {
            Some(end) => Fate::Again(end),
            None => Fate::Arrives(arrival),
        }
    }
}

/// What `--apply-time` says: how long the server takes for an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ApplyTime {
    /// For each update.
    PerUpdate(f64),
    /// For each 10^6 bytes of the gradients that an update is made of.
    PerMegabyte(f64),
}

impl ApplyTime {
    /// Reads `0.1ms` or `0.5ms/MB`.
    ///
    /// # Errors
    /// Configuration, naming the flag.
    pub(super) fn parse(text: &str) -> Result<Self, ExitError> {
        let seconds = |text: &str| {
            parse_duration(text)
                .map(|d| d.as_secs_f64())
                .map_err(|what| ExitError::config(format!("--apply-time: {what}, or 0.5ms/MB")))
        };
        match text.strip_suffix("/MB") {
            Some(time) => Ok(Self::PerMegabyte(seconds(time)?)),
            None => Ok(Self::PerUpdate(seconds(text)?)),
        }
    }

    /// For an update made of `n_gradients` of `gradient_bytes` each.
    pub(super) fn of(self, n_gradients: usize, gradient_bytes: u64) -> Duration {
        match self {
            Self::PerUpdate(seconds) => span(seconds),
            Self::PerMegabyte(seconds) => {
                span(seconds * gradient_bytes as f64 / 1e6 * n_gradients as f64)
            }
        }
    }
}

/// Reads bits per second: `100Mbit/s`, `1Gbit/s`, `2.5G`, `64kbit`.
///
/// # Errors
/// Configuration, naming `flag`.
pub(super) fn parse_bandwidth(flag: &str, text: &str) -> Result<f64, ExitError> {
    let wrong = || {
        ExitError::config(format!(
            "{flag} {text}: expected bits per second, e.g. 100Mbit/s or 1Gbit/s"
        ))
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.strip_suffix("/s").unwrap_or(unit);
    let prefix = unit.strip_suffix("bit").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let scale = match prefix {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bits = number * scale;
    if bits.is_finite() && bits >= 1.0 { Ok(bits) } else { Err(wrong()) }
}

/// Reads a count of bytes: `80`, `4k`, `100M` (powers of ten).
///
/// # Errors
/// Configuration, naming the flag.
pub(super) fn parse_theta_bytes(text: &str) -> Result<u64, ExitError> {
    let (digits, scale) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    bytes.filter(|n| *n <= 1 << 50).ok_or_else(|| {
        ExitError::config(format!(
            "--theta-bytes {text}: expected a number of bytes, e.g. 4000000 or 4M"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn network(server_bandwidth: Option<f64>) -> Network {
        Network::new(Links { latency: MS, bandwidth: 8e6, server_bandwidth })
    }

    #[test]
    fn a_message_takes_its_bytes_by_the_bandwidth_and_the_latency() {
        let mut network = network(None);
        let faults = Faults::default();
        // 10,000 bytes at 8 Mbit/s are 10 ms.
        for rank in [0, 1] {
            let fate = network.send(5 * MS, (rank, Way::Up), 10_000, &faults);
            assert_eq!(fate, Fate::Arrives(16 * MS), "each worker has its own link");
        }
    }

    #[test]
    fn the_servers_link_is_shared_in_each_way() {
        let mut network = network(Some(16e6));
        let faults = Faults::default();
        let mut arrival = |way| match network.send(Time::ZERO, (0, way), 10_000, &faults) {
            Fate::Arrives(at) => at.as_millis(),
            Fate::Again(_) => panic!("no partition"),
        };
        // 5 ms each in the server's link, 10 ms in the worker's.
        assert_eq!([arrival(Way::Up), arrival(Way::Up), arrival(Way::Up)], [11, 16, 21]);
        assert_eq!(arrival(Way::Down), 11);
    }

    #[test]
    fn a_partition_holds_messages_up_and_loses_those_on_their_way() {
        let mut network = network(None);
        let faults =
            Faults::parse(&["partition:ranks=1-2,from=12ms,to=20ms".to_owned()], None).expect("ok");
        let mut send = |now: u32, rank| network.send(now * MS, (rank, Way::Up), 10_000, &faults);
        assert_eq!(send(0, 1), Fate::Arrives(11 * MS));
        assert_eq!(send(5, 1), Fate::Again(20 * MS), "lost on its way");
        assert_eq!(send(15, 2), Fate::Again(20 * MS), "not even begun");
        assert_eq!(send(15, 0), Fate::Arrives(26 * MS));
        assert_eq!(send(20, 1), Fate::Arrives(31 * MS));
    }

    #[test]
    fn units_are_bits_for_links_and_bytes_for_theta() {
        for (text, bits) in [
            ("1Gbit/s", 1e9),
            ("100Mbit/s", 1e8),
            ("2.5G", 2.5e9),
            ("64kbit", 64e3),
            ("0.1Gb/s", 1e8),
            ("500", 500.0),
        ] {
            assert_eq!(parse_bandwidth("--bandwidth", text).ok(), Some(bits), "{text}");
        }
        for text in ["", "fast", "0", "-1G", "1GB/s", "1e400", "1Gbit/h"] {
            let error = parse_bandwidth("--server-bandwidth", text).expect_err(text);
            assert!(error.message.starts_with("--server-bandwidth"), "{error}");
        }
        assert_eq!(parse_theta_bytes("4M").ok(), Some(4_000_000));
        assert_eq!(parse_theta_bytes("80").ok(), Some(80));
        for text in ["", "-1", "4MB", "99999999G"] {
            assert!(parse_theta_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_update_takes_its_time_whole_or_by_the_megabyte() {
        let time = ApplyTime::parse("0.5ms").expect("valid");
        assert_eq!(time.of(7, 1_000_000), MS / 2);
        let time = ApplyTime::parse("0.5ms/MB").expect("valid");
        assert_eq!(time.of(4, 2_000_000), 4 * MS);
        assert!(ApplyTime::parse("fast").is_err());
    }
}
