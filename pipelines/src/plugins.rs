//! The plugins that an order may use: what takes media apart and decodes it, and what we make pipelines of. All else that is
//! installed cannot be found by a source: nothing that fetches, plays, records, draws or drives a device.

/// Their names, in GStreamer 1.22 to 1.28. Those that are not installed do no harm.
const PLUGINS: [&str; 75] = [
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
    "x264",
    "x265",
    "y4m",
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
    use std::process::Command;

    use super::*;

    /// What is forgotten is forgotten by the whole process.
    #[test]
    #[ignore = "in a process of its own: another test starts it"]
    fn forgotten() {
        crate::init().expect("GStreamer");
        let found = |name: &&str| gst::ElementFactory::find(name).is_some();
        let away =
            ["filesrc", "fdsrc", "filesink", "souphttpsrc", "hlsdemux", "dashdemux", "udpsrc", "rtspsrc", "giosrc", "v4l2src"];
        assert!(away.iter().filter(|name| found(name)).count() > 5, "this machine has something to forget");
        confine();
        assert_eq!(away.iter().find(|name| found(name)), None);
        let left = ["pipeline", "bin", "x264enc", "avenc_aac", "matroskademux", "qtdemux", "tsdemux", "vp9dec", "opusdec"];
        assert_eq!(left.iter().chain(&crate::encoders::ELEMENTS).find(|name| !found(name)), None);
    }

    #[test]
    fn what_pipelines_are_made_of_is_left_and_nothing_that_reaches_out() {
        assert!(PLUGINS.is_sorted());
        let this = std::env::current_exe().expect("a program");
        let ended = Command::new(this).args(["--ignored", "--exact", "plugins::tests::forgotten"]).output().expect("started");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    }
}
