//! A real PostgreSQL of a test's own: a process on a free loopback port with a data folder of its own, ended by its pid.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Longest wait for what takes a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The server; `stop` and `start` keep its port and its data.
pub(crate) struct PostgresServer {
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl PostgresServer {
    /// Makes a database cluster and starts a server on it.
    ///
    /// # Panics
    /// When there is no PostgreSQL, or it does not start.
    pub(crate) fn new() -> Self {
        Self::with(|_| Vec::new())
    }

    /// The same with more arguments, as on its command line; they may name files that `prepare` puts into its folder.
    pub(crate) fn with(prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for PostgreSQL");
        let arguments = prepare(folder.path());
        let mut server = Self { port: free_port(), folder, arguments, process: None };
        server.give_to_user();
        let initdb = server
            .command("initdb")
            .args(["--username=app", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(server.folder.path().join("data"))
            .output()
            .expect("initdb can be run");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        server.start();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://app@127.0.0.1:{}/postgres", self.port)
    }

    /// A connection.
    pub(crate) async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.expect("the server answers");
        tokio::spawn(connection);
        client
    }

    /// What a query answers: rows of text, `null` for none. For tests without a runtime.
    pub(crate) fn query(&self, sql: &str) -> Vec<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { query(&self.client().await, sql).await })
    }

    /// Ends it as its administrator would (connections are cut); its data stays.
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::INT).expect("it runs");
        let begun = Instant::now();
        while process.try_wait().expect("it can be watched").is_none() {
            if begun.elapsed() > LIMIT {
                process.kill().expect("it runs");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = self.folder.path().join("log");
        let process = self
            .command("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log).expect("a log"))
            .spawn()
            .expect("postgres can be started");
        let process = self.process.insert(process);
        let deadline = Instant::now() + LIMIT;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("postgres://app@127.0.0.1:{}/postgres", self.port);
        let answers = || {
            std::thread::scope(|scope| {
                // In a thread of its own: the test may be within a runtime already.
                let ask = || runtime.block_on(async { tokio_postgres::connect(&url, NoTls).await.is_ok() });
                scope.spawn(ask).join().expect("no panic")
            })
        };
        while !answers() {
            let ended = process.try_wait().expect("it can be watched");
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "postgres did not come up: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A runtime must not be dropped within another.
        std::thread::spawn(move || drop(runtime)).join().expect("no panic");
    }

    /// A program of PostgreSQL, run by a user that it agrees to.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(folder_of_programs().join(program));
        command.current_dir(self.folder.path()).env("LC_ALL", "C.UTF-8");
        if let Some((uid, gid)) = other_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// PostgreSQL does not run as root.
    fn give_to_user(&self) {
        let Some((uid, gid)) = other_user() else { return };
        let entries = fs::read_dir(self.folder.path()).expect("its folder");
        for path in entries.map(|e| e.expect("a file").path()).chain([self.folder.path().to_owned()]) {
            chown(path, Some(uid), Some(gid)).expect("root may give files away");
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Rows of text, `null` for none.
pub(crate) async fn query(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let text = |row: &tokio_postgres::SimpleQueryRow| {
        (0..row.len()).map(|i| row.get(i).unwrap_or("null").to_owned()).collect()
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(text(row)),
        _ => None,
    });
    rows.collect()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
    listener.local_addr().expect("its address").port()
}

/// Uid and gid of the package's user, else of nobody; `None` for who is not root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("the list of users");
    let user = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(user("postgres").or_else(|| user("nobody")).expect("a user that is not root"))
}

/// Where `initdb` and `postgres` are.
fn folder_of_programs() -> PathBuf {
    std::env::var_os("POSTGRES_BIN").map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "POSTGRES_BIN is not set: this test needs PostgreSQL's programs; get them with \
             `scripts/services setup postgres`, then eval \"$(scripts/services env)\""
        )
    })
}
