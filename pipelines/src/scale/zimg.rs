//! zimg, which scales and converts pictures: hand-written bindings to the functions and structs in use (API 2.4, zimg 3.0),
//! and a safe [`Graph`] around them.

#![expect(unsafe_code, reason = "zimg is a C library without a Rust crate; all of its use is in this file")]

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::memory::{ALIGN, Aligned, Plane, is_aligned};

/// Unspecified, of every kind of colour number.
pub const UNSPECIFIED: u8 = 2;

/// Why zimg did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// zimg has no way from the one format to the other.
    #[error("no conversion: {0}")]
    Build(String),
    /// zimg failed on a picture.
    #[error("a picture was not converted: {0}")]
    Process(String),
    /// A plane is not in memory as zimg needs it.
    #[error("a picture's memory does not fit: {0}")]
    Memory(&'static str),
}

/// How a sample is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A whole number of up to 8 bits, in a byte.
    Byte,
    /// A whole number of up to 16 bits, in two bytes of the machine's order.
    Word,
    /// A 32-bit float: 0 to 1, or -0.5 to 0.5 for colour differences.
    Float,
}

impl Sample {
    fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Float => 4,
        }
    }
}

/// What the planes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One plane.
    Grey,
    /// Red, green, blue.
    Rgb,
    /// Luma and two colour differences.
    Yuv,
}

/// Where samples of subsampled colour differences lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChromaSite {
    /// On the left column, between two rows: MPEG-2, H.264's default.
    Left,
    /// In the middle of their pixels: JPEG, MPEG-1.
    Centre,
    /// On the first pixel: BT.2020, DV.
    TopLeft,
    /// Between two columns, on the upper row.
    Top,
}

/// Everything that says what the samples of a picture mean. Colours are code points of ITU-T H.273.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What the planes are.
    pub family: Family,
    /// How a sample is kept.
    pub sample: Sample,
    /// Bits of a sample that are in use.
    pub depth: u32,
    /// Halvings of width and of height for colour differences.
    pub subsampling: (u32, u32),
    /// Where colour differences lie.
    pub chroma_site: ChromaSite,
    /// Whether code values use the whole range.
    pub full_range: bool,
    /// MatrixCoefficients.
    pub matrix: u8,
    /// TransferCharacteristics; [`UNSPECIFIED`] on both sides leaves light alone.
    pub transfer: u8,
    /// ColourPrimaries; as with the transfer.
    pub primaries: u8,
}

impl Format {
    /// How many planes there are.
    pub fn planes(&self) -> usize {
        if self.family == Family::Grey { 1 } else { 3 }
    }

    /// Samples in a row, and rows, of a plane.
    pub fn plane_size(&self, plane: usize) -> (usize, usize) {
        let (across, down) = if plane == 0 { (0, 0) } else { self.subsampling };
        ((self.width >> across) as usize, (self.height >> down) as usize)
    }

    /// Bytes of a plane's row that hold samples.
    pub fn row_bytes(&self, plane: usize) -> usize {
        self.plane_size(plane).0 * self.sample.bytes()
    }

    fn to_zimg(self) -> ffi::ImageFormat {
        // SAFETY: zimg writes a plain struct of the version we name, whose layout `ffi::ImageFormat` has.
        let mut format = unsafe {
            let mut format = std::mem::MaybeUninit::<ffi::ImageFormat>::zeroed();
            ffi::zimg_image_format_default(format.as_mut_ptr(), ffi::API_VERSION);
            format.assume_init()
        };
        format.width = self.width;
        format.height = self.height;
        format.pixel_type = match self.sample {
            Sample::Byte => 0,
            Sample::Word => 1,
            Sample::Float => 3,
        };
        (format.subsample_w, format.subsample_h) = self.subsampling;
        format.color_family = match self.family {
            Family::Grey => 0,
            Family::Rgb => 1,
            Family::Yuv => 2,
        };
        format.matrix_coefficients = i32::from(self.matrix);
        format.transfer_characteristics = i32::from(self.transfer);
        format.color_primaries = i32::from(self.primaries);
        format.depth = self.depth;
        format.pixel_range = i32::from(self.full_range);
        format.chroma_location = match self.chroma_site {
            ChromaSite::Left => 0,
            ChromaSite::Centre => 1,
            ChromaSite::TopLeft => 2,
            ChromaSite::Top => 3,
        };
        format
    }
}

