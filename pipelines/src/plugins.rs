//! The plugins that an order may use: what takes media apart and decodes it, and what we make pipelines of. All else that is
//! installed cannot be found by a source: nothing that fetches, plays, records or draws, and nothing that drives a device but
//! the encoder of the one that an order is given.

use gst::prelude::*;

/// Their names, in GStreamer 1.22 to 1.28. Those that are not installed do no harm.
const PLUGINS: [&str; 76] = [
    "a52dec",
    "adpcmdec",
    "aiff",
    "alaw",
    "amrnb",
    "amrwbdec",
    "aom",
    "apetag",
    "app",
    "asf",
    "audioconvert",
    "audioparsers",
    "audioresample",
    "auparse",
    "avi",
    "codecalpha",
    "coreelements",
    "dav1d",
    "de265",
    "deinterlace",
    "dtsdec",
    "dv",
    "dvdlpcmdec",
    "dvdsub",
    "faad",
    "fdkaac",
    "flac",
    "flv",
    "flxdec",
    "fmp4",
    "gsm",
    "h266",
    "icydemux",
    "id3demux",
    "isomp4",
    "ivfparse",
    "jp2kdecimator",
    "jpeg",
    "jpegformat",
    "libav",
    "matroska",
    "mpeg2dec",
    "mpegpsdemux",
    "mpegtsdemux",
    "mpg123",
    "mulaw",
    "musepack",
    "mxf",
    "ogg",
    "openh264",
    "openjpeg",
    "opus",
    "opusparse",
    "playback",
    "png",
    "pnm",
    "rawparse",
    "realmedia",
    "sbc",
    "speex",
    "staticelements",
    "subparse",
    "theora",
    "typefindfunctions",
    "videoconvertscale",
    "videofilter",
    "videoparsersbad",
    "vorbis",
    "vpx",
    "wavpack",
    "wavparse",
    "webp",
    "x264",
    "x265",
    "y4m",
    "y4mdec",
];

/// Classes of elements that no order uses, though they are in plugins that have others.
const REACHING_OUT: [&str; 5] = ["Network", "Device", "Hardware", "Source/File", "Sink/File"];

/// How names end that libav's elements for the chips of small boards have: those do not say what they are.
const CHIPS: &str = "_omx";

/// Has this process forget all other plugins, but for the elements with these names. For a process that does an order, before
/// the source is opened.
pub fn confine(keep: &[String]) {
    let registry = gst::Registry::get();
    let kept = keep.to_vec();
    let is_kept = move |name: &str| kept.iter().any(|kept| kept == name);
    // Loaded now: a plugin that is loaded later brings all that it has back.
    let spared: Vec<_> = keep.iter().filter_map(|name| gst::ElementFactory::find(name)?.load().ok()?.plugin_name()).collect();
    for plugin in registry.plugins().iter().filter(|plugin| !is_allowed(plugin)) {
        let name = plugin.plugin_name();
        if !spared.contains(&name) {
            registry.remove_plugin(plugin);
            continue;
        }
        for feature in registry.features_by_plugin(&name).iter().filter(|feature| !is_kept(&feature.name())) {
            registry.remove_feature(feature);
        }
    }
    for factory in gst::ElementFactory::factories_with_type(gst::ElementFactoryType::ANY, gst::Rank::NONE) {
        if reaches_out(&factory) && !is_kept(&factory.name()) {
            registry.remove_feature(&factory);
        }
    }
    // Those that are loaded later, when they are needed: to load all now would take longer than many an order.
    registry.connect_feature_added(move |registry, feature| {
        let factory = feature.downcast_ref::<gst::ElementFactory>();
        if factory.is_some_and(|factory| reaches_out(factory) && !is_kept(&factory.name())) {
            registry.remove_feature(feature);
        }
    });
}

fn reaches_out(factory: &gst::ElementFactory) -> bool {
    let class = factory.metadata("klass").unwrap_or_default();
    REACHING_OUT.iter().any(|word| class.contains(word)) || factory.name().ends_with(CHIPS)
}

fn is_allowed(plugin: &gst::Plugin) -> bool {
    PLUGINS.contains(&plugin.plugin_name().as_str())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What is forgotten is forgotten by the whole process.
    #[test]
    #[ignore = "in a process of its own: another test starts it"]
    fn forgotten() {
        crate::init().expect("GStreamer");
        let found = |name: &&str| gst::ElementFactory::find(name).is_some();
        let away = [
            "filesrc",
            "fdsrc",
            "filesink",
            "souphttpsrc",
            "hlsdemux",
            "dashdemux",
            "udpsrc",
            "rtspsrc",
            "giosrc",
            "v4l2src",
            "v4l2h264enc",
            "nvh264enc",
            "vah264enc",
            "qsvh264enc",
            "avenc_h264_omx",
        ];
        assert!(away.iter().filter(|name| found(name)).count() > 5, "this machine has something to forget");
        confine(&[]);
        assert_eq!(away.iter().find(|name| found(name)), None);
        // Neither do they come back with the plugins that they are in.
        for name in ["queue", "avdec_h264", "videoconvert"] {
            assert!(gst::ElementFactory::make(name).build().is_ok(), "{name}");
        }
        assert_eq!(away.iter().find(|name| found(name)), None);
        let left = ["pipeline", "bin", "x264enc", "avenc_aac", "matroskademux", "qtdemux", "tsdemux", "vp9dec", "opusdec"];
        assert_eq!(left.iter().chain(&crate::encoders::ELEMENTS).find(|name| !found(name)), None);
    }

    /// As above.
    #[test]
    #[ignore = "in a process of its own: another test starts it"]
    fn kept() {
        crate::init().expect("GStreamer");
        let find = |name: &str| gst::ElementFactory::find(name);
        // Two that the process brings along, as what reaches out.
        let reaching = find("filesrc").and_then(|factory| factory.load().ok()).expect("filesrc");
        for name in ["standin0", "standin1"] {
            gst::Element::register(None, name, gst::Rank::NONE, reaching.element_type()).expect("registered");
        }
        assert!(["audioamplify", "audioecho"].iter().all(|name| find(name).is_some()), "one plugin has both");
        confine(&["audioamplify", "standin0", "no-such-element"].map(str::to_owned));
        for name in ["audioamplify", "standin0"] {
            assert!(gst::ElementFactory::make(name).build().is_ok(), "{name}");
        }
        assert_eq!(["audioecho", "standin1", "filesrc", "v4l2src"].into_iter().find(|name| find(name).is_some()), None);
        assert_eq!(crate::encoders::ELEMENTS.into_iter().find(|name| find(name).is_none()), None);
    }

    #[test]
    fn what_pipelines_are_made_of_is_left_and_nothing_that_reaches_out() {
        assert!(PLUGINS.is_sorted());
        let this = std::env::current_exe().expect("a program");
        for test in ["plugins::tests::forgotten", "plugins::tests::kept"] {
            let ended = Command::new(&this).args(["--ignored", "--exact", test]).output().expect("started");
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(ended.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
        }
    }
}
