//! A console of a test's own, and what a browser would send to it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dlq::setup::Dlq;

const LIMIT: Duration = Duration::from_secs(90);

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < LIMIT, "nothing of that within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
    headers: reqwest::header::HeaderMap,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_else(|| panic!("{name} in {self:?}"))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The real binary.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
    client: reqwest::Client,
}

impl Served {
    pub(crate) fn start(dlq: &Dlq, env: &[(&str, &str)]) -> Self {
        let mut command = dlq.command(&["console", "--listen", "127.0.0.1:0"]);
        let log = std::fs::File::create(dlq.path("console.log")).expect("a log");
        let mut child =
            command.envs(env.iter().copied()).stderr(log).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let url = line.trim().strip_prefix("console: ").unwrap_or_else(|| panic!("{line:?}")).trim_end_matches('/');
        Self { child, url: url.to_owned(), client: reqwest::Client::new() }
    }

    /// What stands under the pipeline, as the page asks for it.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        let url = format!("{}/api/pipelines/orders/{path}", self.url);
        let mut request = self.client.request(method.parse().expect("a method"), url).header("x-ladder-console", "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body.unwrap_or_default().to_owned()).send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.expect("text") }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, &[], None).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.ask("POST", path, &[], Some(&body.to_string())).await;
        assert!(matches!(answer.status, 200 | 202), "{path}: {answer:?}");
        answer.json()
    }

    /// Makes a plan and waits for the end of its dry run.
    pub(crate) async fn planned(&self, order: &Value) -> Value {
        let begun = self.post("plans", order).await;
        self.phase(&begun, &["planned"]).await
    }

    pub(crate) async fn run(&self, plan: &Value, how: Value) {
        self.post(&format!("plans/{}/run", plan["id"].as_str().expect("an id")), &how).await;
    }

    pub(crate) async fn ended(&self, plan: &Value) -> Value {
        self.phase(plan, &["ended"]).await
    }

    pub(crate) async fn phase(&self, plan: &Value, phases: &[&str]) -> Value {
        let path = format!("plans/{}", plan["id"].as_str().expect("an id"));
        until(|| async {
            let seen = self.get(&path).await;
            let phase = seen["phase"].as_str().expect("a phase");
            assert!(phases.contains(&phase) || ["planning", "running"].contains(&phase), "{seen}");
            phases.contains(&phase).then_some(seen)
        })
        .await
    }

    pub(crate) async fn live(&self) -> Live {
        let response = self.client.get(format!("{}/api/live", self.url)).send().await.expect("a stream");
        assert_eq!(response.status(), 200);
        Live { response, text: String::new() }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("dead");
    }

    /// Ends it as an operator does; its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        self.child.wait().expect("ended").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The looks at the stages.
pub(crate) struct Live {
    response: reqwest::Response,
    text: String,
}

impl Live {
    /// The first look that is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let look = event.strip_prefix("data: ").map(|data| serde_json::from_str::<Value>(data).expect("JSON"));
                self.text = rest.to_owned();
                match look {
                    Some(look) if wanted(&look) => return look,
                    look => assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {look:?}"),
                }
            }
            let chunk = tokio::time::timeout(LIMIT, self.response.chunk()).await.expect("a look in time");
            let chunk = chunk.expect("a look").expect("more looks");
            self.text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
    }
}
