//! The plugins that an order may use: what takes media apart and decodes it, and what we make pipelines of. All else that is
//! installed cannot be found by a source: nothing that fetches, plays, records, draws or drives a device.

/// Their names, in GStreamer 1.22 to 1.28. Those that are not installed do no harm.
const PLUGINS: [&str; 73] = [
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
    "x264",
    "x265",
    "y4mdec",
];

/// Classes of elements that no order uses, though they are in plugins that have others.
const REACHING_OUT: [&str; 5] = ["Network", "Device", "Hardware", "Source/File", "Sink/File"];

/// Has this process forget all other plugins. For a process that does an order, before the source is opened.
pub fn confine() {
    let registry = gst::Registry::get();
    registry.plugins().iter().filter(|plugin| !is_allowed(plugin)).for_each(|plugin| registry.remove_plugin(plugin));
    for factory in gst::ElementFactory::factories_with_type(gst::ElementFactoryType::ANY, gst::Rank::NONE) {
        if factory.metadata("klass").is_some_and(|class| REACHING_OUT.iter().any(|word| class.contains(word))) {
            registry.remove_feature(&factory);
        }
    }
}

fn is_allowed(plugin: &gst::Plugin) -> bool {
    PLUGINS.contains(&plugin.plugin_name().as_str())
}

#[cfg(test)]
mod tests {
    use gst::prelude::*;

    use super::*;

    #[test]
    fn what_pipelines_are_made_of_is_left_and_nothing_that_reaches_out() {
        crate::init().expect("GStreamer");
        assert!(PLUGINS.is_sorted());
        let registry = gst::Registry::get();
        let needed = crate::encoders::ELEMENTS.iter().chain(&[
            "pipeline",
            "bin",
            "x264enc",
            "avenc_aac",
            "matroskademux",
            "vp9dec",
            "opusdec",
        ]);
        for name in needed.filter_map(|name| gst::ElementFactory::find(name)) {
            let plugin = name.plugin().expect("a plugin");
            assert!(is_allowed(&plugin), "{} is of {}", name.name(), plugin.plugin_name());
            let class = name.metadata("klass").expect("a class");
            assert!(!REACHING_OUT.iter().any(|word| class.contains(word)), "{} is {class}", name.name());
        }
        let others = registry.plugins().into_iter().filter(|plugin| !is_allowed(plugin));
        assert!(others.into_iter().any(|plugin| plugin.plugin_name() == "soup"), "this machine has something to forget");
    }
}
