//! Stand-ins for hardware encoders: elements with the names and properties of real ones, whose work x264 does, and which fail
//! as they are told.
//!
//! ```text
//! nvh264enc ─┐                          ┌ faults: at a frame, by its time
//! vah264enc ─┴→ bin: ghost pad → core ──┴→ x264enc, made when the first frame comes → ghost pad
//! ```
//! Frames come with their times on the job's grid, so a piece of the work is known by the time of its first frame; a proof
//! begins at 0 and ends before the second piece. One process has one behaviour: see [`register`].

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use gst::glib;
use gst::prelude::*;
use serde::{Deserialize, Serialize};

/// What the stand-ins of a process do. Seconds are of the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// What they are asked for.
    Honest,
    /// Nothing: they fail at the first frame, whatever it is.
    Refuses,
    /// What they are asked for until this second, and from then on this.
    From(u64, Fault),
    /// They die at this second, once, leave this file behind, refuse everything for a while, and are well for ever after.
    FallsIll {
        /// The second.
        second: u64,
        /// The file.
        mark: PathBuf,
    },
    /// They make other parameter sets in every second piece of so many seconds.
    OtherSetsEvery(u64),
    /// Only so many work at a time, of all processes that give the same name.
    Sessions {
        /// How many.
        most: u32,
        /// The name.
        name: String,
    },
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The element fails, and says so.
    Dies,
    /// The whole process dies.
    Aborts,
    /// Nothing happens any more.
    Hangs,
    /// Another picture is encoded, and well.
    ShowsAnother,
    /// What comes out are random bytes, most of it.
    WritesNoise,
    /// One key frame comes at the start, if the piece begins here, and no other however it is asked for.
    ForgetsKeyFrames,
    /// One frame is left out.
    LosesAFrame,
    /// The parameter sets change, with a key frame.
    ChangesSets,
}

/// Widest picture that is taken, in pixels: as older devices have it.
const WIDTH_MAX: i32 = 1920;

/// What an element says that dies.
pub const DYING_WORDS: &str = "the stand-in dies here";
/// What an element says that finds no session, as NVIDIA's driver does.
const TOO_MANY: &str = "OpenEncodeSessionEx failed: out of memory (10)";
/// How long whoever falls ill refuses everything: longer than it takes to try at once, shorter than the pause after that.
const ILLNESS: Duration = Duration::from_secs(8);
/// Frames between key frames where they are forgotten.
const NEVER: u32 = 10_000;
/// Frames that a stream may refer to, usually and where the parameter sets are to be others.
const REFERENCES: [u32; 2] = [1, 3];
/// The quantizer when nothing is asked for.
const QUANTIZER: f64 = 23.0;
/// Bytes of a frame that are not made noise of: headers.
const HEAD_BYTES: usize = 64;

static BEHAVIOUR: OnceLock<Behaviour> = OnceLock::new();

/// Registers `nvh264enc` and `vah264enc` in this process, to behave like this. GStreamer is to be started before.
///
/// # Errors
/// When it was called before, or GStreamer does not take them.
pub fn register(behaviour: Behaviour) -> Result<()> {
    BEHAVIOUR.set(behaviour).map_err(|other| anyhow!("there are stand-ins already, and they cannot be {other:?}"))?;
    gst::Element::register(None, "nvh264enc", gst::Rank::NONE, nvenc::Element::static_type())?;
    gst::Element::register(None, "vah264enc", gst::Rank::NONE, vaapi::Element::static_type())?;
    Ok(())
}

fn behaviour() -> &'static Behaviour {
    BEHAVIOUR.get().unwrap_or(&Behaviour::Honest)
}

/// What is wrong at a frame of this time.
fn fault_at(time: gst::ClockTime) -> Option<Fault> {
    match behaviour() {
        Behaviour::From(second, fault) if time.seconds() >= *second => Some(*fault),
        Behaviour::FallsIll { second, mark } if time.seconds() >= *second && !mark.exists() => {
            // Who cannot leave it dies all the same.
            let _ = fs::write(mark, "");
            Some(Fault::Dies)
        }
        _ => None,
    }
}

