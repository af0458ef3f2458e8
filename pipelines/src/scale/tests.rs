//! The scaler as an element: what goes in is made here, what comes out is compared with a reference in `f64`.

use farm::media::Colour;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::video_frame::Readable;
use gst_video::{VideoChromaSite, VideoFormat, VideoFrame, VideoInfo};

use super::shoalscale::{ShoalScale, register};

/// No pipeline here takes longer.
const WAIT: gst::ClockTime = gst::ClockTime::from_seconds(20);
/// What a code value may be off by.
const NEAR: f64 = 3.0;

const SMPTE170M: Colour = Colour { primaries: 6, transfer: 6, matrix: 6, full_range: false };
const BT2020: Colour = Colour { primaries: 9, transfer: 14, matrix: 9, full_range: false };
const PQ: Colour = Colour { primaries: 9, transfer: 16, matrix: 9, full_range: false };
const HLG: Colour = Colour { primaries: 9, transfer: 18, matrix: 9, full_range: false };

/// Gamma-coded red, green and blue: greys, primaries, secondaries and colours between.
const PATCHES: [[f64; 3]; 12] = [
    [0.0, 0.0, 0.0],
    [0.25, 0.25, 0.25],
    [0.5, 0.5, 0.5],
    [1.0, 1.0, 1.0],
    [1.0, 0.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, 0.0, 1.0],
    [1.0, 1.0, 0.0],
    [0.0, 1.0, 1.0],
    [0.75, 0.5, 0.25],
    [0.2, 0.6, 0.4],
    [0.45, 0.3, 0.7],
];

/// Weights of red and blue in luma.
fn weights(matrix: u8) -> (f64, f64) {
    match matrix {
        1 => (0.2126, 0.0722),
        6 => (0.299, 0.114),
        9 => (0.2627, 0.0593),
        other => panic!("no weights for matrix {other}"),
    }
}

/// Code values of a colour: luma and colour differences (H.273, equations 26 ff.).
fn yuv([r, g, b]: [f64; 3], matrix: u8, depth: u32, full_range: bool) -> [f64; 3] {
    let (kr, kb) = weights(matrix);
    let y = kr * r + (1.0 - kr - kb) * g + kb * b;
    let (cb, cr) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
    let (unit, top) = (f64::from(1_u32 << (depth - 8)), f64::from((1_u32 << depth) - 1));
    if full_range {
        let middle = f64::from(1_u32 << (depth - 1));
        [y * top, middle + cb * top, middle + cr * top]
    } else {
        [(16.0 + 219.0 * y) * unit, (128.0 + 224.0 * cb) * unit, (128.0 + 224.0 * cr) * unit]
    }
}

fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
    gst::init().expect("GStreamer starts");
    let info = VideoInfo::builder(format, width, height).chroma_site(VideoChromaSite::MPEG2);
    info.fps(gst::Fraction::new(25, 1)).build().expect("a picture")
}

/// A picture made of a value for each place of each component, in GStreamer's packed layout.
fn picture(info: &VideoInfo, value: impl Fn(usize, usize, usize) -> f64) -> gst::Buffer {
    let buffer = gst::Buffer::with_size(info.size()).expect("memory");
    let mut frame = VideoFrame::from_buffer_writable(buffer, info).expect("a frame");
    let format = info.format_info();
    let largest = f64::from((1_u32 << info.comp_depth(0)) - 1);
    for component in 0..info.n_components() as usize {
        let (plane, index) = (format.plane()[component], u8::try_from(component).expect("few components"));
        let (width, height) = (info.comp_width(index) as usize, info.comp_height(index) as usize);
        let stride = info.comp_stride(index).unsigned_abs() as usize;
        let data = frame.plane_data_mut(plane).expect("a plane");
        for (y, row) in data.chunks_mut(stride).take(height).enumerate() {
            for x in 0..width {
                let code = value(component, x, y).round().min(largest) as u16;
                match info.comp_depth(0) {
                    8 => row[x] = code.try_into().expect("8 bits"),
                    _ => row[2 * x..2 * x + 2].copy_from_slice(&code.to_le_bytes()),
                }
            }
        }
    }
    frame.into_buffer()
}

