//! What the farm stores and sends itself, read from a storage or broker that somebody else has written to. The first byte says
//! what it is.
#![no_main]

use std::collections::BTreeMap;

use farm::ended::Ended;
use farm::media::MediaInfo;
use farm::plan::Plan;
use farm::task::{Event, Marker, Progress, TaskId, TaskMessage};
use libfuzzer_sys::fuzz_target;
use scheduler::seal::{Seal, seal};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads it, and writes and reads again what was understood.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let written = serde_json::to_vec(&value).expect("it can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), value);
    Some(value)
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, json)) = data.split_first() else { return };
    match kind {
        b'0' => drop(read::<TaskMessage>(json)),
        b'1' => drop(read::<Event>(json)),
        b'2' => drop(read::<Progress>(json)),
        b'3' => drop(read::<Ended>(json)),
        b'4' => drop(read::<MediaInfo>(json)),
        b'5' => drop(read::<Seal>(json)),
        // A plan and the markers of its tasks, which are said to make a result.
        b'6' => {
            let mut parts = json.split(|byte| *byte == 0);
            let Some(plan) = parts.next().and_then(read::<Plan>) else { return };
            let markers: Vec<Marker> = parts.filter_map(read).collect();
            let markers: BTreeMap<TaskId, Marker> = markers.into_iter().map(|marker| (marker.task.clone(), marker)).collect();
            drop(seal(&plan, &markers));
        }
        _ => {}
    }
});
