//! Texts of subtitles as the cue text of WebVTT (<https://www.w3.org/TR/webvtt1/#webvtt-cue-text>): what is said, with
//! italics, bold and underlined text; places, fonts and colours are left out.

/// A text as WebVTT has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CueText {
    /// Lines, none of them empty; no line when nothing is shown.
    pub text: String,
    /// Whether places, fonts or colours were left out.
    pub is_plainer: bool,
}

/// How a source writes texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain,
    /// With tags in angle brackets and entities: SubRip, WebVTT, and GStreamer's own.
    Tags,
    /// SSA and ASS as in Matroska: fields, with override codes in braces in the last.
    Dialogue,
    /// WebVTT as in WebM: a line of identifier, a line of settings, then the text.
    WebmCue,
}

impl Form {
    /// By GStreamer's media type, and the format that it tells for raw text.
    pub fn of(media_type: &str, format: Option<&str>) -> Option<Self> {
        match (media_type, format) {
            ("text/x-raw", Some("utf8")) => Some(Self::Plain),
            ("text/x-raw" | "application/x-subtitle" | "application/x-subtitle-vtt", _) => Some(Self::Tags),
            ("application/x-ass" | "application/x-ssa", _) => Some(Self::Dialogue),
            ("application/x-subtitle-unknown", _) => Some(Self::WebmCue),
            _ => None,
        }
    }

    /// A text of this form.
    pub fn read(self, source: &str) -> CueText {
        let mut out = Writer::default();
        match self {
            Self::Plain => out.all(source),
            Self::Tags => tagged(source, &mut out),
            // ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text (Matroska's codec specification).
            Self::Dialogue => overridden(source.splitn(9, ',').nth(8).unwrap_or_default(), &mut out),
            Self::WebmCue => {
                let mut parts = source.splitn(3, '\n').skip(1);
                out.is_plainer = parts.next().is_some_and(|settings| !settings.trim().is_empty());
                tagged(parts.next().unwrap_or_default(), &mut out);
            }
        }
        out.finish()
    }
}

/// A tag that WebVTT has too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Italic,
    Bold,
    Underline,
}

impl Tag {
    fn named(name: &str) -> Option<Self> {
        match name {
            "i" | "I" => Some(Self::Italic),
            "b" | "B" => Some(Self::Bold),
            "u" | "U" => Some(Self::Underline),
            _ => None,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Italic => 'i',
            Self::Bold => 'b',
            Self::Underline => 'u',
        }
    }
}

/// Longest tag or entity that is taken for one.
const TAG_CHARS_MAX: usize = 256;

/// Text with tags and entities, and the override codes in braces that SubRip files borrow from ASS.
fn tagged(source: &str, out: &mut Writer) {
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let whole = match c {
            '<' => ended_by(rest, '>').filter(|tag| is_tag(tag)),
            '&' => ended_by(rest, ';').filter(|entity| is_entity(entity)),
            '{' => ended_by(rest, '}').filter(|block| block.starts_with("{\\")),
            _ => None,
        };
        let read = whole.unwrap_or_else(|| rest.get(..c.len_utf8()).unwrap_or(rest));
        match (c, whole) {
            ('<', Some(tag)) => {
                let inside = tag.trim_matches(['<', '>']);
                let name = inside.trim_start_matches('/').split([' ', '.', '\t', '\n']).next().unwrap_or_default();
                match Tag::named(name) {
                    Some(tag) if inside.starts_with('/') => out.close(tag),
                    Some(tag) => out.open(tag),
                    None => out.is_plainer = true,
                }
            }
            ('&', Some(entity)) => match character(entity.trim_matches(['&', ';'])) {
                Some(meant) => out.one(meant),
                None => out.all(entity),
            },
            ('{', Some(block)) => codes(block, out),
            _ => out.one(c),
        }
        rest = rest.get(read.len()..).unwrap_or_default();
    }
}

/// From the start of a text to the first of these characters, if that is near.
fn ended_by(text: &str, end: char) -> Option<&str> {
    let found = text.char_indices().take(TAG_CHARS_MAX).find(|(_, c)| *c == end);
    found.and_then(|(at, c)| text.get(..at + c.len_utf8()))
}

