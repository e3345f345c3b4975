//! Texts from records, which anybody may have written, as a terminal may be given them: whatever would move its cursor,
//! set its title or answer in the user's name is shown as `�`. JSON escapes for itself.

use std::borrow::Cow;
use std::io::{self, Write};

/// The text without control characters but line breaks and tabs.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(is_control) { text.replace(is_control, "\u{fffd}").into() } else { text.into() }
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
}
