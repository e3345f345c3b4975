//! Groups of like errors: class and error text, with everything folded that differs from event to event. Pure.
//!
//! [`fold`] replaces quoted text by `'…'` and every word with a digit in it (numbers, ids, addresses, times) by `#`;
//! a [`Fingerprint`] is the hash of what is left. Both are part of what people write into scripts: a change of either
//! makes old fingerprints find nothing.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// Names a group of like errors: 12 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

/// Not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fingerprint: 12 hex digits, as `pipeline dlq groups` prints them")]
pub struct NoFingerprint(String);

impl Fingerprint {
    /// Of a class and a folded text.
    pub fn of(class: &str, folded: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(class.as_bytes());
        hash.update([0]);
        hash.update(folded.as_bytes());
        let digest = hash.finalize();
        Self(digest.iter().take(6).fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let digits = text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(n) if digits => Ok(Self(n)),
            _ => Err(NoFingerprint(text.chars().take(64).collect())),
        }
    }
}

/// Longest text that is looked at, in bytes: twice what the ladder writes. Foreign records may say more.
const MAX_TEXT: usize = 1024;

/// Appends `text` to `out` with all that differs from event to event folded.
pub fn fold(text: &str, out: &mut String) {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let mut rest = &text[..end];
    let mut word_before = false;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = rest.trim_start();
            // One space, none at the ends.
            if !out.is_empty() && !rest.is_empty() {
                out.push(' ');
            }
            word_before = false;
        } else if matches!(c, '"' | '\'' | '`' | '“' | '‘' | '«') && !word_before {
            rest = unquoted(rest, c, out);
            word_before = false;
        } else if is_word(c) {
            let word = word(rest);
            rest = &rest[word.len()..];
            if word.bytes().any(|b| b.is_ascii_digit()) || is_hex_id(word) {
                out.push('#')
            } else {
                out.push_str(word)
            }
            word_before = true;
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            word_before = c == '#';
        }
    }
}

/// Folds a quotation; a mark without its partner is a character like others. What follows it.
fn unquoted<'t>(text: &'t str, open: char, out: &mut String) -> &'t str {
    let close = match open {
        '“' => '”',
        '‘' => '’',
        '«' => '»',
        same => same,
    };
    let inside = &text[open.len_utf8()..];
    match inside.find(close) {
        Some(end) => {
            out.push_str("'…'");
            &inside[end + close.len_utf8()..]
        }
        None => {
            out.push(open);
            inside
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The word at the head of `text`, with what joins numbers and ids: `10.5s`, `2026-11-21T10:00`, `10.0.0.1:9092`.
fn word(text: &str) -> &str {
    let mut end = 0;
    let mut digits = false;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let joins = matches!(c, '.' | ':' | '-' | '/' | '@' | '+')
            && digits
            && chars.peek().is_some_and(|(_, next)| is_word(*next));
        if !is_word(c) && !joins {
            break;
        }
        digits |= c.is_ascii_digit();
        end = at + c.len_utf8();
    }
    &text[..end]
}

/// Hex digits alone, as many as no word of a language has.
fn is_hex_id(word: &str) -> bool {
    word.len() >= 8 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> String {
        let mut out = String::new();
        fold(text, &mut out);
        out
    }

    #[test]
    fn what_differs_from_event_to_event_is_folded() {
        let check = |text: &str, expected: &str| assert_eq!(folded(text), expected, "{text}");
        check("connection refused", "connection refused");
        check("order 4711 not found", "order # not found");
        check("timed out after 10.5s", "timed out after #");
        check("no route to 10.0.0.1:9092", "no route to #");
        check("at 2026-11-21T10:00:03+01:00 down", "at # down");
        check("id 0af76519-16cd-43dd-8448-eb211c80319c gone", "id # gone");
        check("id deadbeefdeadbeef gone", "id # gone");
        check("a facade", "a facade");
        check("customer \"Ann O'Hara\" unknown", "customer '…' unknown");
        check("customer 'Ann' and 'Bob'", "customer '…' and '…'");
        check("can't read", "can't read");
        check("it's a 'b'", "it's a '…'");
        check("an open \" mark 7", "an open \" mark #");
        check("  two   spaces\tand a tab ", "two spaces and a tab");
        check("«Käse» für „Ömer“ 3", "'…' für „Ömer“ #");
        check("http://shop.example/orders/17?x=1", "http://shop.example/orders/#?x=#");
        check("", "");
        check("(12, 13)", "(#, #)");
        check(&"«".repeat(1_000_000), &"«".repeat(MAX_TEXT / 2));
    }

    #[test]
    fn like_errors_have_one_fingerprint_and_unlike_ones_do_not() {
        let of = |class: &str, text: &str| Fingerprint::of(class, &folded(text));
        assert_eq!(of("permanent", "order 1 not found"), of("permanent", "order 22 not found"));
        assert_ne!(of("permanent", "order 1 not found"), of("exhausted", "order 1 not found"));
        assert_ne!(of("permanent", "order 1 not found"), of("permanent", "order 1 not paid"));
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        let fingerprint = Fingerprint::of("permanent", "order # not found");
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!(fingerprint.to_string().len(), 12);
        for wrong in ["", "xyz", "0123456789abc", "+12345678901", "01234567890"] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn other_digits_change_nothing(text in "([ a-z'\"#.:/-]|[0-9]){0,60}|.{0,60}", shift in 1_u8..10) {
            let other = text.chars().map(|c| match c.to_digit(10) {
                Some(digit) => char::from(b'0' + (digit as u8 + shift) % 10),
                None => c,
            });
            proptest::prop_assert_eq!(folded(&other.collect::<String>()), folded(&text));
        }
    }
}