/// A name, its end, or a time stamp of WebVTT, and nothing but one.
fn is_tag(tag: &str) -> bool {
    let inside = tag.get(1..).unwrap_or_default().trim_start_matches('/');
    let begins = inside.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && !inside.trim_end_matches('>').contains('<')
}

/// A name or number, and nothing but one.
fn is_entity(entity: &str) -> bool {
    entity.trim_matches(['&', ';']).chars().all(|c| c.is_ascii_alphanumeric() || c == '#')
}

/// What an entity stands for: those of HTML that subtitles use, and numbers.
fn character(name: &str) -> Option<char> {
    let number = |text: &str, radix| u32::from_str_radix(text, radix).ok().and_then(char::from_u32);
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        "lrm" => Some('\u{200e}'),
        "rlm" => Some('\u{200f}'),
        _ => {
            let digits = name.strip_prefix('#')?;
            digits.strip_prefix(['x', 'X']).map_or_else(|| number(digits, 10), |digits| number(digits, 16))
        }
    }
}

/// The text of an ASS dialogue.
fn overridden(source: &str, out: &mut Writer) {
    let mut chars = source.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let rest = source.get(at..).unwrap_or_default();
        match c {
            '{' if rest.contains('}') => {
                let block = rest.split_inclusive('}').next().unwrap_or_default();
                codes(block, out);
                while chars.next_if(|(next, _)| *next < at + block.len()).is_some() {}
            }
            '\\' => match chars.peek().map(|(_, next)| *next) {
                Some('N') => {
                    chars.next();
                    out.one('\n');
                }
                Some('n') => {
                    chars.next();
                    out.one(' ');
                }
                Some('h') => {
                    chars.next();
                    out.one('\u{a0}');
                }
                _ => out.one(c),
            },
            c => out.one(c),
        }
    }
}

/// A block of override codes: `{\i1\an8}`.
fn codes(block: &str, out: &mut Writer) {
    for code in block.trim_matches(['{', '}']).split('\\').skip(1) {
        let code = code.trim();
        let letters = code.trim_end_matches(|c: char| c.is_ascii_digit());
        match (Tag::named(letters), code.get(letters.len()..)) {
            (Some(tag), Some("0" | "")) => out.close(tag),
            (Some(tag), Some(_)) => out.open(tag),
            _ => out.is_plainer = true,
        }
        if letters == "p" {
            // A drawing follows, up to `\p0`.
            out.is_drawing = !matches!(code.get(letters.len()..), Some("0" | ""));
        }
    }
}

/// Writes cue text.
#[derive(Default)]
struct Writer {
    text: String,
    open: Vec<Tag>,
    is_plainer: bool,
    is_drawing: bool,
}

impl Writer {
    fn all(&mut self, text: &str) {
        text.chars().for_each(|c| self.one(c));
    }

    fn one(&mut self, c: char) {
        match c {
            _ if self.is_drawing => {}
            '&' => self.text.push_str("&amp;"),
            '<' => self.text.push_str("&lt;"),
            '>' => self.text.push_str("&gt;"),
            '\n' => self.text.push('\n'),
            '\t' => self.text.push(' '),
            c if c.is_control() => {}
            c => self.text.push(c),
        }
    }

    fn open(&mut self, tag: Tag) {
        if !self.open.contains(&tag) {
            self.open.push(tag);
            self.text.extend(['<', tag.letter(), '>']);
        }
    }

    /// Tags have to be closed in order: those opened later are closed and opened again.
    fn close(&mut self, tag: Tag) {
        let Some(place) = self.open.iter().position(|open| *open == tag) else { return };
        self.end_from(place).into_iter().skip(1).for_each(|tag| self.open(tag));
    }

    /// Closes what was opened at this place and later.
    fn end_from(&mut self, place: usize) -> Vec<Tag> {
        let ended = self.open.split_off(place);
        ended.iter().rev().for_each(|tag| self.text.extend(['<', '/', tag.letter(), '>']));
        ended
    }

