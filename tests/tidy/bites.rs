//! Each rule catches its fault, and leaves alone what only looks like one.

use std::collections::BTreeSet;

use crate::{Source, compose_faults, faults, packages};

fn check(path: &str, text: &str, expect: &[&str]) {
    let packages = ["tokio", "rdkafka", "serde", "bytes"].map(str::to_owned).into();
    let found = faults(&[Source { path: path.into(), text: text.into() }], &packages);
    assert_eq!(found.len(), expect.len(), "{path}: {found:#?}\n{text}");
    for (found, expect) in found.iter().zip(expect) {
        assert!(found.starts_with(&format!("{path}:")) && found.contains(expect), "{found:?} lacks {expect:?}");
    }
}

#[test]
fn a_file_without_an_opening_comment_is_a_fault() {
    check("src/stage/x.rs", "use std::fmt;\n", &["src/stage/x.rs:1: open the file with `//!`"]);
    check("tests/x.rs", "use std::fmt;\n", &[]);
}

#[test]
fn a_long_file_is_a_fault() {
    check("src/stage/x.rs", &format!("//! x\n{}", "\n".repeat(599)), &[]);
    check("src/stage/x.rs", &format!("//! x\n{}", "\n".repeat(600)), &[":601: 601 lines"]);
}

#[test]
fn what_is_left_over_is_a_fault() {
    check("src/stage/x.rs", "//! x\nfn f() { todo!() }", &[":2: `todo!`"]);
    check("examples/x.rs", "fn f() { unimplemented!(\"later\") }", &["`unimplemented!`"]);
    check("tests/live/x.rs", "fn f() {\n dbg!(1);\n}", &[":2: `dbg!`"]);
    check("tests/x.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", &[":2: `#[ignore]`"]);
    check("src/stage/x.rs", "//! todo!()\n/* dbg!(/* #[ignore] */) */ const A: &str = \"todo!()\"; // dbg!(1)", &[]);
    check(
        "src/stage/x.rs",
        "//! x\nconst A: &str = r#\"todo!(\"a\") \"#; const Q: char = '\"'; const B: u8 = b'\\'';",
        &[],
    );
}

#[test]
fn printing_outside_the_command_line_is_a_fault() {
    check("src/stage/x.rs", "//! x\nfn f<'a>(_: &'a str) { println!(\"x\") }", &[":2: `println!`"]);
    check("src/cli/x.rs", "//! x\nfn f() { println!(\"x\") }", &[]);
    check("src/stage/x.rs", "//! x\n#[cfg(test)]\nmod tests { fn f() { eprintln!(\"x\") } }", &[]);
}

#[test]
fn a_clock_in_the_ladder_is_a_fault() {
    check("src/ladder/x.rs", "//! x\nfn f() {\n std::time::Instant::now();\n}", &[":3: `Instant::now`"]);
    check(
        "src/ladder/x.rs",
        "//! x\nuse std::time::SystemTime;\nfn f() { SystemTime::now(); }",
        &[":3: `SystemTime::now`"],
    );
    check("src/stage/clock.rs", "//! x\nfn f() { std::time::SystemTime::now(); }", &[]);
}

#[test]
fn a_package_in_the_ladder_that_is_not_pure_is_a_fault() {
    check("src/ladder/x.rs", "//! x\nuse serde::Serialize;\nuse tokio::time;", &[":3: ladder uses `tokio`"]);
    check("src/ladder/x.rs", "//! x\nfn f() { rdkafka::x::y() }", &["ladder uses `rdkafka`"]);
    check("src/ladder/x.rs", "//! x\nfn f(bytes: &[u8]) { bytes.iter::<u8>(); Self::bytes::<u8>() }", &[]);
    check("src/stage/x.rs", "//! x\nuse tokio::time;", &[]);
}

