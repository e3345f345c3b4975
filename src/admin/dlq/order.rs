//! What an order is made of beside its selection: where to, and who asks.

use crate::ladder::rungs::Ladder;

/// The first retry stage, due now.
pub const START: &str = "start";

/// The rung that somebody names: `start`, `main`, or a retry stage.
///
/// # Errors
/// What would be right.
pub fn target(to: &str, ladder: &Ladder) -> Result<usize, String> {
    if to == START {
        let first = ladder.rungs().iter().find(|rung| rung.delay.is_some());
        return first.map(|rung| rung.index).ok_or_else(|| {
            "this ladder has no retry stage to begin with; `main` sends letters to the main topic, where other groups \
             read them as new events"
                .to_owned()
        });
    }
    let known = ladder.rungs().iter().filter(|rung| rung.index < ladder.dlq().index);
    match known.clone().find(|rung| *rung.name == *to) {
        Some(rung) => Ok(rung.index),
        None => {
            let names: Vec<_> = known.map(|rung| rung.name.to_string()).collect();
            Err(format!("no such stage; one of {START}, {}", names.join(", ")))
        }
    }
}

/// Who asks, as far as the system tells.
pub fn who() -> String {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let host = std::fs::read_to_string("/etc/hostname").ok();
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty()).unwrap_or("unknown host");
    format!("{}@{host}", user.as_deref().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ladder::rungs::LadderSpec;

    #[test]
    fn the_target_is_a_stage_before_the_dlq() {
        let spec = || LadderSpec::new("orders", "billing", "shop");
        let ladder = Ladder::new(spec().retry(Duration::from_secs(1)).retry(Duration::from_secs(2))).unwrap();
        let check = |to: &str, index: usize| assert_eq!(target(to, &ladder).unwrap(), index, "{to}");
        check("start", 1);
        check("retry-2", 2);
        check("main", 0);
        assert_eq!(target("dlq", &ladder).unwrap_err(), "no such stage; one of start, main, retry-1, retry-2");
        let bare = Ladder::new(spec()).unwrap();
        assert!(target("start", &bare).unwrap_err().contains("`main`"));
        assert_eq!(target("main", &bare).unwrap(), 0);
    }
}
