//! Doors for the fuzzer to what is nobody else's: built only for it.

use bytes::BytesMut;
use pipelines::Order;
use tokio_util::codec::Decoder as _;

use crate::protocol::{BlockingFrames, Frames, FromChild, ToChild};
use crate::session::Session;

/// Orders of each kind: as children are told.
const ORDERS: &str = include_str!("../../fuzz/orders.json");

/// Bytes that a child sends, as its worker takes them for an order.
pub fn from_child(order: u8, stream: &[u8]) {
    let Ok(orders) = serde_json::from_str::<Vec<Order>>(ORDERS) else { panic!("orders cannot be read") };
    let Some(order) = orders.get(usize::from(order) % orders.len()) else { return };
    let Ok(mut session) = Session::new(order, 1 << 20) else { panic!("no order") };
    let (mut frames, mut buffer) = (Frames::<FromChild>::default(), BytesMut::from(stream));
    while let Ok(Some(frame)) = frames.decode(&mut buffer) {
        if session.hear(frame).is_err() {
            return;
        }
    }
}

/// Bytes that a child is sent.
pub fn to_child(stream: &[u8]) {
    let mut frames = BlockingFrames::<_, ToChild>::new(stream);
    while frames.next().is_ok() {}
}
