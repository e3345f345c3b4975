//! Texts from records, which anybody may have written, as a terminal may be given them: whatever would move its cursor,
//! set its title or answer in the user's name is shown as `�`. JSON escapes for itself.

use std::borrow::Cow;
use std::io::{self, Write};

/// The text without control characters but line breaks and tabs.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(is_control) { text.replace(is_control, "\u{fffd}").into() } else { text.into() }
}

/// The text on one line: what would end it, turn its direction or move the cursor is shown as a string's escape (`\n`), so
/// that a record cannot forge a row of a table.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(breaks) {
        return text.into();
    }
    let shown = |c: char| if breaks(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect::<String>().into()
}

/// Writes texts made [`plain`]. What is written at once must be whole characters, as formatting does: so this comes before
/// a buffer.
pub(super) struct Plain<W>(pub(super) W);

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(plain(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_commands() {
        let hostile = "a\x1b]0;title\x07\x1b[31m\u{9b}2J\r\x08b\tc\nd";
        let shown = "a\u{fffd}]0;title\u{fffd}\u{fffd}[31m\u{fffd}2J\u{fffd}\u{fffd}b\tc\nd";
        assert_eq!(plain(hostile), shown);
        let mut out = Plain(Vec::new());
        write!(out, "{hostile}").unwrap();
        assert_eq!(String::from_utf8(out.0).unwrap(), shown);
        assert!(matches!(plain("ordinary é"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_text_cannot_leave_its_line() {
        assert_eq!(one_line("a\nb\r\tc\x1b[A\u{85}\u{2028}d\u{202e}e"), r"a\nb\r\tc\u{1b}[A\u{85}\u{2028}d\u{202e}e");
        assert!(matches!(one_line("ordinary é"), Cow::Borrowed(_)));
    }
}