/// A number of which every pattern of bits is a value, so that zimg may write any.
pub trait Number: Copy + Default {}
impl Number for u8 {}
impl Number for f32 {}

/// A plane to be read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: *const u8,
    bytes: usize,
    stride: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> View<'a> {
    /// A plane in these bytes; `stride` is in bytes.
    pub fn new(data: &'a [u8], stride: usize) -> Self {
        Self { data: data.as_ptr(), bytes: data.len(), stride, memory: PhantomData }
    }

    /// The whole of a plane.
    pub fn of<T: Number>(plane: &'a Plane<T>) -> Self {
        let data = plane.samples();
        Self {
            data: data.as_ptr().cast(),
            bytes: size_of_val(data),
            stride: plane.stride() * size_of::<T>(),
            memory: PhantomData,
        }
    }
}

/// A plane to be written.
pub struct ViewMut<'a> {
    data: *mut u8,
    bytes: usize,
    stride: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> ViewMut<'a> {
    /// A plane in these bytes; `stride` is in bytes.
    pub fn new(data: &'a mut [u8], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), bytes: data.len(), stride, memory: PhantomData }
    }

    /// The whole of a plane.
    pub fn of<T: Number>(plane: &'a mut Plane<T>) -> Self {
        let stride = plane.stride() * size_of::<T>();
        let data = plane.samples_mut();
        Self { data: data.as_mut_ptr().cast(), bytes: size_of_val(data), stride, memory: PhantomData }
    }

    /// Sets every byte.
    pub fn fill(&mut self, value: u8) {
        // SAFETY: the bytes were borrowed exclusively, and still are.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.bytes) }.fill(value);
    }
}

/// A conversion of pictures from one format to another, with its scratch memory.
pub struct Graph {
    graph: NonNull<ffi::FilterGraph>,
    from: Format,
    to: Format,
    scratch: Aligned<u8>,
}

// SAFETY: a graph is bound to no thread; `process` needs `&mut self`, so one thread at a time uses it.
unsafe impl Send for Graph {}

impl Graph {
    /// A conversion with a 3-tap Lanczos kernel for luma and colour differences alike, dithered where bits are dropped.
    ///
    /// # Errors
    /// [`Error::Build`] when zimg does not know a colour, or a size does not fit the subsampling.
    pub fn new(from: Format, to: Format) -> Result<Self, Error> {
        // SAFETY: as in `Format::to_zimg`.
        let mut params = unsafe {
            let mut params = std::mem::MaybeUninit::<ffi::BuilderParams>::zeroed();
            ffi::zimg_graph_builder_params_default(params.as_mut_ptr(), ffi::API_VERSION);
            params.assume_init()
        };
        (params.resample_filter, params.filter_param_a) = (ffi::RESIZE_LANCZOS, 3.0);
        (params.resample_filter_uv, params.filter_param_a_uv) = (ffi::RESIZE_LANCZOS, 3.0);
        params.cpu_type = ffi::CPU_AUTO_64B;
        params.dither_type = if from.depth > to.depth { ffi::DITHER_ORDERED } else { ffi::DITHER_NONE };
        // SAFETY: the three structs live through the call, and zimg keeps none of them.
        let graph = unsafe { ffi::zimg_filter_graph_build(&from.to_zimg(), &to.to_zimg(), &params) };
        let graph = NonNull::new(graph).ok_or_else(|| Error::Build(last_error()))?;
        let mut graph = Self { graph, from, to, scratch: Aligned::new(0) };
        let mut bytes = 0;
        // SAFETY: the graph is valid, and `bytes` is written before the call returns.
        if unsafe { ffi::zimg_filter_graph_get_tmp_size(graph.graph.as_ptr(), &mut bytes) } != 0 {
            return Err(Error::Build(last_error()));
        }
        graph.scratch = Aligned::new(bytes);
        Ok(graph)
    }

