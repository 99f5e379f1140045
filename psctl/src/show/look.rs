//! How text may look: width, colours, characters. Found once per stream, then only passed on.

use console::{Style, Term};

/// Columns where the width is not known.
const WIDTH_DEFAULT: usize = 80;
/// Narrower terminals get lines of this width all the same: tables need some room.
const WIDTH_MIN: usize = 40;
/// Lines longer than this are hard to read.
const WIDTH_MAX: usize = 120;

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Whether to send colour codes.
    pub colour: bool,
    /// Whether characters beyond ASCII are shown.
    pub unicode: bool,
}

/// What something is, for the colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// The figure that matters.
    Strong,
    /// Labels and lines.
    Faint,
    /// All is well.
    Good,
    /// Something to look at.
    Warn,
    /// Something failed.
    Bad,
    /// Time spent computing.
    Compute,
    /// Time spent waiting for others.
    Wait,
    /// Time spent on the wire.
    Wire,
}

impl Look {
    /// 80 columns, no colours, characters as given: what a pipe or a file gets.
    pub fn plain(unicode: bool) -> Self {
        Self { width: WIDTH_DEFAULT, colour: false, unicode }
    }

    /// What stdout can show now. `NO_COLOR` and the locale are honoured.
    pub fn stdout() -> Self {
        Self::of(&Term::stdout(), |name| std::env::var(name).ok())
    }

    /// What stderr can show now. `NO_COLOR` and the locale are honoured.
    pub fn stderr() -> Self {
        Self::of(&Term::stderr(), |name| std::env::var(name).ok())
    }

    fn of(term: &Term, variable: impl Fn(&str) -> Option<String>) -> Self {
        let width = term.size_checked().map(|(_rows, columns)| usize::from(columns));
        Self::from_environment(width.filter(|_| term.is_term()), variable)
    }

    /// `terminal_width` is `None` where there is no terminal.
    fn from_environment(
        terminal_width: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        // The first that is set decides, as in setlocale(3). A container sets none of them, and
        // what looks at its output shows UTF-8.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name));
        let utf8 = locale.is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self {
            width: terminal_width.unwrap_or(WIDTH_DEFAULT).clamp(WIDTH_MIN, WIDTH_MAX),
            colour: terminal_width.is_some() && !dumb && set("NO_COLOR").is_none(),
            unicode: utf8 && !dumb,
        }
    }

    /// `text` in the colours of `tone`, or as it is.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let style = Style::new().force_styling(true);
        let style = match tone {
            Tone::Strong => style.bold(),
            Tone::Faint => style.dim(),
            Tone::Good => style.green(),
            Tone::Warn => style.yellow().bold(),
            Tone::Bad => style.red().bold(),
            Tone::Compute => style.blue(),
            Tone::Wait => style.yellow(),
            Tone::Wire => style.magenta(),
        };
        style.apply_to(text).to_string()
    }

    /// The first where characters beyond ASCII are shown, else the second.
    pub fn pick<'a>(&self, unicode: &'a str, ascii: &'a str) -> &'a str {
        if self.unicode { unicode } else { ascii }
    }

    /// Text from elsewhere made safe to print on one line: control characters (a terminal would
    /// obey them) become `?`, and so does what is beyond ASCII where that is not shown.
    pub fn clean(&self, text: &str) -> String {
        let shown = |c: char| !c.is_control() && (self.unicode || c.is_ascii());
        text.chars().map(|c| if shown(c) { c } else { '?' }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(width: Option<usize>, variables: &[(&str, &str)]) -> Look {
        Look::from_environment(width, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_pipe_gets_eighty_plain_columns() {
        assert_eq!(look(None, &[]), Look::plain(true));
        assert_eq!(look(None, &[("LANG", "C")]), Look::plain(false));
    }

    #[test]
    fn a_terminal_gets_colours_unless_told_otherwise() {
        assert_eq!(look(Some(100), &[]), Look { width: 100, colour: true, unicode: true });
        assert!(!look(Some(100), &[("NO_COLOR", "1")]).colour);
        assert!(look(Some(100), &[("NO_COLOR", "")]).colour, "an empty NO_COLOR does not count");
        assert!(!look(Some(100), &[("TERM", "dumb")]).colour);
        assert_eq!(look(Some(7), &[]).width, WIDTH_MIN);
        assert_eq!(look(Some(700), &[]).width, WIDTH_MAX);
    }

    #[test]
    fn the_first_locale_that_is_set_decides() {
        assert!(look(None, &[("LC_ALL", "en_US.UTF-8"), ("LANG", "C")]).unicode);
        assert!(!look(None, &[("LC_ALL", "POSIX"), ("LANG", "en_US.UTF-8")]).unicode);
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(Look::plain(true).clean("a\x1b[2Jb\nc\u{9b}é"), "a?[2Jb?c?é");
        assert_eq!(Look::plain(false).clean("é"), "?");
    }

    #[test]
    fn paint_adds_codes_only_where_colours_are_on() {
        assert_eq!(Look::plain(true).paint(Tone::Bad, "x"), "x");
        let colour = Look { colour: true, ..Look::plain(true) };
        assert!(colour.paint(Tone::Bad, "x").starts_with('\x1b'));
    }
}
