//! Media as our own code reads it, beside GStreamer: MP4 boxes of sources and of what a child made, WAV and MP3 heads, texts of
//! subtitles. The first byte says what it is.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pipelines::{boxes, codecs, jpeg};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(data);
    match kind {
        b'0' => pipelines::fuzzing::mend(bytes),
        b'1' => {
            if let Ok(told) = boxes::segment(&bytes) {
                assert_eq!(told.bytes, data.len() as u64, "a segment is as long as it is");
            }
        }
        b'2' => {
            drop(codecs::of_init(data));
            drop(boxes::timescale(data));
            drop(boxes::finish_init(data, 1000));
        }
        b'3' => drop(jpeg::size(data)),
        b'4' => pipelines::fuzzing::cue_text(data),
        _ => {}
    }
});