#[test]
fn an_arrow_against_the_order_is_a_fault() {
    check("src/ladder/x.rs", "//! x\nuse crate::stage::ports;", &["ladder uses `stage::ports`"]);
    check(
        "src/ladder/x.rs",
        "//! x\nuse crate::{\n ladder::event::A,\n config::Config,\n};",
        &[":4: ladder uses `config::Config`"],
    );
    check(
        "src/ladder/x.rs",
        "//! x\nuse super::event::A;\nuse super::super::adapters;",
        &[":3: ladder uses `adapters`"],
    );
    check("src/ladder/mod.rs", "//! x\nuse super::telemetry;", &["ladder uses `telemetry`"]);
    check("src/ladder/x.rs", "//! x\nmod inner { use super::super::event; use super::A; }", &[]);
    check(
        "src/stage/x.rs",
        "//! x\nfn f() -> crate::adapters::redis::Store { }",
        &["stage uses `adapters::redis::Store`"],
    );
    check("src/stage/x.rs", "//! x\nuse crate::telemetry::metrics;\nuse crate::ladder::*;", &[]);
    check("src/adapters/redis.rs", "//! x\nuse crate::stage::ports::{A, B as C};", &[]);
    check(
        "src/adapters/redis.rs",
        "//! x\nuse crate::stage::{ports, lane::Lane};",
        &["adapters uses `stage::lane::Lane`"],
    );
    check("src/adapters/redis.rs", "//! x\nuse crate::config::Config;", &["adapters uses `config::Config`"]);
    check("src/config/x.rs", "//! x\nuse crate::cli::Flags;", &["config uses `cli`"]);
    check("src/cli/x.rs", "//! x\nuse crate::config::Config;\nuse super::Flags;", &[]);
    check("src/main.rs", "//! x\nfn main() { retry_ladder::cli::main() }", &[]);
}

#[test]
fn a_judge_that_uses_what_it_judges_is_a_fault() {
    check("src/prove/ledger/x.rs", "//! x\nuse crate::ladder::headers;", &["prove::ledger uses `ladder::headers`"]);
    check("src/prove/ledger/x.rs", "//! x\nuse super::super::plan;", &["prove::ledger uses `prove::plan`"]);
    check("src/prove/ledger/x.rs", "//! x\nuse super::evidence::Held;\nuse std::fmt;", &[]);
    check("src/prove/plan.rs", "//! x\nuse super::ledger::Fate;\nuse crate::config::Config;", &[]);
}

#[test]
fn adapters_that_import_each_other_are_a_fault() {
    check("src/adapters/redis.rs", "//! x\nuse super::memory::Store;", &["adapter `redis` uses adapter `memory`"]);
    check("src/adapters/kafka/x.rs", "//! x\nuse crate::adapters::redis;", &["adapter `kafka` uses adapter `redis`"]);
    check("src/adapters/kafka/x.rs", "//! x\nuse super::admin::Topics;\nuse crate::adapters::kafka::Error;", &[]);
    check("src/adapters/redis.rs", "//! x\n#[cfg(test)]\nmod tests { use crate::adapters::memory::Store; }", &[]);
}

#[test]
fn test_code_in_a_file_of_its_own_is_free() {
    let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let files = [
        file("src/adapters/mod.rs", "//! x\npub mod redis;\n#[cfg(test)]\nmod contract;\n"),
        file("src/adapters/contract.rs", "//! x\nuse super::memory::A;\nuse super::redis::B;\n"),
        file("src/adapters/redis.rs", "//! x\nuse super::contract::C;\n"),
    ];
    let found = faults(&files, &BTreeSet::new());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("src/adapters/redis.rs:2: adapter `redis` uses adapter `contract`"), "{found:?}");
}

#[test]
fn a_loose_image_or_an_open_port_in_the_compose_file_is_a_fault() {
    let good = "image: apache/kafka:4.3.0\nports:\n- \"127.0.0.1:9092:9092\"\nvolumes:\n- a:/b\nimage: a/b:v1.5.0";
    assert_eq!(compose_faults(good), Vec::<String>::new());
    let bad = "image: redis:7-alpine\nports:\n- \"9092:9092\"\nimage: jaeger";
    let found = compose_faults(bad);
    assert!(found.len() == 3 && found[1].starts_with("docker-compose.yml:3: port"), "{found:?}");
}

#[test]
fn a_service_on_the_network_of_the_host_says_that_it_stays_on_loopback() {
    let service = |name: &str, more: &str| format!("  {name}:\n    network_mode: host\n    {more}\n");
    let prometheus = service("a", "- --web.listen-address=127.0.0.1:${PORT:-9090}");
    let grafana = service("b", "GF_SERVER_HTTP_ADDR: 127.0.0.1");
    assert_eq!(compose_faults(&format!("{prometheus}{grafana}")), Vec::<String>::new());
    let found =
        compose_faults(&format!("{}{grafana}{}", service("c", "- --web.listen-address=:9090"), service("d", "x")));
    assert!(found.len() == 2 && found[0].starts_with("docker-compose.yml:2: a service on the host's"), "{found:?}");
}

#[test]
fn packages_are_read_from_the_manifest() {
    let found = packages(
        "[package]\nname = \"x\"\n\n[dependencies]\n# Kafka\nrd-kafka = { version = \"1\" }\nserde = \"1\"\n\n[dev-dependencies]\nproptest = \"1\"\n",
    );
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["rd_kafka", "serde"]);
}
