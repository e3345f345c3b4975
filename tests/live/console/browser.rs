//! The pages in a real Chromium: `tests/browser`, driven from here so that its DLQ, workers and consoles are set up and
//! judged like those of the other tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::serve::Served;
use crate::dlq::setup::Dlq;

/// Letters that are there at the start.
const LETTERS: usize = 200;
const TOKEN: &str = "open-sesame-0123456789";

/// What the browser tests need, or what to do.
fn browser() -> (PathBuf, PathBuf) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    assert!(
        folder.join("node_modules/playwright-core").is_dir(),
        "the browser tests need their package: `npm ci --prefix tests/browser` (with Node.js 20 or newer) installs it"
    );
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let usual = [
        "/usr/bin/chromium",
        "/usr/bin/chromium-browser",
        "/usr/bin/google-chrome",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    ]
    .map(PathBuf::from);
    let chromium = named.into_iter().chain(usual).find(|path| path.is_file());
    let remedy = "the browser tests need Chromium: `apt-get install chromium`, or name one with CHROMIUM=/path";
    (folder, chromium.unwrap_or_else(|| panic!("{remedy}")))
}

#[tokio::test]
async fn the_pages_do_in_a_browser_what_they_promise() {
    let (folder, chromium) = browser();
    let dlq = Dlq::new(3).await;
    dlq.fill(LETTERS);
    let worker = dlq.worker("fail_ratio: 0");
    let console = Served::start(&dlq, &[]);
    let guarded = Served::start(&dlq, &[("PIPELINE_CONSOLE__TOKEN", TOKEN)]);
    let test = Command::new("node")
        .args(["--test", "--test-reporter=spec"])
        .current_dir(folder)
        .env("CHROMIUM", chromium)
        .env("CONSOLE", &console.url)
        .env("GUARDED_CONSOLE", &guarded.url)
        .env("TOKEN", TOKEN)
        .output()
        .expect("Node.js: `node` 20 or newer on the path");
    let told = format!("{}{}", String::from_utf8_lossy(&test.stdout), String::from_utf8_lossy(&test.stderr));
    println!("{told}");
    assert!(test.status.success(), "{told}");

    // The button was pressed twice: each letter of its group went out, and was executed, once.
    let copies = dlq.copies("retry-1");
    let ids: BTreeSet<_> = copies.iter().map(|copy| copy.text("x-ladder-event-id").to_owned()).collect();
    assert_eq!((copies.len(), ids.len()), (LETTERS / 5, LETTERS / 5));
    worker.until_done(LETTERS / 5);
    drop(worker);
    assert_eq!(dlq.done(), ids.into_iter().collect::<Vec<_>>());
}
