//! As much of Rust as the rules need: tokens, inline modules, paths. No types, no macros.

/// An identifier, `::`, a text with its quotation marks, or one other character that is no space. Comments are left out.
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let (start, from) = (i, line);
        let text = match at(i) {
            '/' if at(i + 1) == '/' => {
                i = (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len());
                None
            }
            '/' if at(i + 1) == '*' => {
                i = end_of_comment(&chars, i);
                None
            }
            c if c.is_whitespace() => {
                i += 1;
                None
            }
            '"' => {
                i = end_of_string(&chars, i + 1);
                Some(chars[start..i].iter().collect())
            }
            // A lifetime or label has no closing quote right after its one character.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                let body = if at(i + 1) == '\\' { i + 3 } else { i + 2 };
                i = (body..chars.len()).find(|&j| at(j) == '\'').map_or(chars.len(), |j| j + 1);
                Some("\"\"".to_owned())
            }
            c if is_word(c) => {
                i = (i..chars.len()).find(|&j| !is_word(at(j))).unwrap_or(chars.len());
                let word: String = chars[start..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && at(i + hashes) == '"' {
                    i = end_of_raw_string(&chars, i + hashes + 1, hashes);
                    Some(chars[start + word.len() + hashes..i - hashes].iter().collect())
                } else {
                    Some(word)
                }
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                Some("::".to_owned())
            }
            c => {
                i += 1;
                Some(c.to_string())
            }
        };
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
        out.extend(text.map(|text| Token { text, line: from }));
    }
    out
}

fn end_of_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn end_of_string(chars: &[char], mut i: usize) -> usize {
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn end_of_raw_string(chars: &[char], mut i: usize, hashes: usize) -> usize {
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// The inline modules of a file.
pub(crate) struct Inner {
    /// Tokens from..to, and whether it is test code.
    modules: Vec<(usize, usize, bool)>,
}

impl Inner {
    pub(crate) fn of(tokens: &[Token]) -> Self {
        let mut modules = Vec::new();
        for (i, w) in tokens.windows(3).enumerate() {
            if w[0].text == "mod" && w[2].text == "{" {
                let mut depth = 0;
                let end = tokens[i + 2..].iter().position(|t| {
                    depth += i32::from(t.text == "{") - i32::from(t.text == "}");
                    depth == 0
                });
                modules.push((i, end.map_or(tokens.len(), |e| e + i + 2), is_cfg_test(tokens, i)));
            }
        }
        Self { modules }
    }

    fn around(&self, at: usize) -> impl Iterator<Item = &(usize, usize, bool)> {
        self.modules.iter().filter(move |(from, to, _)| (*from..*to).contains(&at))
    }

    pub(crate) fn in_test(&self, at: usize) -> bool {
        self.around(at).any(|(_, _, test)| *test)
    }

    pub(crate) fn depth(&self, at: usize) -> usize {
        self.around(at).count()
    }
}

/// One path in the code, `use` trees taken apart.
pub(crate) struct UsedPath {
    pub(crate) segments: Vec<String>,
    /// The token it starts at.
    pub(crate) at: usize,
}

pub(crate) fn paths(tokens: &[Token]) -> Vec<UsedPath> {
    let mut out = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let before = i.checked_sub(1).map_or("", |b| tokens[b].text.as_str());
        let word = tokens[i].text.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let starts = word && before != "::" && before != "." && tokens.get(i + 1).is_some_and(|t| t.text == "::");
        if before == "use" || starts {
            i = use_tree(tokens, i, &[], &mut out);
        } else {
            i += 1;
        }
    }
    out
}

/// Reads the tree at `i` and returns the token after it.
fn use_tree(tokens: &[Token], mut i: usize, prefix: &[String], out: &mut Vec<UsedPath>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let at = i;
    let mut segments = prefix.to_vec();
    if text(i) == "::" {
        i += 1;
    }
    loop {
        if text(i) == "{" {
            i += 1;
            while i < tokens.len() && text(i) != "}" {
                i = if text(i) == "," { i + 1 } else { use_tree(tokens, i, &segments, out).max(i + 1) };
            }
            return i + 1;
        }
        if !text(i).starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '*') {
            break;
        }
        if text(i) != "*" && (text(i) != "self" || segments.is_empty()) {
            segments.push(text(i).to_owned());
        }
        i += 1;
        if text(i) != "::" {
            break;
        }
        i += 1;
    }
    if text(i) == "as" {
        i += 2;
    }
    if !segments.is_empty() {
        out.push(UsedPath { segments, at });
    }
    i.max(at + 1)
}

/// The path from the crate's root, or `None` for one that starts at a package or at something of this file.
pub(crate) fn resolve(segments: &[String], module: &[String], inner_depth: usize) -> Option<Vec<String>> {
    match segments[0].as_str() {
        "crate" | "retry_ladder" => Some(segments[1..].to_vec()),
        "super" | "self" => {
            let ups = segments.iter().take_while(|s| *s == "super").count();
            let skip = segments.iter().take_while(|s| *s == "super" || *s == "self").count();
            // Out of the inline modules first; what they hold has the file's own place.
            let keep = module.len().saturating_sub(ups.saturating_sub(inner_depth));
            Some(module[..keep].iter().chain(&segments[skip..]).cloned().collect())
        }
        _ => None,
    }
}

/// Whether `#[cfg(test)]` stands among the attributes before the item whose `mod` is token `at`.
pub(crate) fn is_cfg_test(tokens: &[Token], at: usize) -> bool {
    let start = tokens[..at].iter().rposition(|t| [";", "{", "}"].contains(&t.text.as_str())).map_or(0, |i| i + 1);
    let words: Vec<_> = tokens[start..at].iter().map(|t| t.text.as_str()).collect();
    words.windows(6).any(|w| w == ["#", "[", "cfg", "(", "test", ")"])
}
