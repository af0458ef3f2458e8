//! What a message tells of its past: whether it came back, by the broker's word, and how often it was postponed, by a header of
//! ours. A postponed message is a new one to the broker, so that its count of deliveries begins anew.

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};

use crate::broker::Past;

/// The header that counts. Unlike `x-` headers no broker gives it a meaning.
const POSTPONED: &str = "shoal-postponed";

/// The headers of a message that was postponed so often.
pub(super) fn headers(postponed: u32) -> FieldTable {
    let mut headers = FieldTable::default();
    if postponed > 0 {
        headers.insert(POSTPONED.into(), AMQPValue::LongLongInt(postponed.into()));
    }
    headers
}

/// What is known of a message that was delivered.
pub(super) fn of(delivery: &Delivery) -> Past {
    let header = delivery.properties.headers().as_ref().and_then(|headers| headers.inner().get(POSTPONED));
    // Others may send what they like: what is no count counts as none.
    let postponed = match header {
        Some(AMQPValue::LongLongInt(count)) => u32::try_from(*count).unwrap_or_default(),
        _ => 0,
    };
    Past { came_back: delivery.redelivered, postponed }
}
