//! The grammar of MP4 boxes (ISO/IEC 14496-12, 4.2): read strictly, written.

use bytes::{BufMut, BytesMut};

/// Why bytes are not the segment they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoxError {
    /// A box reaches beyond what holds it, or a field beyond its box.
    #[error("a box is cut short")]
    Short,
    /// A box that must be there is not.
    #[error("no '{0}' box")]
    Missing(&'static str),
    /// A shape that is legal but never made here.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
}

/// A box.
pub struct Child<'a> {
    /// Its type.
    pub kind: [u8; 4],
    /// What is in it, without size and type.
    pub body: &'a [u8],
}

/// The boxes that fill `bytes`, without a rest.
///
/// # Errors
/// When one reaches beyond the end.
pub fn children(mut bytes: &[u8]) -> Result<Vec<Child<'_>>, BoxError> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut fields = Fields::new(bytes);
        let size = fields.u32()? as usize;
        let kind = fields.u32()?.to_be_bytes();
        let body = bytes.get(8..size).ok_or(BoxError::Short)?;
        found.push(Child { kind, body });
        bytes = bytes.get(size..).ok_or(BoxError::Short)?;
    }
    Ok(found)
}

/// What is in the first box of a kind.
///
/// # Errors
/// When there is none, by this name.
pub fn find<'a>(boxes: &[Child<'a>], kind: &[u8; 4], name: &'static str) -> Result<&'a [u8], BoxError> {
    boxes.iter().find(|b| &b.kind == kind).map(|b| b.body).ok_or(BoxError::Missing(name))
}

/// What is in the first box of a kind, in the first box of a kind, and so on.
///
/// # Errors
/// When one is not there or cut short.
pub fn descend<'a>(mut bytes: &'a [u8], path: &[(&[u8; 4], &'static str)]) -> Result<&'a [u8], BoxError> {
    for (kind, name) in path {
        bytes = find(&children(bytes)?, kind, name)?;
    }
    Ok(bytes)
}

/// Big-endian fields of a box, one after another.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// From the first one on.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The next 32 bits.
    ///
    /// # Errors
    /// When the box ends before.
    pub fn u32(&mut self) -> Result<u32, BoxError> {
        let (field, rest) = self.0.split_first_chunk::<4>().ok_or(BoxError::Short)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*field))
    }

    /// The next 32 bits if they are there, or else this.
    ///
    /// # Errors
    /// When the box ends before.
    pub fn u32_if(&mut self, there: bool, otherwise: u32) -> Result<u32, BoxError> {
        if there { self.u32() } else { Ok(otherwise) }
    }

    /// The next 64 bits.
    ///
    /// # Errors
    /// When the box ends before.
    pub fn u64(&mut self) -> Result<u64, BoxError> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// Version and flags of a full box.
    ///
    /// # Errors
    /// When the box ends before.
    pub fn full_box(&mut self) -> Result<(u8, u32), BoxError> {
        let field = self.u32()?;
        Ok(((field >> 24) as u8, field & 0x00FF_FFFF))
    }
}

/// Writes a box around what `body` writes.
pub fn put_box(out: &mut BytesMut, kind: &[u8; 4], body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_slice(kind);
    body(out);
    let size = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&size.to_be_bytes());
    }
}

/// Writes a box with version and flags around what `body` writes.
pub fn put_full(out: &mut BytesMut, kind: &[u8; 4], version: u8, flags: u32, body: impl FnOnce(&mut BytesMut)) {
    put_box(out, kind, |b| {
        b.put_u32(u32::from(version) << 24 | flags);
        body(b);
    });
}