    /// Converts one picture; planes are in the order of their [`Family`].
    ///
    /// # Errors
    /// [`Error::Memory`] when a plane is missing, too small or not aligned; nothing is touched then.
    pub fn process(&mut self, from: &[View<'_>], to: &mut [ViewMut<'_>]) -> Result<(), Error> {
        let mut source = ffi::ImageBuffer::empty();
        check(&self.from, from.len())?;
        for (index, (view, plane)) in from.iter().zip(&mut source.plane).enumerate() {
            check_plane(&self.from, index, view.data, view.bytes, view.stride)?;
            *plane =
                ffi::BufferPlane { data: view.data.cast_mut().cast(), stride: view.stride.cast_signed(), mask: ffi::BUFFER_MAX };
        }
        let mut target = ffi::ImageBuffer::empty();
        check(&self.to, to.len())?;
        for (index, (view, plane)) in to.iter_mut().zip(&mut target.plane).enumerate() {
            check_plane(&self.to, index, view.data, view.bytes, view.stride)?;
            *plane = ffi::BufferPlane { data: view.data.cast(), stride: view.stride.cast_signed(), mask: ffi::BUFFER_MAX };
        }
        let scratch = self.scratch.samples_mut();
        if !is_aligned(scratch, 0) {
            return Err(Error::Memory("the scratch memory is not aligned"));
        }
        // SAFETY: every plane of both formats was checked to be aligned and large enough, and borrowed through the call, the
        // target's exclusively; the source is only read; the scratch memory has the size that the graph asked for and is ours.
        let code = unsafe {
            let graph = self.graph.as_ptr();
            ffi::zimg_filter_graph_process(graph, &source, &target, scratch.as_mut_ptr().cast(), None, no_data(), None, no_data())
        };
        if code == 0 { Ok(()) } else { Err(Error::Process(last_error())) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph came from `zimg_filter_graph_build` and is freed once.
        unsafe { ffi::zimg_filter_graph_free(self.graph.as_ptr()) };
    }
}

fn no_data() -> *mut std::ffi::c_void {
    std::ptr::null_mut()
}

fn check(format: &Format, planes: usize) -> Result<(), Error> {
    if planes == format.planes() { Ok(()) } else { Err(Error::Memory("not the planes of the format")) }
}

fn check_plane(format: &Format, index: usize, data: *const u8, bytes: usize, stride: usize) -> Result<(), Error> {
    let (_, rows) = format.plane_size(index);
    if data.align_offset(ALIGN) != 0 || !stride.is_multiple_of(ALIGN) {
        return Err(Error::Memory("a plane is not aligned"));
    }
    // Whole strides for all rows: zimg reads in whole registers, up to the end of the last row's stride.
    if stride < format.row_bytes(index) || stride.checked_mul(rows).is_none_or(|needed| bytes < needed) {
        return Err(Error::Memory("a plane is too small"));
    }
    Ok(())
}

/// What went wrong last on this thread.
fn last_error() -> String {
    let mut text = [0_u8; 256];
    // SAFETY: zimg writes at most `text.len()` bytes, the last of them zero.
    let code = unsafe { ffi::zimg_get_last_error(text.as_mut_ptr().cast(), text.len()) };
    let text = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default();
    format!("{text} (zimg {code})")
}

mod ffi {
    //! `zimg.h`, as far as it is used.

    use std::ffi::{c_char, c_int, c_uint, c_void};

