//! What the system says of this process: CPU, memory, open files. From `/proc`, so only on Linux; elsewhere nothing is
//! told rather than something wrong.

use std::fs;

/// One look at this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// CPU time in seconds, user and system.
    pub cpu_seconds: f64,
    /// Bytes in RAM.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Open files.
    pub open_fds: u64,
    /// Most files that may be open; `None` for no limit.
    pub max_fds: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// Start in seconds since the Unix epoch.
    pub start_seconds: f64,
}

/// Clock ticks a second in `/proc/self/stat`: fixed in the kernel's interface to programs, whatever its own are.
const TICKS: f64 = 100.0;

impl ProcessStats {
    /// Looks now; `None` where the system does not tell.
    pub fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok()?;
        // The list itself is one of the open files.
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
        Self::parse(&stat, &status, &limits, &boot).map(|stats| Self { open_fds, ..stats })
    }

    fn parse(stat: &str, status: &str, limits: &str, boot: &str) -> Option<Self> {
        // The program's name comes second, in parentheses, and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<f64>().ok());
        let line = |text: &str, name: &str| {
            let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS,
            resident_bytes: line(status, "VmRSS:")? * 1024,
            virtual_bytes: line(status, "VmSize:")? * 1024,
            open_fds: 0,
            max_fds: line(limits, "Max open files"),
            threads: line(status, "Threads:")?,
            start_seconds: line(boot, "btime")? as f64 + ticks(22)? / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_with_parentheses_and_spaces_is_read() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 1000 0 0";
        let status = "Name:\ta) b (c\nVmSize:\t  2048 kB\nVmRSS:\t   1024 kB\nThreads:\t9\n";
        let limits =
            "Limit                     Soft Limit\nMax open files            1024                 4096   files\n";
        let stats = ProcessStats::parse(stat, status, limits, "cpu 1 2\nbtime 1700000000\n").unwrap();
        let expected = ProcessStats {
            cpu_seconds: 4.0,
            resident_bytes: 1 << 20,
            virtual_bytes: 2 << 20,
            open_fds: 0,
            max_fds: Some(1024),
            threads: 9,
            start_seconds: 1_700_000_010.0,
        };
        assert_eq!(stats, expected);

        let unlimited = limits.replace("1024 ", "unlimited ");
        let stats = ProcessStats::parse(stat, status, &unlimited, "cpu 1 2\nbtime 1700000000\n").unwrap();
        assert_eq!(stats, ProcessStats { max_fds: None, ..expected });
    }

    #[test]
    fn this_process_has_files_and_memory() {
        let stats = ProcessStats::read().unwrap();
        assert!(stats.open_fds >= 3 && stats.resident_bytes > 1 << 20 && stats.threads >= 1, "{stats:?}");
        assert!(stats.start_seconds > 1.6e9, "{stats:?}");
    }
}
