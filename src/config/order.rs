//! What `order: ladder` needs of the other keys.

use super::choices::{Forward, OnUnavailable, Order, Store};
use super::model::Pipeline;
use super::report::{At, Report};

/// Order across the ladder is kept in the store.
pub(super) fn check(pipeline: &Pipeline, at: &At, report: &mut Report<'_>) {
    if pipeline.order != Order::Ladder {
        return;
    }
    if pipeline.forward == Forward::Transactional {
        // Together they would hold every later event of a key for a transaction each, and no test knows what else.
        let problem = "`order: ladder` and transactional hops are not offered together";
        report.fault(&at.key("forward"), problem, "idempotent, or another order");
    }
    let idempotency = at.key("idempotency");
    if pipeline.idempotency.store == Store::Off {
        let problem = "`order: ladder` keeps the order in the store";
        report.fault(&idempotency.key("store"), problem, "redis (or memory, for tests), or another order");
    }
    if pipeline.idempotency.on_unavailable == OnUnavailable::Process {
        let problem = "`order: ladder` cannot be kept while the store does not answer";
        report.fault(&idempotency.key("on_unavailable"), problem, "pause, or another order");
    }
}
