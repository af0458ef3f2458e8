//! Picture planes in memory that zimg may touch: aligned, with aligned strides.

/// What the address and the stride of every plane must be a multiple of, in bytes: one AVX-512 register.
///
/// zimg checks nothing in release builds; on other memory it crashes.
pub const ALIGN: usize = 64;

/// A block of samples that starts on a multiple of [`ALIGN`] bytes.
pub struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// A block of `len` samples, all zero.
    pub fn new(len: usize) -> Self {
        let spare = ALIGN / size_of::<T>();
        let memory = vec![T::default(); len + spare];
        let start = memory.as_ptr().align_offset(ALIGN).min(spare);
        Self { memory, start, len }
    }

    /// The samples.
    pub fn samples(&self) -> &[T] {
        self.memory.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// The samples, to be written.
    pub fn samples_mut(&mut self) -> &mut [T] {
        self.memory.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// One plane of a picture.
pub struct Plane<T> {
    samples: Aligned<T>,
    /// Samples from one row to the next.
    stride: usize,
}

impl<T: Copy + Default> Plane<T> {
    /// A plane of `rows` rows, each with room for `width` samples.
    pub fn new(width: usize, rows: usize) -> Self {
        let stride = width.next_multiple_of(ALIGN / size_of::<T>());
        Self { samples: Aligned::new(stride * rows), stride }
    }

    /// The samples, row after row, with the rows' padding.
    pub fn samples(&self) -> &[T] {
        self.samples.samples()
    }

    /// The samples, to be written.
    pub fn samples_mut(&mut self) -> &mut [T] {
        self.samples.samples_mut()
    }

    /// Samples from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

/// Whether zimg may touch memory that starts there with this stride, in bytes.
pub fn is_aligned(data: &[u8], stride: usize) -> bool {
    data.as_ptr().align_offset(ALIGN) == 0 && stride.is_multiple_of(ALIGN)
}

/// Copies rows, as much of each as has room. Strides are in bytes and above zero.
pub fn copy_rows(from: &[u8], from_stride: usize, to: &mut [u8], to_stride: usize) {
    for (from, to) in from.chunks(from_stride).zip(to.chunks_mut(to_stride)) {
        for (from, to) in from.iter().zip(to) {
            *to = *from;
        }
    }
}
