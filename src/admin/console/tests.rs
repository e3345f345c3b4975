//! Who is let in and what is taken, over real HTTP; no Kafka is there.

use std::time::Duration;

use reqwest::Method;

use super::*;
use crate::config::{Sources, load};

fn config(console: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("topics.yaml");
    let text = format!(
        "kafka: {{ brokers: \"127.0.0.1:1\" }}\nconsole: {{ {console} }}\npipelines:\n  orders: {{ topic: orders, message: \
         shop.v1.OrderPlaced, handler: {{ log: {{}} }} }}\n"
    );
    std::fs::write(&file, text).unwrap();
    load(&Sources::new(Some(file))).unwrap().config
}

struct Served {
    address: SocketAddr,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    async fn start(console: &str) -> Self {
        let console = Console::bind(&config(console)).await.unwrap();
        let address = console.address();
        Self { address, task: tokio::spawn(console.serve(std::future::pending())) }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> reqwest::Response {
        let url = format!("http://{}{path}", self.address);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        let request = headers.iter().fold(client.request(method, url), |r, (name, value)| r.header(*name, *value));
        request.body(body).send().await.unwrap()
    }

    #[track_caller]
    fn check<'a>(
        &'a self,
        call: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: usize,
        expected: u16,
    ) -> impl Future<Output = ()> {
        let (method, path) = call.split_once(' ').unwrap();
        async move {
            let response = self.ask(method.parse().unwrap(), path, headers, vec![b' '; body]).await;
            let (status, policy) = (response.status(), response.headers().get("content-security-policy").cloned());
            let text = response.text().await.unwrap();
            assert_eq!(status.as_u16(), expected, "{call} {headers:?}: {text}");
            assert_eq!(policy.unwrap(), assets::POLICY, "{call}");
        }
    }
}

const PLANS: &str = "POST /api/pipelines/orders/plans";
const OWN: (&str, &str) = ("x-ladder-console", "1");

#[tokio::test]
async fn another_sites_page_or_name_is_refused_before_anything_is_read() {
    let served = Served::start("listen: 127.0.0.1:0").await;
    let port = served.address.port();
    let own_origin = format!("http://127.0.0.1:{port}");
    served.check("GET /", &[], 0, 200).await;
    served.check("GET /api/about", &[], 0, 200).await;
    served.check("GET /", &[("host", "rebound.example")], 0, 421).await;
    served.check("GET /api/about", &[("host", &format!("rebound.example:{port}"))], 0, 421).await;
    served.check("GET /api/about", &[("sec-fetch-site", "cross-site")], 0, 403).await;
    served.check("GET /api/live", &[("sec-fetch-site", "cross-site")], 0, 403).await;

    served.check(PLANS, &[], 2, 403).await;
    served.check(PLANS, &[OWN, ("origin", "http://evil.example")], 2, 403).await;
    served.check(PLANS, &[OWN, ("origin", "http://127.0.0.1:1")], 2, 403).await;
    served.check(PLANS, &[OWN, ("sec-fetch-site", "same-site")], 2, 403).await;
    // Let in, and then found to be no order.
    served.check(PLANS, &[OWN, ("origin", &own_origin), ("sec-fetch-site", "same-origin")], 2, 400).await;
    served.check("OPTIONS /api/pipelines/orders/plans", &[("origin", "http://evil.example")], 0, 403).await;
}

#[tokio::test]
async fn bodies_have_limits_and_unknown_things_are_not_found() {
    let served = Served::start("listen: 127.0.0.1:0").await;
    served.check(PLANS, &[OWN], 64 * 1024, 400).await;
    served.check(PLANS, &[OWN], 64 * 1024 + 1, 413).await;
    let correction = "POST /api/pipelines/orders/letters/0:1/plans";
    served.check(correction, &[OWN], 8 * 1024 * 1024, 400).await;
    served.check(correction, &[OWN], 8 * 1024 * 1024 + 1, 413).await;
    served.check("GET /api/pipelines/nobody/groups", &[], 0, 404).await;
    served.check("GET /api/nothing", &[], 0, 404).await;
    served.check("GET /api/pipelines/orders/plans/none", &[], 0, 404).await;
    served.check("GET /../Cargo.toml", &[], 0, 404).await;
    for wrong in [
        r#"{"action":"redrive"}"#,
        r#"{"action":"redrive","all":true,"rate":0}"#,
        r#"{"action":"redrive","all":true,"to":"dlq"}"#,
        r#"{"action":"redrive","all":true,"stop_at":2}"#,
        r#"{"action":"discard","all":true}"#,
        r#"{"action":"drop","all":true}"#,
        r#"{"action":"redrive","select":{"offsets":"1..2"}}"#,
        r#"{"action":"redrive","select":{"clas":"poison"}}"#,
    ] {
        let answer = served.ask(Method::POST, "/api/pipelines/orders/plans", &[OWN], wrong.into()).await;
        assert_eq!(answer.status(), 400, "{wrong}: {}", answer.text().await.unwrap());
    }
}

#[tokio::test]
async fn with_a_token_nothing_but_the_empty_pages_is_given_without_it() {
    let served = Served::start("listen: 127.0.0.1:0, token: 0123456789abcdef").await;
    let right = ("authorization", "Bearer 0123456789abcdef");
    for call in ["GET /api/about", "GET /api/live", PLANS, "GET /api/nothing"] {
        served.check(call, &[OWN], 2, 401).await;
        served.check(call, &[OWN, ("authorization", "Bearer 0123456789abcdeg")], 2, 401).await;
    }
    served.check("GET /", &[], 0, 200).await;
    served.check("GET /api/about", &[right], 0, 200).await;
    served.check(PLANS, &[right], 2, 400).await;
    let about = served.ask(Method::GET, "/api/about", &[right], Vec::new()).await.text().await.unwrap();
    assert!(!about.contains("0123456789abcdef"), "{about}");
}

#[tokio::test]
async fn an_address_that_others_reach_is_refused_without_a_token() {
    let refused = Console::bind(&config("listen: 0.0.0.0:0")).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.exit_code(), 64);
    assert!(refused.to_string().contains("PIPELINE_CONSOLE__TOKEN"), "{refused}");
    Console::bind(&config("listen: 0.0.0.0:0, token: 0123456789abcdef")).await.map(|_| ()).unwrap();
}
