//! Reads every packet of every stream of a source, and decodes none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use farm::media::TrackId;
use farm::{Code, Failure};
use gst::prelude::*;

use crate::mend::Source;
use crate::source::{self, Streams};

/// How often it is looked whether streams have ended.
const POLL: Duration = Duration::from_millis(1);

/// What is kept of one stream.
pub trait Watch: Send + 'static {
    /// Something that flows downstream beside the data, or a flush.
    fn event(&mut self, event: &gst::EventRef);

    /// A packet.
    fn packet(&mut self, packet: &gst::BufferRef);

    /// Whether there were packets.
    fn has_data(&self) -> bool;

    /// Whether the end of the stream was reached.
    fn has_ended(&self) -> bool;
}

/// What was read.
pub struct Scan<W> {
    /// Media type that type finding gave the whole source.
    pub container: String,
    /// Duration by the header, in ns.
    pub header_duration_ns: Option<u64>,
    /// What was kept of each stream, in the order of [`TrackId`].
    pub streams: Vec<W>,
}

/// Reads a source to its end. `watch` makes what is kept of a stream, before any of its data flows.
///
/// # Errors
/// When it cannot be read or taken apart, or holds no streams.
pub fn scan<W: Watch>(source: &Source, watch: impl Fn(&gst::Pad) -> W + Send + Sync + 'static) -> Result<Scan<W>, Failure> {
    let watches: Arc<Mutex<Vec<W>>> = Arc::default();
    let on_watches = Arc::clone(&watches);
    let on_stream = move |_: &gst::Pipeline, track: TrackId, pad: &gst::Pad| {
        let mut watched = watch(pad);
        pad.sticky_events_foreach(|event| {
            watched.event(event);
            std::ops::ControlFlow::Continue(gst::EventForeachAction::Keep)
        });
        lock(&on_watches).push(watched);
        watch_pad(pad, track.0 as usize, Arc::clone(&on_watches));
        Ok(())
    };
    let mut streams = source::open(source, TrackId(0), Box::new(on_stream))?;
    let Some(first) = streams.pads.first() else {
        return Err(Failure::new(Code::NoDecodableStream, "the container holds no streams"));
    };
    let first = first.clone();
    let wait_until = |streams: &mut Streams, reached: fn(&[W]) -> bool| {
        while !reached(&lock(&watches)) {
            streams.check()?;
            std::thread::sleep(POLL);
        }
        Ok::<_, Failure>(())
    };
    // The same seek as before decoding, so that times agree; and as there, not before data flows.
    wait_until(&mut streams, |watches| watches.first().is_some_and(|w| w.has_ended() || w.has_data()))?;
    streams.seek(&first, 0);
    let header_duration_ns = first.query_duration::<gst::ClockTime>().map(gst::ClockTime::nseconds);
    wait_until(&mut streams, |watches| watches.iter().all(W::has_ended))?;
    if !lock(&watches).iter().any(W::has_data) {
        // What went wrong may have been posted just before the end.
        streams.check()?;
    }
    let container = container(&streams);
    drop(streams);
    let streams = std::mem::take(&mut *lock(&watches));
    Ok(Scan { container, header_duration_ns, streams })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_pad<W: Watch>(pad: &gst::Pad, index: usize, watches: Arc<Mutex<Vec<W>>>) {
    let kinds = gst::PadProbeType::BUFFER
        | gst::PadProbeType::BUFFER_LIST
        | gst::PadProbeType::EVENT_DOWNSTREAM
        | gst::PadProbeType::EVENT_FLUSH;
    pad.add_probe(kinds, move |_, info| {
        if let Some(watched) = lock(&watches).get_mut(index) {
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => watched.packet(buffer),
                Some(gst::PadProbeData::BufferList(list)) => list.iter().for_each(|buffer| watched.packet(buffer)),
                Some(gst::PadProbeData::Event(event)) => watched.event(event),
                _ => {}
            }
        }
        gst::PadProbeReturn::Ok
    });
}

fn container(streams: &Streams) -> String {
    let mut elements = streams.pipeline.iterate_recurse();
    while let Ok(Some(element)) = elements.next() {
        if element.factory().is_some_and(|f| f.name() == "typefind")
            && let Some(caps) = element.property::<Option<gst::Caps>>("caps")
        {
            return caps.structure(0).map(|s| s.name().to_string()).unwrap_or_default();
        }
    }
    String::new()
}