    /// Version 2.4 of the interface: what the structs below are.
    pub const API_VERSION: c_uint = (2 << 8) | 4;
    pub const CPU_AUTO_64B: c_int = 2;
    pub const DITHER_NONE: c_int = 0;
    pub const DITHER_ORDERED: c_int = 1;
    pub const RESIZE_LANCZOS: c_int = 5;
    /// Row mask of a plane that is wholly in memory.
    pub const BUFFER_MAX: c_uint = c_uint::MAX;

    #[repr(C)]
    pub struct FilterGraph {
        opaque: [u8; 0],
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct BufferPlane {
        pub data: *mut c_void,
        pub stride: isize,
        pub mask: c_uint,
    }

    /// Both of zimg's buffer structs: they differ in a `const` only.
    #[repr(C)]
    pub struct ImageBuffer {
        pub version: c_uint,
        pub plane: [BufferPlane; 4],
    }

    impl ImageBuffer {
        pub fn empty() -> Self {
            let plane = BufferPlane { data: std::ptr::null_mut(), stride: 0, mask: 0 };
            Self { version: API_VERSION, plane: [plane; 4] }
        }
    }

    #[repr(C)]
    #[derive(Debug)]
    pub struct ImageFormat {
        pub version: c_uint,
        pub width: c_uint,
        pub height: c_uint,
        pub pixel_type: c_int,
        pub subsample_w: c_uint,
        pub subsample_h: c_uint,
        pub color_family: c_int,
        pub matrix_coefficients: c_int,
        pub transfer_characteristics: c_int,
        pub color_primaries: c_int,
        pub depth: c_uint,
        pub pixel_range: c_int,
        pub field_parity: c_int,
        pub chroma_location: c_int,
        /// Left, top, width and height.
        pub active_region: [f64; 4],
        pub alpha: c_int,
    }

    #[repr(C)]
    #[derive(Debug)]
    pub struct BuilderParams {
        pub version: c_uint,
        pub resample_filter: c_int,
        pub filter_param_a: f64,
        pub filter_param_b: f64,
        pub resample_filter_uv: c_int,
        pub filter_param_a_uv: f64,
        pub filter_param_b_uv: f64,
        pub dither_type: c_int,
        pub cpu_type: c_int,
        pub nominal_peak_luminance: f64,
        pub allow_approximate_gamma: c_char,
    }

    pub type Callback = unsafe extern "C" fn(user: *mut c_void, i: c_uint, left: c_uint, right: c_uint) -> c_int;

    #[link(name = "zimg")]
    unsafe extern "C" {
        #[cfg(test)]
        pub fn zimg_get_api_version(major: *mut c_uint, minor: *mut c_uint) -> c_uint;
        pub fn zimg_get_last_error(text: *mut c_char, bytes: usize) -> c_int;
        pub fn zimg_image_format_default(format: *mut ImageFormat, version: c_uint);
        pub fn zimg_graph_builder_params_default(params: *mut BuilderParams, version: c_uint);
        pub fn zimg_filter_graph_build(
            from: *const ImageFormat,
            to: *const ImageFormat,
            params: *const BuilderParams,
        ) -> *mut FilterGraph;
        pub fn zimg_filter_graph_free(graph: *mut FilterGraph);
        pub fn zimg_filter_graph_get_tmp_size(graph: *const FilterGraph, bytes: *mut usize) -> c_int;
        pub fn zimg_filter_graph_process(
            graph: *const FilterGraph,
            from: *const ImageBuffer,
            to: *const ImageBuffer,
            scratch: *mut c_void,
            unpack: Option<Callback>,
            unpack_user: *mut c_void,
            pack: Option<Callback>,
            pack_user: *mut c_void,
        ) -> c_int;
    }
}

#[cfg(test)]
mod tests {
    use super::{ChromaSite, Error, Family, Format, Graph, Plane, Sample, View, ViewMut, ffi};

