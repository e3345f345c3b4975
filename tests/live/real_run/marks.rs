//! What the run leaves in Redis: one settled mark for every copy that was executed, and nobody's claim. (The dlq stage
//! executes nothing that could be repeated, so it claims nothing.)

use std::collections::BTreeMap;

use super::evidence::Faults;
use super::figures::Figures;

/// Every event that a handler finished is a `1`, every move of one is an `F`, no claim is left.
pub(crate) fn check(url: &str, prefix: &str, figures: &Figures, faults: &mut Faults) {
    let mut marks: BTreeMap<String, usize> = BTreeMap::new();
    for_each(url, prefix, |connection, keys| {
        let values: Vec<Option<String>> = redis::cmd("MGET").arg(keys).query(connection).expect("MGET");
        for value in values {
            // A claim names its owner; here it only counts that it is one.
            let mark = value.map_or_else(|| "gone".to_owned(), |value| value[..1].to_owned());
            *marks.entry(mark).or_default() += 1;
        }
    });
    let mut expect = BTreeMap::from([("1".to_owned(), figures.done)]);
    // An event that took another way than planned moved more often.
    let moved = if figures.off_plan == 0 { figures.moves } else { marks.get("F").copied().unwrap_or_default() };
    expect.insert("F".to_owned(), moved);
    faults.unless(marks == expect, || format!("marks in redis are {marks:?}, not {expect:?}"));
}

/// Forgets the run.
pub(crate) fn remove(url: &str, prefix: &str) {
    for_each(url, prefix, |connection, keys| redis::cmd("UNLINK").arg(keys).exec(connection).expect("UNLINK"));
}

fn for_each(url: &str, prefix: &str, mut act: impl FnMut(&mut redis::Connection, &[String])) {
    let mut connection = redis::Client::open(url).and_then(|client| client.get_connection()).expect("redis");
    let mut cursor = 0_u64;
    let mut known = std::collections::HashSet::new();
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}:*")).arg("COUNT").arg(2_000);
        let (next, mut keys): (u64, Vec<String>) = scan.query(&mut connection).expect("SCAN");
        // SCAN may name a key twice.
        keys.retain(|key| known.insert(key.clone()));
        if !keys.is_empty() {
            act(&mut connection, &keys);
        }
        cursor = next;
        if cursor == 0 {
            return;
        }
    }
}