fn is_ill(mark: &Path) -> bool {
    let since = fs::metadata(mark).and_then(|left| left.modified());
    since.is_ok_and(|since| since.elapsed().is_ok_and(|time| time < ILLNESS))
}

/// What an element is asked for, of what is granted.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    /// On x264's scale; none when 0.
    quality: f64,
    /// kbit/s; none when 0.
    bitrate: f64,
    /// Frames from one key frame to the next.
    gop: f64,
}

/// What all stand-ins have in common.
#[derive(Default)]
struct Core {
    wish: Mutex<Wish>,
    /// What came before the first frame waits for it.
    held: Mutex<Vec<gst::Event>>,
    /// Time of the first frame.
    first: OnceLock<gst::ClockTime>,
    /// Who does the work.
    x264: Mutex<Option<gst::Element>>,
    /// Whether what happens once has happened.
    has_happened: AtomicBool,
    /// Whether what comes out is made noise of.
    is_noise: Arc<AtomicBool>,
    /// Its session, while it has one.
    session: Mutex<Option<UnixListener>>,
}

impl Core {
    fn wish(&self, property: &str, value: &glib::Value) {
        let whole = value.get::<u32>().ok().map(f64::from).or_else(|| value.get::<i32>().ok().map(f64::from));
        let Some(number) = whole.or_else(|| value.get::<f64>().ok()) else { return };
        let mut wish = lock(&self.wish);
        match property {
            "bitrate" => wish.bitrate = number,
            "const-quality" | "qpi" | "qp-const-i" => wish.quality = number,
            "gop-size" | "key-int-max" => wish.gop = number,
            // As far as a test goes, a driver's own business.
            _ => {}
        }
    }

    /// Takes a session, where their number is limited. It is as long as the socket of its name.
    fn open(&self, bin: &gst::Bin) -> Result<(), gst::StateChangeError> {
        let Behaviour::Sessions { most, name } = behaviour() else { return Ok(()) };
        let taken = |number: u32| {
            let address = SocketAddr::from_abstract_name(format!("{name}-{number}")).ok()?;
            UnixListener::bind_addr(&address).ok()
        };
        let Some(session) = (0..*most).find_map(taken) else {
            gst::element_error!(bin, gst::ResourceError::Busy, ("{TOO_MANY}"));
            return Err(gst::StateChangeError);
        };
        *lock(&self.session) = Some(session);
        Ok(())
    }

    fn close(&self) {
        *lock(&self.session) = None;
    }

    fn chain(
        &self,
        pad: &gst::GhostPad,
        parent: Option<&gst::Object>,
        mut picture: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let bin = parent.and_then(|parent| parent.downcast_ref::<gst::Bin>()).ok_or(gst::FlowError::Error)?;
        let time = picture.pts().ok_or_else(|| fails(bin, "a frame without a time"))?;
        if self.first.set(time).is_ok() {
            self.begin(pad, bin, time)?;
        }
        match fault_at(time) {
            None | Some(Fault::ForgetsKeyFrames) => {}
            Some(Fault::Dies) => return Err(fails(bin, DYING_WORDS)),
            Some(Fault::Aborts) => std::process::abort(),
            Some(Fault::Hangs) => hang(),
            Some(Fault::ShowsAnother) => picture = grey(&picture).map_err(|error| fails(bin, &error.message))?,
            Some(Fault::WritesNoise) => self.is_noise.store(true, Ordering::Relaxed),
            Some(Fault::LosesAFrame) if self.happens() => return Ok(gst::FlowSuccess::Ok),
            Some(Fault::ChangesSets) if self.happens() => {
                self.put_in(bin, REFERENCES[1]).map_err(|error| fails(bin, &error.message))?;
            }
            Some(Fault::LosesAFrame | Fault::ChangesSets) => {}
        }
        gst::ProxyPad::chain_default(pad, parent, picture)
    }

    /// Whether what happens once is to happen now.
    fn happens(&self) -> bool {
        !self.has_happened.swap(true, Ordering::Relaxed)
    }

