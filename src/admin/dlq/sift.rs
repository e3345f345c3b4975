//! Reads letters by several threads, each some partitions with a client of its own: most of the time goes into
//! librdkafka's parsing of headers. Blocks.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;

use super::book::Book;
use super::letter::Glance;
use crate::adapters::kafka::scan::{self, Bounds, Progress, Scan, Seen};

/// Threads that read, each with a client that buffers about 16 MiB of values.
const MAX_READERS: usize = 4;
/// For fewer letters another client costs more time than it saves.
const WORTH_A_READER: u64 = 50_000;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Shows every letter that `matches` to `each`, one at a time, those of one partition in their order, until `each` or
/// `progress` breaks off. Whether it came to the end.
///
/// # Errors
/// When Kafka stops answering.
pub fn sift(
    scan: &mut Scan,
    book: &Book,
    matches: impl Fn(&Glance, &Seen<'_>) -> bool + Sync,
    each: impl FnMut(&Glance, &Seen<'_>) -> ControlFlow<()> + Send,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<bool, scan::Error> {
    let total = scan.bounds().values().map(Bounds::len).sum();
    let worth = usize::try_from(total / WORTH_A_READER).unwrap_or(MAX_READERS) + 1;
    let readers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_READERS).min(worth);
    let mut others = scan.split(readers)?;
    let read: Vec<_> = (0..=others.len()).map(|_| AtomicU64::new(0)).collect();
    let (each, stop) = (Mutex::new(each), AtomicBool::new(false));
    let stopped = || if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let read_one = |scan: &mut Scan, read: &AtomicU64| {
        let mut glance = Glance::default();
        scan.run(
            |seen| {
                glance.look(seen, book);
                if !matches(&glance, seen) {
                    return ControlFlow::Continue(());
                }
                let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
                stopped()?;
                let flow = each(&glance, seen);
                stop.fetch_or(flow.is_break(), Ordering::Relaxed);
                flow
            },
            |progress| {
                read.store(progress.read, Ordering::Relaxed);
                stopped()
            },
        )
    };
    let runtime = Handle::try_current().ok(); // `each` may have to ask for a schema
    let (done, parts) = mpsc::channel();
    thread::scope(|scope| {
        for (scan, read) in std::iter::once(&mut *scan).chain(&mut others).zip(&read) {
            let (done, read_one, runtime) = (done.clone(), &read_one, &runtime);
            scope.spawn(move || {
                let _entered = runtime.as_ref().map(Handle::enter);
                done.send(read_one(scan, read)).ok()
            });
        }
        drop(done);
        let mut ended = true;
        loop {
            match parts.recv_timeout(TELL_EVERY) {
                Ok(Ok(whole)) => ended &= whole,
                Ok(Err(error)) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(ended),
            }
            let read = read.iter().map(|read| read.load(Ordering::Relaxed)).sum();
            if progress(Progress { read, total }).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    })
}
