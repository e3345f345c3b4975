//! Several worker processes that share one stage, on a Redis Cluster or a single Redis: who executed how much, and how
//! many claims each node of the cluster was asked for.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::load::{self, Bench};
use crate::report::Report;

pub async fn run(bench: &mut Bench, report: &Report, events: usize, workers: usize) {
    let ladder = bench.ladder(&[3_600, 7_200].map(Duration::from_secs)).await;
    bench.preload_elsewhere(&ladder, 1, events, Some(Duration::ZERO)).await;
    let before = claims(&bench.redis_url);
    let start = Instant::now();
    let spawn = |_| {
        let mut child = bench.another();
        child.args(["stage", "--topic", ladder.topic(), "--stage", "1"]);
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut processes: Vec<_> = (0..workers).map(spawn).collect();
    let set = |now: &[u64]| now.iter().zip(&before).map(|(now, before)| now - before).collect::<Vec<_>>();
    // One SET claims, one settles.
    let done = || set(&claims(&bench.redis_url)).iter().sum::<u64>() >= 2 * events as u64;
    load::until(done, Duration::from_secs(600)).await;
    let wall = start.elapsed().as_secs_f64();
    processes.iter_mut().for_each(|process| drop(process.stdin.take()));
    let seen: Vec<Value> = processes
        .into_iter()
        .map(|process| serde_json::from_slice(&process.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let nodes = set(&claims(&bench.redis_url));
    let executed: u64 = seen.iter().filter_map(|worker| worker["executed"].as_u64()).sum();
    println!(
        "spread: {events} due events, {workers} workers, {} partitions, {} redis node(s): {wall:.1} s from the first start",
        bench.partitions,
        nodes.len()
    );
    for (i, worker) in seen.iter().enumerate() {
        println!("worker {i}: {worker}");
    }
    for (i, commands) in nodes.iter().enumerate() {
        println!("redis node {i}: {commands} SET commands");
    }
    println!("executed {executed} times in all, {} more than events", executed.saturating_sub(events as u64));
    report.add(json!({
        "workload": "spread", "events": events, "partitions": bench.partitions, "wall_s": wall,
        "workers": seen, "redis_set_commands": nodes,
    }));
}

/// `SET` commands that each node has executed so far.
fn claims(urls: &str) -> Vec<u64> {
    let of = |url: &str| {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls=")).unwrap_or("0");
        line.split(',').next().unwrap().parse().unwrap()
    };
    urls.split(',').map(of).collect()
}
