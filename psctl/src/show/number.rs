//! Figures as a person reads them. Rounded for the eye; files and JSON carry the exact ones.

/// `60000` as `60,000`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A large count in three or four characters and a letter: `950`, `60.0 k`, `3.00 M`.
pub fn compact(n: u64) -> String {
    const LETTERS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    let mut value = n as f64;
    let mut letter = None;
    for next in LETTERS {
        if value < 999.5 {
            break;
        }
        value /= 1e3;
        letter = Some(next);
    }
    match letter {
        None => n.to_string(),
        Some(letter) if value >= 99.95 => format!("{value:.0} {letter}"),
        Some(letter) if value >= 9.995 => format!("{value:.1} {letter}"),
        Some(letter) => format!("{value:.2} {letter}"),
    }
}

/// A span of time in its natural unit: `850 ms`, `1.2 s`, `2 min 05 s`, `3 h 02 min`.
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "?".to_owned();
    }
    if s == 0.0 {
        return "0 s".to_owned();
    }
    // Each limit is where the unit below would round up to the next one.
    if s < 0.000_999_5 {
        return format!("{:.0} us", s * 1e6);
    }
    if s < 0.009_95 {
        return format!("{:.1} ms", s * 1e3);
    }
    if s < 0.999_5 {
        return format!("{:.0} ms", s * 1e3);
    }
    if s < 59.95 {
        return format!("{s:.1} s");
    }
    let whole = s.round() as u64;
    if whole < 3600 {
        return format!("{} min {:02} s", whole / 60, whole % 60);
    }
    format!("{} h {:02} min", count(whole / 3600), whole % 3600 / 60)
}

/// A loss: four decimals near one, more or an exponent where that would hide it.
pub fn loss(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    match value.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{value:.4e}"),
        a if a >= 1000.0 => format!("{value:.1}"),
        a if a >= 100.0 => format!("{value:.2}"),
        a if a >= 10.0 => format!("{value:.3}"),
        a if a >= 0.1 => format!("{value:.4}"),
        a if a >= 0.01 => format!("{value:.5}"),
        _ => format!("{value:.6}"),
    }
}

/// A share of one, with a digit after the point: `85.3 %`.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { "?".to_owned() }
}

/// Something per second: three digits that mean something.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() || r < 0.0 => "?".to_owned(),
        r if r >= 99.95 => count(r.round() as u64),
        r if r >= 9.995 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

/// A number that is whole as often as not: `40`, `12.5`.
pub fn rounds(n: f64) -> String {
    if !n.is_finite() || n < 0.0 {
        return "?".to_owned();
    }
    let tenths = (n * 10.0).round() / 10.0;
    if tenths.fract() == 0.0 {
        count(tenths as u64)
    } else {
        format!("{}.{:.0}", count(tenths as u64), tenths.fract() * 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        let shown = [0, 999, 1000, 60_000, 1_234_567].map(count);
        assert_eq!(shown, ["0", "999", "1,000", "60,000", "1,234,567"]);
    }

    #[test]
    fn large_counts_get_a_letter() {
        let shown = [0, 950, 1000, 60_000, 999_960, 3_000_000, u64::MAX].map(compact);
        assert_eq!(shown, ["0", "950", "1.00 k", "60.0 k", "1.00 M", "3.00 M", "18.4 E"]);
    }

    #[test]
    fn times_choose_their_unit_and_never_show_sixty() {
        let cases = [
            (0.0, "0 s"),
            (0.000_35, "350 us"),
            (0.003_21, "3.2 ms"),
            (0.85, "850 ms"),
            (0.9997, "1.0 s"),
            (1.24, "1.2 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 00 s"),
            (125.0, "2 min 05 s"),
            (3599.6, "1 h 00 min"),
            (10_920.0, "3 h 02 min"),
            (f64::NAN, "?"),
        ];
        for (value, shown) in cases {
            assert_eq!(seconds(value), shown, "{value}");
        }
    }

    #[test]
    fn losses_keep_their_digits() {
        let cases = [
            (10f64.ln(), "2.3026"),
            (0.81234, "0.8123"),
            (0.012_345_6, "0.01235"),
            (1.5e-7, "1.5000e-7"),
            (4489.4, "4489.4"),
            (6.5e9, "6.5000e9"),
            (-0.5, "-0.5000"),
            (0.0, "0"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, shown) in cases {
            assert_eq!(loss(value), shown, "{value}");
        }
    }

    #[test]
    fn rates_rounds_and_shares() {
        assert_eq!([0.25, 80.64, 99.97, 1234.4].map(rate), ["0.25", "80.6", "100", "1,234"]);
        assert_eq!([40.0, 12.5, 12.96, 1000.0].map(rounds), ["40", "12.5", "13", "1,000"]);
        assert_eq!(percent(0.8531), "85.3 %");
        assert_eq!(percent(f64::NAN), "?");
    }
}
