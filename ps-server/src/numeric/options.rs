//! `NAME,option=value,...` as flags have it: every option is asked for by name, and what nobody
//! asked for is an error.

use ps_common::exit::ExitError;

/// Numbers that an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// At least 0.
    NotNegative,
    /// Above 0, in f32 as well.
    Positive,
    /// At least 0 and below 1.
    BelowOne,
}

impl Range {
    pub(super) fn holds(self, value: f64) -> bool {
        match self {
            Self::NotNegative => value >= 0.0,
            Self::Positive => value >= f64::from(f32::MIN_POSITIVE),
            Self::BelowOne => (0.0..1.0).contains(&value),
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::NotNegative => "a finite number of at least 0",
            Self::Positive => "a finite number above 0 (at least 1.2e-38)",
            Self::BelowOne => "a number of at least 0 and below 1",
        }
    }
}

/// The options of one flag.
#[derive(Debug)]
pub(super) struct Options<'a> {
    flag: &'static str,
    name: &'a str,
    given: Vec<(&'a str, &'a str)>,
    known: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// Takes `text` apart.
    pub(super) fn parse(flag: &'static str, text: &'a str) -> Result<Self, ExitError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut options = Self { flag, name, given: Vec::new(), known: Vec::new() };
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return Err(options.refuse(&format!("`{part}` is not of the form option=value")));
            };
            options.given.push((key.trim(), value.trim()));
        }
        Ok(options)
    }

    /// What the options belong to.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// A configuration error about this flag.
    pub(super) fn refuse(&self, what: &str) -> ExitError {
        ExitError::config(format!("{} {}: {what}", self.flag, self.name))
    }

    /// A number, by any of its names; `None` where it is not given.
    pub(super) fn number(
        &mut self,
        names: &[&'static str],
        range: Range,
    ) -> Result<Option<f64>, ExitError> {
        let Some((key, text)) = self.take(names)? else { return Ok(None) };
        let value = text.parse().ok().filter(|&v: &f64| v.is_finite() && range.holds(v));
        let refusal = || self.refuse(&format!("{key} is `{text}`; it must be {}", range.words()));
        value.map(Some).ok_or_else(refusal)
    }

    /// A whole number of at least 1; `None` where it is not given.
    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<u64>, ExitError> {
        let Some((key, text)) = self.take(&[name])? else { return Ok(None) };
        let value = text.parse().ok().filter(|&n| n > 0u64);
        let what = || format!("{key} is `{text}`; it must be a whole number of at least 1");
        value.map(Some).ok_or_else(|| self.refuse(&what()))
    }

    /// A value that has to be there.
    pub(super) fn required<V>(&self, value: Option<V>, example: &str) -> Result<V, ExitError> {
        value.ok_or_else(|| {
            self.refuse(&format!("say {}, as in {}{example}", self.names(), self.name))
        })
    }

    /// Everything that was given must have been asked for.
    pub(super) fn finish(self) -> Result<(), ExitError> {
        let Some((key, value)) = self.given.first() else { return Ok(()) };
        let has = if self.known.is_empty() {
            "it has no options".to_owned()
        } else {
            format!("its options are {}", self.names())
        };
        Err(self.refuse(&format!("`{key}={value}` is no option of it; {has}")))
    }

    fn names(&self) -> String {
        self.known.join(", ")
    }

    fn take(
        &mut self,
        names: &[&'static str],
    ) -> Result<Option<(&'static str, &'a str)>, ExitError> {
        self.known.extend(names.first());
        let mut found = None;
        for &name in names {
            while let Some(at) = self.given.iter().position(|(key, _)| *key == name) {
                if found.is_some() {
                    return Err(self.refuse(&format!(
                        "{} is given twice",
                        names.join(" (or ") + if names.len() > 1 { ")" } else { "" }
                    )));
                }
                found = Some((name, self.given.remove(at).1));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_every_name_and_the_rest_is_refused() {
        let mut options = Options::parse("--flag", "thing, mu=0.5,every=3").expect("well formed");
        assert_eq!(options.name(), "thing");
        let mu = options.number(&["momentum", "mu"], Range::BelowOne).expect("a number");
        assert_eq!(mu, Some(0.5));
        assert_eq!(options.number(&["eps"], Range::Positive).expect("absent"), None);
        assert_eq!(options.count("every").expect("a count"), Some(3));
        options.finish().expect("all used");
    }

    #[test]
    fn errors_name_flag_option_and_what_is_possible() {
        let number = |text| {
            let mut options = Options::parse("--flag", text)?;
            options.number(&["mu", "momentum"], Range::BelowOne)?;
            options.count("n")?;
            options.finish()
        };
        for (text, named) in [
            ("thing,mu", "--flag thing: `mu`"),
            ("thing,mu=1", "mu is `1`"),
            ("thing,momentum=x", "momentum is `x`"),
            ("thing,mu=0,momentum=0", "mu (or momentum) is given twice"),
            ("thing,mu=0.1,mu=0.1", "twice"),
            ("thing,n=0", "n is `0`"),
            ("thing,n=1.5", "n is `1.5`"),
            ("thing,what=2", "`what=2` is no option of it; its options are mu, n"),
        ] {
            let error = number(text).expect_err(text);
            assert!(error.message.contains(named), "{error}");
        }
    }
}
