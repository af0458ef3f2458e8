//! What the failure of a child that crashed or hung tells of where it was: which signal, and which element spoke last.

use farm::{Code, Failure};

/// Who spoke last when nobody did.
const NOBODY: &str = "nobody";
/// Longest last words that stand for themselves.
const WORDS_CHARS_MAX: usize = 48;

/// How a child ended that should not have ended so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crash {
    /// The signal, or how it ended else.
    pub how: String,
    /// Which element of GStreamer, or which library, spoke last: mostly the one that crashed. Elements speak where `GST_DEBUG`
    /// is at least 2.
    pub speaker: String,
}

impl Crash {
    /// What a failed attempt tells; `None` where the child itself said why it failed.
    pub fn of(failure: &Failure) -> Option<Self> {
        if !matches!(failure.code, Code::ChildCrashed | Code::ChildStalled | Code::DeadlineExceeded) {
            return None;
        }
        let message = failure.message.as_str();
        let (how, words) = message.split_once("; its last words: ").unwrap_or((message, ""));
        let how = how.strip_prefix("child killed by ").unwrap_or(how);
        // What the signal mostly means, or what exactly broke the protocol, comes after it.
        let how = how.split_once(": ").map_or(how, |(how, _)| how);
        Some(Self { how: how.to_owned(), speaker: speaker(words) })
    }
}

/// Who said these words.
fn speaker(words: &str) -> String {
    if words.contains("panicked at") || words.contains("RUST_BACKTRACE") {
        return "a panic".to_owned();
    }
    let known = element(words).or_else(|| category(words)).or_else(|| domain(words));
    let shortened = || words.chars().take(WORDS_CHARS_MAX).collect::<String>();
    known.unwrap_or_else(|| if words.is_empty() { NOBODY.to_owned() } else { shortened() })
}

/// The factory of the element in a line of GStreamer's log, `file.c:12:function:<qtdemux0:sink> words`.
fn element(words: &str) -> Option<String> {
    let is_name = |name: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':');
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(allowed)
    };
    let mut objects = words.split(":<").skip(1).filter_map(|rest| Some(rest.split_once('>')?.0));
    let object = objects.find(|name| is_name(name))?;
    let element = object.split(':').next()?;
    // Elements are numbered: `qtdemux0`, and `avdec_h264-0` where the factory's name ends with a digit.
    let factory = element.trim_end_matches(|c: char| c.is_ascii_digit());
    Some(factory.strip_suffix('-').unwrap_or(factory).to_owned())
}

/// The category of a line of GStreamer's log, `0:00:00.09 123 0x55 ERROR libav …`: of libraries that know no elements.
fn category(words: &str) -> Option<String> {
    let mut fields = words.split_whitespace();
    let level = fields.nth(3)?;
    let category = fields.next()?;
    ["ERROR", "WARN"].contains(&level).then(|| category.to_owned())
}

/// The library in a line of GLib's, `(shoal:123): GStreamer-CRITICAL **: 12:00:00.000: words`.
fn domain(words: &str) -> Option<String> {
    let (domain, _) = words.split_once("): ")?.1.split_once(" **")?;
    (!domain.contains(' ')).then(|| domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: Code, message: &str) -> Option<(String, String)> {
        Crash::of(&Failure::new(code, message)).map(|crash| (crash.how, crash.speaker))
    }

    #[test]
    fn a_crash_is_told_by_its_signal_and_who_spoke_last() {
        let log = "0:00:00.030225265 11526 0x5592458ebde0 WARN";
        for (words, speaker) in [
            (format!("{log}  oggdemux gstoggdemux.c:5016:gst_ogg_demux_loop:<oggdemux2> error: stopped (-4)"), "oggdemux"),
            (format!("{log}  videodecoder d.c:3152:prepare:<avdec_h264-0> decreasing timestamp (0:01 < 0:02)"), "avdec_h264"),
            (format!("{log}  qtdemux qtdemux.c:1:f:<qtdemux0:sink> no samples"), "qtdemux"),
            (format!("{log}  libav :0:: error while decoding MB 47 22, bytestream 465"), "libav"),
            ("(<unknown>:12): GStreamer-CRITICAL **: 21:53:46.568: gst_caps_ref: assertion".to_owned(), "GStreamer-CRITICAL"),
            ("note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace".to_owned(), "a panic"),
            ("free(): invalid pointer".to_owned(), "free(): invalid pointer"),
        ] {
            let message = format!("child killed by SIGSEGV: a crash in a decoder, demuxer or encoder; its last words: {words}");
            assert_eq!(told(Code::ChildCrashed, &message), Some(("SIGSEGV".to_owned(), speaker.to_owned())));
        }
    }

    #[test]
    fn other_ends_are_told_as_well_and_reasons_are_none() {
        let nobody = |how: &str| Some((how.to_owned(), NOBODY.to_owned()));
        assert_eq!(told(Code::ChildCrashed, "child killed by signal 40"), nobody("signal 40"));
        assert_eq!(told(Code::ChildCrashed, "the child exited with status 7"), nobody("the child exited with status 7"));
        let breach = "the child broke the protocol: a read of 100 bytes";
        assert_eq!(told(Code::ChildCrashed, breach), nobody("the child broke the protocol"));
        assert_eq!(told(Code::ChildStalled, "the child said nothing for 20 s"), nobody("the child said nothing for 20 s"));
        assert_eq!(told(Code::Undecodable, "the source does not decode"), None);
    }
}