/// A pipeline that is stopped when dropped.
struct Running(gst::Pipeline);

impl Running {
    fn start(elements: &[&gst::Element]) -> Self {
        let pipeline = gst::Pipeline::new();
        pipeline.add_many(elements).expect("elements are added");
        gst::Element::link_many(elements).expect("elements link");
        pipeline.set_state(gst::State::Playing).expect("the pipeline starts");
        Self(pipeline)
    }

    fn error(&self) -> String {
        let message = self.0.bus().and_then(|bus| bus.timed_pop_filtered(gst::ClockTime::ZERO, &[gst::MessageType::Error]));
        format!("{message:?}")
    }

    fn wait_for_end(&self) {
        let bus = self.0.bus().expect("a bus");
        let message = bus.timed_pop_filtered(WAIT, &[gst::MessageType::Error, gst::MessageType::Eos]);
        assert!(message.as_ref().is_some_and(|m| m.type_() == gst::MessageType::Eos), "{message:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// Scales one picture; gives the rung's picture and how many were staged.
fn scale(source: &VideoInfo, buffer: gst::Buffer, colour: Option<Colour>, to: (u32, u32)) -> (VideoFrame<Readable>, u64) {
    let (width, height) = to;
    let unspecified = Colour { primaries: 2, transfer: 2, matrix: 2, full_range: false };
    let scaler = ShoalScale::new(width, height, colour.unwrap_or(unspecified));
    let caps = source.to_caps().expect("caps");
    let from = gst_app::AppSrc::builder().caps(&caps).format(gst::Format::Time).build();
    let to = gst_app::AppSink::builder().sync(false).build();
    let running = Running::start(&[from.upcast_ref(), scaler.upcast_ref(), to.upcast_ref()]);
    from.push_buffer(buffer).expect("a picture is taken");
    from.end_of_stream().expect("an end is taken");
    let sample = to.try_pull_sample(WAIT).unwrap_or_else(|| panic!("no picture: {}", running.error()));
    let rung = VideoInfo::from_caps(sample.caps().expect("caps")).expect("raw video");
    assert_eq!((rung.format(), rung.width(), rung.height()), (VideoFormat::I420, width, height));
    assert_eq!((rung.colorimetry().to_string(), rung.chroma_site()), ("bt709".to_owned(), VideoChromaSite::MPEG2));
    assert_eq!(rung.par(), gst::Fraction::new(1, 1));
    let frame = VideoFrame::from_buffer_readable(sample.buffer_owned().expect("a buffer"), &rung).expect("a frame");
    (frame, scaler.staged())
}

/// Every sample of a component, row by row, without padding.
fn samples(frame: &VideoFrame<Readable>, component: u32) -> Vec<f64> {
    let index = u8::try_from(component).expect("few components");
    let (width, height) = (frame.info().comp_width(index) as usize, frame.info().comp_height(index) as usize);
    let stride = frame.plane_stride()[component as usize].unsigned_abs() as usize;
    let data = frame.plane_data(component).expect("a plane");
    data.chunks(stride).take(height).flat_map(|row| row[..width].iter().map(|&v| f64::from(v))).collect()
}

/// Whether flat pictures of all patches come out as the reference says, at every pixel.
fn check_patches(
    format: VideoFormat,
    colour: Colour,
    code: impl Fn([f64; 3]) -> [f64; 3],
    expected: impl Fn([f64; 3]) -> [f64; 3],
) {
    for patch in PATCHES {
        let info = info(format, 96, 64);
        let code = code(patch);
        let (frame, _) = scale(&info, picture(&info, |component, _, _| code[component]), Some(colour), (48, 32));
        let expected = expected(patch);
        for component in 0..3 {
            let worst =
                samples(&frame, component).into_iter().map(|v| (v - expected[component as usize]).abs()).fold(0.0, f64::max);
            assert!(worst <= NEAR, "{format:?} {colour:?} {patch:?}, component {component}: {worst} off {expected:?}");
        }
    }
}

fn bt709(patch: [f64; 3]) -> [f64; 3] {
    yuv(patch, 1, 8, false)
}

#[test]
fn colours_stay_when_only_the_size_changes() {
    check_patches(VideoFormat::I420, Colour::BT709, bt709, bt709);
}

#[test]
fn bt601_becomes_bt709() {
    check_patches(VideoFormat::I420, SMPTE170M, |p| yuv(p, 6, 8, false), bt709);
    check_patches(VideoFormat::I42210le, SMPTE170M, |p| yuv(p, 6, 10, false), bt709);
}

#[test]
fn full_range_becomes_limited() {
    let full = Colour { full_range: true, ..Colour::BT709 };
    check_patches(VideoFormat::I420, full, |p| yuv(p, 1, 8, true), bt709);
    check_patches(VideoFormat::I42010le, full, |p| yuv(p, 1, 10, true), bt709);
    check_patches(VideoFormat::Y444, Colour { full_range: true, ..SMPTE170M }, |p| yuv(p, 6, 8, true), bt709);
}

#[test]
fn every_depth_and_subsampling_is_read() {
    for format in [VideoFormat::Y42b, VideoFormat::Y444, VideoFormat::Y41b] {
        check_patches(format, Colour::BT709, bt709, bt709);
    }
    for format in [VideoFormat::I42010le, VideoFormat::I42210le, VideoFormat::Y44410le] {
        check_patches(format, Colour::BT709, |p| yuv(p, 1, 10, false), bt709);
    }
    for format in [VideoFormat::I42012le, VideoFormat::I42212le, VideoFormat::Y44412le] {
        check_patches(format, Colour::BT709, |p| yuv(p, 1, 12, false), bt709);
    }
    check_patches(VideoFormat::Y44416le, Colour::BT709, |p| yuv(p, 1, 16, false), bt709);
}

#[test]
fn rgb_and_grey_are_read() {
    check_patches(VideoFormat::Gbr, Colour::BT709, |p| p.map(|v| v * 255.0), bt709);
    check_patches(VideoFormat::Gbr10le, Colour::BT709, |p| p.map(|v| v * 1023.0), bt709);
    let luma = |p: [f64; 3]| [bt709(p)[0], 128.0, 128.0];
    check_patches(VideoFormat::Gray8, Colour::BT709, bt709, luma);
    let full = Colour { full_range: true, ..Colour::BT709 };
    check_patches(VideoFormat::Gray16Le, full, |p| yuv(p, 1, 16, true), luma);
}

/// The curves that `tone` states, one step after another in `f64`, with the matrix of BT.2407 as printed there.
mod reference {
    fn to_bt709([r, g, b]: [f64; 3]) -> [f64; 3] {
        [1.6605 * r - 0.5876 * g - 0.0728 * b, -0.1246 * r + 1.1329 * g - 0.0083 * b, -0.0182 * r - 0.1006 * g + 1.1187 * b]
    }

    fn display(light: [f64; 3]) -> [f64; 3] {
        to_bt709(light).map(|v| v.clamp(0.0, 1.0).powf(1.0 / 2.4))
    }

    const M: (f64, f64) = (0.159_301_757_812_5, 78.84375);
    const C: (f64, f64, f64) = (0.8359375, 18.8515625, 18.6875);

    pub fn pq_light(code: f64) -> f64 {
        let e = code.powf(1.0 / M.1);
        10_000.0 * ((e - C.0).max(0.0) / (C.1 - C.2 * e)).powf(1.0 / M.0)
    }

    pub fn pq_code(light: f64) -> f64 {
        let y = (light / 10_000.0).powf(M.0);
        ((C.0 + C.1 * y) / (1.0 + C.2 * y)).powf(M.1)
    }

    /// 1000 cd/m² down to 203, in proportion to the largest; 1.0 is 203 cd/m².
    fn tone(light: [f64; 3]) -> [f64; 3] {
        let largest = light.into_iter().fold(0.0, f64::max);
        if largest == 0.0 {
            return light;
        }
        let (peak, white) = (pq_code(1000.0), pq_code(203.0));
        let (e, max) = ((pq_code(largest) / peak).min(1.0), white / peak);
        let ks = 1.5 * max - 0.5;
        let t = (e - ks) / (1.0 - ks);
        let hermite = (2.0 * t.powi(3) - 3.0 * t.powi(2) + 1.0) * ks
            + (t.powi(3) - 2.0 * t.powi(2) + t) * (1.0 - ks)
            + (-2.0 * t.powi(3) + 3.0 * t.powi(2)) * max;
        let mapped = pq_light(peak * if e < ks { e } else { hermite });
        light.map(|v| v / largest * mapped / 203.0)
    }

    pub fn pq(code: [f64; 3]) -> [f64; 3] {
        display(tone(code.map(pq_light)))
    }

    pub fn hlg(code: [f64; 3]) -> [f64; 3] {
        let (a, b, c) = (0.17883277, 0.28466892, 0.55991073);
        let scene = code.map(|e: f64| if e <= 0.5 { e * e / 3.0 } else { (((e - c) / a).exp() + b) / 12.0 });
        let luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2];
        let gain = if luminance > 0.0 { 1000.0 * luminance.powf(0.2) } else { 0.0 };
        display(tone(scene.map(|v| gain * v)))
    }

    pub fn bt2020(code: [f64; 3]) -> [f64; 3] {
        display(code.map(|v| v.powf(2.4)))
    }
}

#[test]
fn pq_is_tone_mapped() {
    check_patches(VideoFormat::I42010le, PQ, |p| yuv(p, 9, 10, false), |p| bt709(reference::pq(p)));
    // Above the peak of 1000 cd/m² (75 %) all is white; reference white (58 %) is below it, and greys stay grey.
    let [white, reference, grey] = [0.8, 0.58, 0.38].map(|code| reference::pq([code; 3])[0]);
    assert!(white > 0.999 && (0.85..0.95).contains(&reference) && (0.4..0.5).contains(&grey), "{white} {reference} {grey}");
}

#[test]
fn hlg_is_tone_mapped() {
    check_patches(VideoFormat::I42010le, HLG, |p| yuv(p, 9, 10, false), |p| bt709(reference::hlg(p)));
}

#[test]
fn bt2020_is_brought_into_bt709() {
    check_patches(VideoFormat::I42010le, BT2020, |p| yuv(p, 9, 10, false), |p| bt709(reference::bt2020(p)));
}

/// Colours that the caps tell count where no property overrides them.
#[test]
fn caps_tell_colours_too() {
    let source = VideoInfo::builder(VideoFormat::I42010le, 96, 64);
    gst::init().expect("GStreamer starts");
    let hlg: gst_video::VideoColorimetry = "bt2100-hlg".parse().expect("a colorimetry");
    let source = source.colorimetry(&hlg).fps(gst::Fraction::new(25, 1)).build().expect("a picture");
    let patch = [0.6, 0.5, 0.3];
    let code = yuv(patch, 9, 10, false);
    let (frame, _) = scale(&source, picture(&source, |component, _, _| code[component]), None, (48, 32));
    let expected = bt709(reference::hlg(patch));
    assert!((samples(&frame, 0)[100] - expected[0]).abs() <= NEAR && (samples(&frame, 2)[100] - expected[2]).abs() <= NEAR);
}

/// A slope across the picture comes out as the same slope: nothing is shifted, cut or mirrored.
#[test]
fn positions_stay() {
    let sizes = [
        ((854, 480), (640, 360)),
        ((640, 360), (426, 240)),
        ((161, 121), (160, 120)),
        ((1920, 1080), (1280, 720)),
        ((99, 201), (48, 100)),
    ];
    for ((width, height), (to_width, to_height)) in sizes {
        for format in [VideoFormat::I420, VideoFormat::I42010le] {
            let info = info(format, width, height);
            let unit = f64::from(1_u32 << (info.comp_depth(0) - 8));
            // Of luma along the rows, of one colour difference down the columns.
            let slope = |at: f64, size: u32| 30.0 + 180.0 * (at + 0.5) / f64::from(size);
            let source = picture(&info, |component, x, y| match component {
                0 => unit * slope(x as f64, width),
                1 => unit * slope(y as f64, info.comp_height(1)),
                _ => unit * 128.0,
            });
            let (frame, _) = scale(&info, source, Some(Colour::BT709), (to_width, to_height));
            let luma = samples(&frame, 0);
            let blue = samples(&frame, 1);
            let (columns, rows) = (to_width as usize, to_height as usize / 2);
            // Odd sides lose their last row or column.
            let (seen_width, seen_height) =
                (f64::from(width & !1) / f64::from(width), f64::from(height / 2) / f64::from(info.comp_height(1)));
            for x in 4..columns - 4 {
                let expected = 30.0 + 180.0 * seen_width * (x as f64 + 0.5) / columns as f64;
                let got = luma[columns * (to_height as usize / 2) + x];
                assert!((got - expected).abs() <= 2.0, "{format:?} {width}x{height}, column {x}: {got} for {expected}");
            }
            for y in 4..rows - 4 {
                let expected = 30.0 + 180.0 * seen_height * (y as f64 + 0.5) / rows as f64;
                let got = blue[columns / 2 * y + columns / 4];
                assert!((got - expected).abs() <= 2.0, "{format:?} {width}x{height}, row {y}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn a_picture_that_is_right_is_passed_on_untouched() {
    let info = info(VideoFormat::I420, 854, 480);
    let source = picture(&info, |_, x, _| (x % 200) as f64 + 20.0);
    let address = source.map_readable().expect("memory").as_ptr();
    let (frame, staged) = scale(&info, source.clone(), Some(Colour::BT709), (854, 480));
    assert_eq!(frame.plane_data(0).expect("a plane").as_ptr(), address);
    assert_eq!(staged, 0);
    // Other colours are not.
    let (frame, _) = scale(&info, source, Some(SMPTE170M), (854, 480));
    assert_ne!(frame.plane_data(0).expect("a plane").as_ptr(), address);
}

/// Pictures of a test source, scaled, and how many were staged. Memory is agreed on with what is before the scaler, and
/// after it, or packed as GStreamer does by default: 854 and 426 bytes in a row, on which zimg would crash.
fn run(agreed_before: bool, agreed_after: bool) -> (Vec<Vec<f64>>, u64) {
    gst::init().expect("GStreamer starts");
    register().expect("the element is registered");
    let line = format!(
        "videotestsrc num-buffers=5 pattern=smpte ! video/x-raw,format=I420,width=854,height=480,framerate=25/1,colorimetry=bt709 \
         ! identity drop-allocation={} ! shoalscale name=s ! video/x-raw,width=426,height=240 ! appsink name=to sync=false",
        !agreed_before
    );
    let pipeline = gst::parse::launch(&line).expect("a pipeline").downcast::<gst::Pipeline>().expect("a pipeline");
    let scaler = pipeline.by_name("s").expect("the scaler");
    let sink = pipeline.by_name("to").expect("the sink").downcast::<gst_app::AppSink>().expect("an appsink");
    sink.static_pad("sink").expect("a pad").add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, move |_, info| {
        match info.query_mut().map(gst::QueryRef::view_mut) {
            Some(gst::QueryViewMut::Allocation(query)) if agreed_after => {
                query.add_allocation_meta::<gst_video::VideoMeta>(None);
                gst::PadProbeReturn::Handled
            }
            _ => gst::PadProbeReturn::Ok,
        }
    });
    let running = Running(pipeline);
    running.0.set_state(gst::State::Playing).expect("the pipeline starts");
    let mut pictures = Vec::new();
    while let Some(sample) = sink.try_pull_sample(WAIT) {
        let info = VideoInfo::from_caps(sample.caps().expect("caps")).expect("raw video");
        let frame = VideoFrame::from_buffer_readable(sample.buffer_owned().expect("a buffer"), &info).expect("a frame");
        pictures.push((0..3).flat_map(|component| samples(&frame, component)).collect());
    }
    assert!(sink.is_eos(), "{}", running.error());
    (pictures, scaler.property("staged"))
}

/// The same pictures come out however memory lies; only memory that does not fit costs copies.
#[test]
fn memory_that_is_not_aligned_is_staged() {
    let (pictures, staged) = run(true, true);
    assert_eq!((pictures.len(), staged), (5, 0));
    for (before, after) in [(false, true), (true, false), (false, false)] {
        let (same, staged) = run(before, after);
        assert_eq!(staged, 5, "{before} {after}");
        assert!(same == pictures, "{before} {after}: pictures differ");
    }
}

/// What every ladder relies on: nobody copies pictures between decoder, tee, scalers and encoders.
#[test]
fn a_ladder_stages_nothing() {
    gst::init().expect("GStreamer starts");
    register().expect("the element is registered");
    let line = "videotestsrc num-buffers=10 ! video/x-raw,format=I420,width=1280,height=720,framerate=25/1,colorimetry=bt709 \
        ! queue ! shoalscale name=a ! video/x-raw,width=854,height=480 ! tee name=t \
        t. ! queue ! x264enc speed-preset=ultrafast threads=1 tune=zerolatency ! fakesink async=false \
        t. ! queue ! shoalscale name=b ! video/x-raw,width=426,height=240 ! x264enc speed-preset=ultrafast threads=1 tune=zerolatency ! fakesink async=false";
    let pipeline = gst::parse::launch(line).expect("a pipeline").downcast::<gst::Pipeline>().expect("a pipeline");
    let scalers = ["a", "b"].map(|name| pipeline.by_name(name).expect("a scaler"));
    let running = Running(pipeline);
    running.0.set_state(gst::State::Playing).expect("the pipeline starts");
    running.wait_for_end();
    assert_eq!(scalers.map(|scaler| scaler.property::<u64>("staged")), [0, 0]);
}

#[test]
fn what_stands_beside_a_picture_in_memory_is_not_seen_in_what_is_made_of_it() {
    use super::convert::Converter;
    use super::memory::Plane;
    use super::zimg::{View, ViewMut};

    for ((from_width, from_height), (width, height)) in
        [((640, 360), (428, 240)), ((854, 480), (640, 360)), ((854, 480), (428, 240))]
    {
        let (from, to) = (super::colour::rung_format(from_width, from_height), super::colour::rung_format(width, height));
        let mut converter = Converter::new(from, to, false).expect("a way").expect("a conversion");
        let mut made = |beside: u8| {
            let mut source: Vec<Plane<u8>> =
                (0..3).map(|index| Plane::new(from.row_bytes(index), from.plane_size(index).1)).collect();
            for (index, plane) in source.iter_mut().enumerate() {
                let (stride, row_bytes) = (plane.stride(), from.row_bytes(index));
                for (place, sample) in plane.samples_mut().iter_mut().enumerate() {
                    let (x, y) = (place % stride, place / stride);
                    *sample = if x < row_bytes { (x * 7 + y * 13 + index * 31) as u8 / 2 + 40 } else { beside };
                }
            }
            let mut target: Vec<Plane<u8>> =
                (0..3).map(|index| Plane::new(to.row_bytes(index), to.plane_size(index).1)).collect();
            let views: Vec<_> = source.iter().map(View::of).collect();
            converter.convert(&views, &mut target.iter_mut().map(ViewMut::of).collect::<Vec<_>>()).expect("converted");
            let rows = |(index, plane): (usize, &Plane<u8>)| {
                plane.samples().chunks(plane.stride()).map(|row| row[..to.row_bytes(index)].to_vec()).collect::<Vec<_>>()
            };
            target.iter().enumerate().map(rows).collect::<Vec<_>>()
        };
        assert!(made(0) == made(255), "{from_width} to {width}");
    }
}
