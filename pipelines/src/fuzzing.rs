//! Doors for the fuzzer to what is nobody else's: built only for it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::Reader;
use crate::cue_text::Form;

struct Whole(Bytes);

impl Reader for Whole {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let size = self.0.len();
        let start = usize::try_from(offset).map_or(size, |start| start.min(size));
        Ok(self.0.slice(start..start.saturating_add(len).min(size)))
    }
}

/// Reads a source's head as every attempt does, and all of what the demuxer is then given.
pub fn mend(source: Bytes) {
    let Ok((mended, _)) = crate::mend::mend(Arc::new(Whole(source))) else { return };
    let reader = mended.reader;
    let mut at = 0;
    while at < reader.bytes() {
        let Ok(read) = reader.read_at(at, 64 << 10) else { return };
        assert!(!read.is_empty(), "there is something at {at}");
        at += read.len() as u64;
    }
}

/// Reads a text of a subtitle in every form. The result has no empty line, and nothing that ends a cue.
pub fn cue_text(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    for form in [Form::Plain, Form::Tags, Form::Dialogue, Form::WebmCue] {
        let read = form.read(&text).text;
        assert!(!read.split('\n').any(str::is_empty) || read.is_empty(), "an empty line ends a cue: {read:?}");
        assert!(!read.contains("-->"), "no times in {read:?}");
    }
}