    fn finish(mut self) -> CueText {
        self.end_from(0);
        let shows = |line: &&str| {
            let mut in_tag = false;
            line.chars().any(|c| {
                in_tag = (in_tag || c == '<') && c != '>';
                !in_tag && c != '>' && !c.is_whitespace()
            })
        };
        let lines: Vec<&str> = self.text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = if lines.iter().any(shows) { lines.join("\n") } else { String::new() };
        CueText { text, is_plainer: self.is_plainer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(form: Form, source: &str) -> (String, bool) {
        let CueText { text, is_plainer } = form.read(source);
        (text, is_plainer)
    }

    #[test]
    fn tags_that_webvtt_has_are_kept_and_others_left_out() {
        let read = |source| read(Form::Tags, source);
        assert_eq!(read("<i>Hello</i> &amp; <b>good</b>\r\nbye"), ("<i>Hello</i> &amp; <b>good</b>\nbye".to_owned(), false));
        assert_eq!(read("<font color=\"#ff0000\">red</font>"), ("red".to_owned(), true));
        assert_eq!(read("{\\an8}up"), ("up".to_owned(), true));
        assert_eq!(
            read("{aside} a < b && 1 --> 2 &#233;&unknown;"),
            ("{aside} a &lt; b &amp;&amp; 1 --&gt; 2 é&amp;unknown;".to_owned(), false)
        );
        assert_eq!(read("<v Mary>one<00:00:01.000> two</v>"), ("one two".to_owned(), true));
        assert_eq!(read("<i>not closed"), ("<i>not closed</i>".to_owned(), false));
        assert_eq!(read("<i>a<b>b</i>c"), ("<i>a<b>b</b></i><b>c</b>".to_owned(), false));
        assert_eq!(read("I <3 you"), ("I &lt;3 you".to_owned(), false));
        assert_eq!(read("a\n\n\nb\n"), ("a\nb".to_owned(), false));
        assert_eq!(read("<i> </i>"), (String::new(), false));
    }

    #[test]
    fn dialogues_lose_their_fields_and_codes() {
        let read = |text: &str| read(Form::Dialogue, &format!("12,0,Default,,0,0,0,,{text}"));
        assert_eq!(read("one, two\\Nthree\\hfour"), ("one, two\nthree\u{a0}four".to_owned(), false));
        assert_eq!(read("{\\i1}lean{\\i0} on"), ("<i>lean</i> on".to_owned(), false));
        assert_eq!(read("{\\pos(10,20)\\c&H0000FF&}red < blue"), ("red &lt; blue".to_owned(), true));
        assert_eq!(read("{\\p1}m 0 0 l 10 10{\\p0}"), (String::new(), true));
        assert_eq!(read("{a comment}said \\o/ {open"), ("said \\o/ {open".to_owned(), false));
    }

    #[test]
    fn other_forms() {
        assert_eq!(read(Form::Plain, "<i>as & it is</i>"), ("&lt;i&gt;as &amp; it is&lt;/i&gt;".to_owned(), false));
        assert_eq!(read(Form::WebmCue, "\n\n<i>said</i>"), ("<i>said</i>".to_owned(), false));
        assert_eq!(read(Form::WebmCue, "id\nline:0\nsaid"), ("said".to_owned(), true));
        assert_eq!(Form::of("subpicture/x-pgs", None), None);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_becomes_proper_cue_text(source in "[<>/&;{}\\\\\nib1p0 ,N-]{0,60}", other in ".{0,60}") {
            for form in [Form::Plain, Form::Tags, Form::Dialogue, Form::WebmCue] {
                for source in [&source, &other, &format!("0,0,,,,,,,{source}")] {
                    let CueText { text, .. } = form.read(source);
                    let cue = farm::text::Cue { start_ns: 0, end_ns: 1, text };
                    prop_assert!(cue.text.is_empty() || cue.is_proper(1), "{:?}", cue.text);
                    prop_assert_eq!(cue.text.matches("<i>").count(), cue.text.matches("</i>").count());
                }
            }
        }
    }
}
