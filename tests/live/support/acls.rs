//! Rights on a broker of a test's own, given by Kafka's wire protocol (`CreateAcls`, `DescribeAcls`, `DeleteAcls`, version
//! 1 each): librdkafka's Rust client has no call for them, and Kafka's own tool takes seconds.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CREATE: i16 = 30;
const DESCRIBE: i16 = 29;
const DELETE: i16 = 31;
const ANY: u8 = 1;
const LITERAL: u8 = 3;
const PREFIXED: u8 = 4;
const ALLOW: u8 = 3;
/// Everything in a filter: no name.
const NULL: [u8; 2] = (-1_i16).to_be_bytes();

/// An operation on something; a name that ends in `*` is a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    /// `topic`, `group` or `transactional-id`.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) operation: String,
}

/// Gives the user exactly these rights, each once, and waits until the broker knows.
///
/// # Panics
/// When the broker refuses, or knows of no such thing or operation.
pub(crate) fn set(broker: &str, user: &str, rights: &[Right]) {
    let is_first = |(i, right): &(usize, &Right)| !rights[..*i].contains(right);
    let rights: Vec<_> = rights.iter().enumerate().filter(is_first).map(|(_, right)| right).collect();
    let principal = text(&format!("User:{user}"));
    let filter = [&[ANY][..], &NULL, &[ANY], &principal, &NULL, &[ANY, ANY]].concat();
    request(broker, DELETE, &[&1_i32.to_be_bytes()[..], &filter].concat());
    let mut create = i32::try_from(rights.len()).expect("few").to_be_bytes().to_vec();
    for right in &rights {
        let (pattern, name) = match right.name.strip_suffix('*') {
            Some(prefix) => (PREFIXED, prefix),
            None => (LITERAL, right.name.as_str()),
        };
        create.push(code(&right.kind, &[("topic", 2), ("group", 3), ("transactional-id", 5)]));
        create.extend(text(name));
        create.push(pattern);
        create.extend_from_slice(&principal);
        create.extend(text("*"));
        let operations = [("Read", 3), ("Write", 4), ("Create", 5), ("Describe", 8), ("DescribeConfigs", 10)];
        create.extend([code(&right.operation, &operations), ALLOW]);
    }
    let answer = request(broker, CREATE, &create);
    // Throttle time and count, then for each the code 0 and an empty text.
    assert!(answer[8..].iter().all(|byte| *byte == 0), "{}", String::from_utf8_lossy(&answer));
    let deadline = Instant::now() + Duration::from_secs(60);
    let known = || request(broker, DESCRIBE, &filter).windows(principal.len()).filter(|w| *w == principal).count();
    while known() != rights.len() {
        assert!(Instant::now() < deadline, "the broker knows {} of {} rights", known(), rights.len());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn code(word: &str, codes: &[(&str, u8)]) -> u8 {
    codes.iter().find(|(name, _)| *name == word).unwrap_or_else(|| panic!("`{word}` is none of {codes:?}")).1
}

fn text(text: &str) -> Vec<u8> {
    [&i16::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
}

/// The answer's body.
fn request(broker: &str, key: i16, body: &[u8]) -> Vec<u8> {
    let mut message = [key.to_be_bytes(), 1_i16.to_be_bytes(), [0, 0], [0, 7]].concat();
    message.extend(text("test"));
    message.extend_from_slice(body);
    let mut stream = TcpStream::connect(broker).expect("the broker");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    stream.write_all(&i32::try_from(message.len()).expect("short").to_be_bytes()).expect("sent");
    stream.write_all(&message).expect("sent");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("all of it");
    answer.split_off(4)
}