    fn grey(width: u32, height: u32) -> Format {
        Format {
            width,
            height,
            family: Family::Grey,
            sample: Sample::Float,
            depth: 32,
            subsampling: (0, 0),
            chroma_site: ChromaSite::Left,
            full_range: true,
            matrix: 2,
            transfer: 2,
            primaries: 2,
        }
    }

    #[test]
    fn the_structs_are_laid_out_as_in_c() {
        assert_eq!(size_of::<ffi::ImageFormat>(), 96);
        assert_eq!(size_of::<ffi::BuilderParams>(), 72);
        assert_eq!(size_of::<ffi::ImageBuffer>(), 104);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: zimg writes the two numbers.
        let version = unsafe { ffi::zimg_get_api_version(&mut major, &mut minor) };
        assert!(version >= ffi::API_VERSION && major == 2, "zimg's interface is {major}.{minor}");
    }

    /// The defaults lie at both ends and in the middle of the structs; a field out of place would not read them back.
    #[test]
    fn defaults_are_found_where_they_belong() {
        let mut format = std::mem::MaybeUninit::<ffi::ImageFormat>::zeroed();
        let mut params = std::mem::MaybeUninit::<ffi::BuilderParams>::zeroed();
        // SAFETY: both structs are plain numbers, valid when zero, and zimg fills them.
        let (format, params) = unsafe {
            ffi::zimg_image_format_default(format.as_mut_ptr(), ffi::API_VERSION);
            ffi::zimg_graph_builder_params_default(params.as_mut_ptr(), ffi::API_VERSION);
            (format.assume_init(), params.assume_init())
        };
        assert_eq!(format.version, ffi::API_VERSION);
        let colours = [format.matrix_coefficients, format.transfer_characteristics, format.color_primaries];
        assert_eq!((format.color_family, colours), (0, [2, 2, 2]));
        assert!(format.active_region.iter().all(|v| v.is_nan()), "{format:?}");
        assert_eq!((format.chroma_location, format.alpha), (0, 0));
        assert_eq!((params.version, params.resample_filter, params.resample_filter_uv), (ffi::API_VERSION, 2, 1));
        assert!(params.filter_param_a.is_nan() && params.filter_param_b_uv.is_nan() && params.nominal_peak_luminance.is_nan());
        assert_eq!((params.dither_type, params.cpu_type, params.allow_approximate_gamma), (0, 1, 0));
    }

    #[test]
    fn memory_that_does_not_fit_is_refused() {
        let mut graph = Graph::new(grey(64, 8), grey(32, 8)).expect("grey scales");
        let source = Plane::<f32>::new(64, 8);
        let mut target = Plane::<f32>::new(32, 8);
        assert!(graph.process(&[View::of(&source)], &mut [ViewMut::of(&mut target)]).is_ok());
        assert!(matches!(graph.process(&[], &mut [ViewMut::of(&mut target)]), Err(Error::Memory(_))));
        let small = Plane::<f32>::new(64, 7);
        assert!(matches!(graph.process(&[View::of(&small)], &mut [ViewMut::of(&mut target)]), Err(Error::Memory(_))));
        let mut bytes = Plane::<u8>::new(64 * 4, 9);
        let (view, aside) = (View::of(&source), &mut bytes.samples_mut()[32..]);
        assert!(matches!(graph.process(&[view], &mut [ViewMut::new(aside, 256)]), Err(Error::Memory(_))));
        assert!(matches!(graph.process(&[view], &mut [ViewMut::new(bytes.samples_mut(), 64)]), Err(Error::Memory(_))));
    }

    #[test]
    fn what_zimg_cannot_do_is_told_in_words() {
        let odd = Format { family: Family::Yuv, subsampling: (1, 1), ..grey(63, 8) };
        let Err(Error::Build(text)) = Graph::new(odd, grey(32, 8)) else { panic!("63 pixels have no half") };
        assert!(text.contains("divisible"), "{text}");
    }
}