    fn begin(&self, pad: &gst::GhostPad, bin: &gst::Bin, first: gst::ClockTime) -> Result<(), gst::FlowError> {
        if self.width() > WIDTH_MAX {
            return Err(fails(bin, "the stand-in takes no picture so wide"));
        }
        let references = match behaviour() {
            Behaviour::Refuses => return Err(fails(bin, "the stand-in refuses everything")),
            Behaviour::FallsIll { mark, .. } if is_ill(mark) => return Err(fails(bin, "the stand-in is ill")),
            Behaviour::OtherSetsEvery(seconds) if (first.seconds() / seconds) % 2 == 1 => REFERENCES[1],
            _ => REFERENCES[0],
        };
        self.put_in(bin, references).map_err(|error| fails(bin, &error.message))?;
        let held = std::mem::take(&mut *lock(&self.held));
        for event in held {
            gst::Pad::event_default(pad, Some(bin), event);
        }
        Ok(())
    }

    /// Width of the pictures that come, by what was told of them.
    fn width(&self) -> i32 {
        let told = lock(&self.held);
        let mut widths = told.iter().filter_map(|event| match event.view() {
            gst::EventView::Caps(caps) => caps.caps().structure(0)?.get::<i32>("width").ok(),
            _ => None,
        });
        widths.next().unwrap_or(0)
    }

