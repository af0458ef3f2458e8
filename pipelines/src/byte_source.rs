//! A GStreamer source over a [`Reader`]: demuxers pull what they want, where they want it.
//!
//! An element of our own, because a pull is answered within the call: an application source answers through a queue, where a
//! seek can leave the answer to an earlier question.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gst::glib;
use gst_base::prelude::*;

use crate::Reader;

glib::wrapper! {
    /// The source element.
    pub struct ByteSource(ObjectSubclass<imp::ByteSource>) @extends gst_base::BaseSrc, gst::Element, gst::Object;
}

impl ByteSource {
    /// A source of a reader's bytes.
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        let source: Self = glib::Object::new();
        source.set_format(gst::Format::Bytes);
        // A new element has none yet.
        let _ = imp::ByteSource::from_obj(&source).reader.set(reader);
        source
    }

    /// Why the last read failed, if one did.
    pub fn failure(&self) -> Option<String> {
        imp::ByteSource::from_obj(self).failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

use gst::subclass::prelude::ObjectSubclassExt as _;

mod imp {
    use bytes::{Bytes, BytesMut};
    use gst_base::subclass::base_src::CreateSuccess;
    use gst_base::subclass::prelude::*;

    use super::{Arc, Mutex, OnceLock, PoisonError, Reader, glib};

    /// Longest single read handed to a reader.
    const READ_BYTES_MAX: usize = 1 << 20;

    #[derive(Default)]
    pub struct ByteSource {
        pub(super) reader: OnceLock<Arc<dyn Reader>>,
        pub(super) failure: Mutex<Option<String>>,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for ByteSource {
        const NAME: &'static str = "ShoalByteSource";
        type Type = super::ByteSource;
        type ParentType = gst_base::BaseSrc;
    }

    impl ObjectImpl for ByteSource {}
    impl GstObjectImpl for ByteSource {}

    impl ElementImpl for ByteSource {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: OnceLock<gst::subclass::ElementMetadata> = OnceLock::new();
            Some(
                METADATA
                    .get_or_init(|| gst::subclass::ElementMetadata::new("Byte source", "Source", "Bytes of a reader", "Shoal")),
            )
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: OnceLock<Vec<gst::PadTemplate>> = OnceLock::new();
            TEMPLATES.get_or_init(|| {
                let template =
                    gst::PadTemplate::new("src", gst::PadDirection::Src, gst::PadPresence::Always, &gst::Caps::new_any());
                template.into_iter().collect()
            })
        }
    }

    impl BaseSrcImpl for ByteSource {
        fn is_seekable(&self) -> bool {
            true
        }

        fn size(&self) -> Option<u64> {
            self.reader.get().map(|reader| reader.bytes())
        }

        fn create(&self, offset: u64, filled: Option<&mut gst::BufferRef>, length: u32) -> Result<CreateSuccess, gst::FlowError> {
            let reader = self.reader.get().ok_or(gst::FlowError::Error)?;
            let left = usize::try_from(reader.bytes().saturating_sub(offset)).unwrap_or(usize::MAX);
            let bytes = read_exactly(reader.as_ref(), offset, left.min(length as usize)).map_err(|error| {
                gst::element_imp_error!(self, gst::ResourceError::Read, ("{error}"));
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                gst::FlowError::Error
            })?;
            if bytes.is_empty() {
                return Err(gst::FlowError::Eos);
            }
            let end = offset + bytes.len() as u64;
            let place = |buffer: &mut gst::BufferRef| {
                buffer.set_offset(offset);
                buffer.set_offset_end(end);
            };
            // Some demuxers bring a buffer. The binding would copy into it, and panics at the end of the source.
            if let Some(buffer) = filled {
                if buffer.maxsize() < bytes.len() || buffer.copy_from_slice(0, &bytes).is_err() {
                    return Err(gst::FlowError::Error);
                }
                buffer.set_size(bytes.len());
                place(buffer);
                return Ok(CreateSuccess::FilledBuffer);
            }
            let mut buffer = gst::Buffer::from_slice(bytes);
            if let Some(buffer) = buffer.get_mut() {
                place(buffer);
            }
            Ok(CreateSuccess::NewBuffer(buffer))
        }
    }

    /// `len` bytes from `offset` on; fewer only at the end of the source.
    fn read_exactly(reader: &dyn Reader, offset: u64, len: usize) -> std::io::Result<Bytes> {
        if len <= READ_BYTES_MAX {
            return reader.read_at(offset, len);
        }
        let mut all = BytesMut::new();
        while all.len() < len {
            let part = reader.read_at(offset + all.len() as u64, READ_BYTES_MAX.min(len - all.len()))?;
            if part.is_empty() {
                break;
            }
            all.extend_from_slice(&part);
        }
        Ok(all.freeze())
    }
}