    /// Has a new x264 do the work, from the next frame on.
    fn put_in(&self, bin: &gst::Bin, references: u32) -> Result<(), glib::BoolError> {
        let Wish { quality, bitrate, gop } = *lock(&self.wish);
        let x264 = gst::ElementFactory::make("x264enc").build()?;
        x264.set_property_from_str("speed-preset", "ultrafast");
        x264.set_property("threads", 1_u32);
        x264.set_property("aud", false);
        x264.set_property("key-int-max", if self.forgets_key_frames() || gop < 1.0 { NEVER } else { gop as u32 });
        if quality < 1.0 && bitrate >= 1.0 {
            x264.set_property_from_str("pass", "cbr");
            x264.set_property("bitrate", bitrate as u32);
        } else {
            // Bits are not limited: the largest picture of a proof needs many.
            let quantizer = if quality < 1.0 { QUANTIZER } else { quality.min(50.0) };
            x264.set_property_from_str("pass", "quant");
            x264.set_property("quantizer", quantizer as u32);
        }
        // Of the profile that is asked for, and with nothing held back.
        x264.set_property("option-string", format!("scenecut=0:8x8dct=1:force-cfr=1:ref={references}"));
        let is_noise = Arc::clone(&self.is_noise);
        let out = x264.static_pad("src").ok_or_else(|| glib::bool_error!("x264enc has no source pad"))?;
        out.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            // Of bit rates, which x264enc tells, drivers say nothing.
            if info.event().is_some_and(|event| event.type_() == gst::EventType::Tag) {
                return gst::PadProbeReturn::Drop;
            }
            if let Some(coded) = info.buffer_mut()
                && is_noise.load(Ordering::Relaxed)
            {
                make_noise(coded.make_mut());
            }
            gst::PadProbeReturn::Ok
        });
        bin.add(&x264)?;
        for name in ["sink", "src"] {
            let pad = bin.static_pad(name).and_then(|pad| pad.downcast::<gst::GhostPad>().ok());
            pad.ok_or_else(|| glib::bool_error!("no pad"))?.set_target(x264.static_pad(name).as_ref())?;
        }
        x264.sync_state_with_parent()?;
        let before = lock(&self.x264).replace(x264);
        if let Some(before) = before {
            bin.remove(&before)?;
            // It has nothing left to say.
            let _ = before.set_state(gst::State::Null);
        }
        Ok(())
    }

    fn forgets_key_frames(&self) -> bool {
        let Behaviour::From(second, Fault::ForgetsKeyFrames) = behaviour() else { return false };
        self.first.get().is_some_and(|first| first.seconds() >= *second)
    }

    fn hear(&self, pad: &gst::GhostPad, parent: Option<&gst::Object>, event: gst::Event) -> bool {
        if gst_video::ForceKeyUnitEvent::is(&event) && self.forgets_key_frames() {
            return true;
        }
        if pad.direction() == gst::PadDirection::Sink && event.is_serialized() && self.first.get().is_none() {
            lock(&self.held).push(event);
            return true;
        }
        gst::Pad::event_default(pad, parent, event)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the pipeline know that the element fails.
fn fails(bin: &gst::Bin, why: &str) -> gst::FlowError {
    gst::element_error!(bin, gst::StreamError::Encode, ("{why}"));
    gst::FlowError::Error
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// A picture of the same form that shows nothing.
fn grey(picture: &gst::Buffer) -> Result<gst::Buffer, glib::BoolError> {
    let mut grey = picture.copy_deep()?;
    grey.make_mut().map_writable()?.as_mut_slice().fill(128);
    Ok(grey)
}

/// Leaves of a coded frame its headers. There is no 0 in the noise, so that nothing in it looks like the start of a unit.
fn make_noise(coded: &mut gst::BufferRef) {
    let Ok(mut bytes) = coded.map_writable() else { return };
    let from = HEAD_BYTES.max(bytes.len() / 8);
    let mut seed = 1_u32;
    for byte in bytes.as_mut_slice().iter_mut().skip(from) {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (seed >> 24) as u8 | 1;
    }
}

fn add_pads(bin: &gst::Bin, core: &Arc<Core>) {
    let template = |name| bin.pad_template(name).expect("a template of ours");
    let (chain, hear_down, hear_up) = (Arc::clone(core), Arc::clone(core), Arc::clone(core));
    let sink = gst::GhostPad::builder_from_template(&template("sink"))
        .chain_function(move |pad, parent, picture| chain.chain(pad, parent, picture))
        .event_function(move |pad, parent, event| hear_down.hear(pad, parent, event))
        .build();
    let source = gst::GhostPad::builder_from_template(&template("src"))
        .event_function(move |pad, parent, event| hear_up.hear(pad, parent, event))
        .build();
    bin.add_pad(&sink).expect("a new element has no pads");
    bin.add_pad(&source).expect("a new element has no such pad");
}

fn templates() -> Vec<gst::PadTemplate> {
    let raw = gst::Caps::builder("video/x-raw").field("format", gst::List::new(["NV12", "I420"])).build();
    let coded = gst::Caps::builder("video/x-h264")
        .field("stream-format", gst::List::new(["avc", "byte-stream"]))
        .field("alignment", "au")
        .build();
    let template = |name: &str, direction, caps: &gst::Caps| {
        gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).expect("a template")
    };
    vec![template("sink", gst::PadDirection::Sink, &raw), template("src", gst::PadDirection::Src, &coded)]
}

/// Presets of NVIDIA's encoders, of all versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "StandInPreset")]
enum Preset {
    #[default]
    Default,
    Hp,
    Hq,
    LowLatency,
    LowLatencyHq,
    LowLatencyHp,
    Lossless,
    LosslessHp,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
}

/// What NVIDIA's encoders control their rate by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "StandInRateControlMode")]
enum RateControlMode {
    #[default]
    Default,
    Constqp,
    Cbr,
    Vbr,
    VbrMinqp,
    CbrLdHq,
    CbrHq,
    VbrHq,
}

/// What those of VA-API do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "StandInRateControl")]
enum RateControl {
    Cbr,
    #[default]
    Vbr,
    Vcm,
    Cqp,
    Icq,
    Qvbr,
}

fn unsigned(name: &'static str) -> glib::ParamSpec {
    glib::ParamSpecUInt::builder(name).build()
}

fn signed(name: &'static str) -> glib::ParamSpec {
    glib::ParamSpecInt::builder(name).default_value(-1).build()
}

fn flag(name: &'static str) -> glib::ParamSpec {
    glib::ParamSpecBoolean::builder(name).build()
}

fn nvenc_properties() -> Vec<glib::ParamSpec> {
    let whole = ["bitrate", "max-bitrate", "bframes", "aq-strength", "rc-lookahead", "vbv-buffer-size"].map(unsigned);
    let quantizers = ["qp-min", "qp-max", "qp-const", "qp-const-i", "qp-const-p", "qp-const-b"].map(signed);
    let flags =
        ["b-adapt", "i-adapt", "strict-gop", "zerolatency", "spatial-aq", "temporal-aq", "aud", "weighted-pred", "nonref-p"]
            .map(flag);
    let others = [
        signed("gop-size"),
        glib::ParamSpecDouble::builder("const-quality").build(),
        glib::ParamSpecEnum::builder_with_default("preset", Preset::default()).build(),
        glib::ParamSpecEnum::builder_with_default("rc-mode", RateControlMode::default()).build(),
    ];
    whole.into_iter().chain(quantizers).chain(flags).chain(others).collect()
}

fn vaapi_properties() -> Vec<glib::ParamSpec> {
    let whole = [
        "key-int-max",
        "bitrate",
        "b-frames",
        "i-frames",
        "ref-frames",
        "target-percentage",
        "target-usage",
        "cpb-size",
        "min-qp",
        "max-qp",
        "qpi",
        "qpp",
        "qpb",
    ]
    .map(unsigned);
    let flags = ["aud", "b-pyramid", "cabac", "cc-insert", "dct8x8", "trellis"].map(flag);
    let control = glib::ParamSpecEnum::builder_with_default("rate-control", RateControl::default()).build();
    whole.into_iter().chain(flags).chain([control]).collect()
}

/// A stand-in in a module of this name: the name of its type, what it is, and its properties.
macro_rules! stand_in {
    ($module:ident, $type_name:literal, $long_name:literal, $properties:ident) => {
        mod $module {
            use gst::glib;

            glib::wrapper! {
                /// The element.
                pub struct Element(ObjectSubclass<imp::Element>) @extends gst::Bin, gst::Element, gst::Object;
            }

            mod imp {
                use std::sync::{Arc, LazyLock};

                use gst::glib;
                use gst::prelude::*;
                use gst::subclass::prelude::*;

                use crate::stand_in::{Core, add_pads, templates};

                #[derive(Default)]
                pub struct Element {
                    core: Arc<Core>,
                }

                #[glib::object_subclass]
                impl ObjectSubclass for Element {
                    const NAME: &'static str = $type_name;
                    type Type = super::Element;
                    type ParentType = gst::Bin;
                }

                impl ObjectImpl for Element {
                    fn properties() -> &'static [glib::ParamSpec] {
                        static ALL: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(crate::stand_in::$properties);
                        &ALL
                    }

                    fn set_property(&self, _id: usize, value: &glib::Value, property: &glib::ParamSpec) {
                        self.core.wish(property.name(), value);
                    }

                    fn property(&self, _id: usize, property: &glib::ParamSpec) -> glib::Value {
                        property.default_value().clone()
                    }

                    fn constructed(&self) {
                        self.parent_constructed();
                        add_pads(self.obj().upcast_ref(), &self.core);
                    }
                }

                impl GstObjectImpl for Element {}

                impl ElementImpl for Element {
                    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
                        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                            let what = "Has x264 do the work, and fails as it is told";
                            gst::subclass::ElementMetadata::new($long_name, "Codec/Encoder/Video/Hardware", what, "Shoal")
                        });
                        Some(&METADATA)
                    }

                    fn pad_templates() -> &'static [gst::PadTemplate] {
                        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(templates);
                        &TEMPLATES
                    }

                    fn change_state(
                        &self,
                        transition: gst::StateChange,
                    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
                        if transition == gst::StateChange::NullToReady {
                            self.core.open(self.obj().upcast_ref())?;
                        }
                        let changed = self.parent_change_state(transition);
                        if transition == gst::StateChange::ReadyToNull {
                            self.core.close();
                        }
                        changed
                    }
                }

                impl BinImpl for Element {}
            }
        }
    };
}

stand_in!(nvenc, "StandInNvH264Enc", "Stand-in for NVIDIA's H.264 encoder", nvenc_properties);
stand_in!(vaapi, "StandInVaH264Enc", "Stand-in for the H.264 encoder of VA-API", vaapi_properties);
