//! Reads fragmented MP4 as far as the checks need: what a track is, and every sample's times, place and kind.
//!
//! Shares no code with what writes it: boxes are decoded by the `mp4-atom` crate, NAL units are looked at here.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use mp4_atom::{Any, Codec, Decode, Moof, Moov, Trex};

/// `sample_is_non_sync_sample` of the sample flags (ISO/IEC 14496-12, 8.8.3.1).
const NON_SYNC: u32 = 1 << 16;

/// The only track of an init segment.
#[derive(Clone, Debug)]
pub struct Track {
    /// Picture or sound.
    pub kind: Kind,
    /// Ticks per second.
    pub timescale: u32,
    /// Media time in ticks at which presentation starts, by the edit list; 0 without one.
    pub media_time: i64,
    /// Codec string for playlists (RFC 6381), from the sample entry's bytes.
    pub codecs: String,
    defaults: Trex,
}

/// Picture or sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pictures.
    Video {
        /// Width in pixels.
        width: u16,
        /// Height in pixels.
        height: u16,
        /// What a sample is made of.
        units: Units,
    },
    /// Sound.
    Audio {
        /// Samples per second.
        rate: u16,
    },
}

/// What a sample of pictures is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// NAL units of H.264, each after its length of so many bytes.
    H264(u8),
    /// NAL units of HEVC, each after its length of so many bytes.
    Hevc(u8),
    /// OBUs of AV1.
    Av1,
}

/// A sample: a frame of picture or a packet of sound. Times are in ticks of the track, without the edit list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Decode time.
    pub dts: i64,
    /// Presentation time.
    pub pts: i64,
    /// Duration.
    pub duration: u32,
    /// Whether the container says that decoding can start here.
    pub sync: bool,
    /// Whether the bytes say so: an IDR picture. Always true for sound.
    pub idr: bool,
}

/// The track that an init segment describes.
///
/// # Errors
/// When it is none, or has more than one track, or a codec or an edit list that a player need not understand.
pub fn track(init: &[u8]) -> Result<Track> {
    let mut moov = None;
    for (_, atom) in boxes(init)? {
        match atom {
            Any::Moov(found) => moov = Some(found),
            Any::Ftyp(_) => {}
            other => bail!("init segment holds {:?}", other.kind()),
        }
    }
    let moov: Box<Moov> = moov.context("init segment without moov")?.into();
    let [trak] = moov.trak.as_slice() else { bail!("init segment of {} tracks", moov.trak.len()) };
    let [codec] = trak.mdia.minf.stbl.stsd.codecs.as_slice() else { bail!("not one sample entry") };
    let (kind, codecs) = describe(codec)?;
    let defaults = moov.mvex.as_ref().context("no mvex")?.trex.iter().find(|trex| trex.track_id == trak.tkhd.track_id);
    let edits = trak.edts.as_ref().and_then(|edts| edts.elst.as_ref()).map_or(&[][..], |elst| &elst.entries);
    let media_time = match edits {
        [] => 0,
        [only] => i64::try_from(only.media_time.context("the only edit is an empty one")?)?,
        more => bail!("{} edits: browsers look at one", more.len()),
    };
    let defaults = defaults.context("no trex for the track")?.clone();
    Ok(Track { kind, timescale: trak.mdia.mdhd.timescale, media_time, codecs, defaults })
}

fn describe(codec: &Codec) -> Result<(Kind, String)> {
    match codec {
        Codec::Avc1(avc1) => {
            let avcc = &avc1.avcc;
            let profile = [avcc.avc_profile_indication, avcc.profile_compatibility, avcc.avc_level_indication];
            let codecs = format!("avc1.{}", profile.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            let (width, height) = (avc1.visual.width, avc1.visual.height);
            Ok((Kind::Video { width, height, units: Units::H264(avcc.length_size) }, codecs))
        }
        Codec::Hvc1(hvc1) => {
            let hvcc = &hvc1.hvcc;
            let compatible = u32::from_be_bytes(hvcc.general_profile_compatibility_flags).reverse_bits();
            let tier = if hvcc.general_tier_flag { 'h' } else { 'l' };
            let mut codecs = format!("hvc1.{}.{compatible:x}.{tier}{}", hvcc.general_profile_idc, hvcc.general_level_idc);
            let bounds = hvcc.general_constraint_indicator_flags;
            let used = bounds.iter().rposition(|byte| *byte > 0).map_or(0, |last| last + 1);
            codecs.extend(bounds[..used].iter().map(|byte| format!(".{byte:x}")));
            let (width, height) = (hvc1.visual.width, hvc1.visual.height);
            Ok((Kind::Video { width, height, units: Units::Hevc(hvcc.length_size_minus_one + 1) }, codecs))
        }
        Codec::Av01(av01) => {
            let av1c = &av01.av1c;
            let tier = if av1c.seq_tier_0 { 'h' } else { 'm' };
            ensure!(!av1c.high_bitdepth && av1c.chroma_subsampling_x && av1c.chroma_subsampling_y, "{av1c:?}");
            let codecs = format!("av01.{}.{:02}{tier}.08", av1c.seq_profile, av1c.seq_level_idx_0);
            let (width, height) = (av01.visual.width, av01.visual.height);
            Ok((Kind::Video { width, height, units: Units::Av1 }, codecs))
        }
        Codec::Mp4a(mp4a) => {
            let config = &mp4a.esds.es_desc.dec_config;
            let specific = config.dec_specific.as_ref().context("no AudioSpecificConfig")?;
            let codecs = format!("mp4a.{:02x}.{}", config.object_type_indication, specific.profile);
            Ok((Kind::Audio { rate: mp4a.audio.sample_rate.integer() }, codecs))
        }
        other => bail!("sample entry {other:?}"),
    }
}

impl Track {
    /// The samples of a media segment, in decoding order.
    ///
    /// # Errors
    /// When it is not made of `styp`, `moof` and `mdat` of this track, or its tables do not fit its bytes.
    pub fn samples(&self, segment: &[u8]) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for (place, atom) in boxes(segment)? {
            match atom {
                Any::Moof(moof) => self.fragment(segment, place.start, &moof, &mut samples)?,
                Any::Styp(_) | Any::Mdat(_) | Any::Sidx(_) => {}
                other => bail!("media segment holds {:?}", other.kind()),
            }
        }
        ensure!(!samples.is_empty(), "media segment without samples");
        Ok(samples)
    }

    fn fragment(&self, segment: &[u8], moof_at: usize, moof: &Moof, samples: &mut Vec<Sample>) -> Result<()> {
        let [traf] = moof.traf.as_slice() else { bail!("fragment of {} tracks", moof.traf.len()) };
        let (tfhd, trex) = (&traf.tfhd, &self.defaults);
        ensure!(tfhd.track_id == trex.track_id, "fragment of track {}, which the init segment lacks", tfhd.track_id);
        ensure!(tfhd.default_base_is_moof && tfhd.base_data_offset.is_none(), "data offsets are not from the moof");
        let mut dts = i64::try_from(traf.tfdt.as_ref().context("no tfdt")?.base_media_decode_time)?;
        for trun in &traf.trun {
            let mut at = moof_at + usize::try_from(trun.data_offset.context("no data offset")?)?;
            for entry in &trun.samples {
                let duration = entry.duration.or(tfhd.default_sample_duration).unwrap_or(trex.default_sample_duration);
                let size = entry.size.or(tfhd.default_sample_size).unwrap_or(trex.default_sample_size);
                let flags = entry.flags.or(tfhd.default_sample_flags).unwrap_or(trex.default_sample_flags);
                let end = at + usize::try_from(size)?;
                let bytes = segment.get(at..end).context("sample beyond the end of its segment")?;
                let pts = dts + entry.cts.unwrap_or(0);
                samples.push(Sample { dts, pts, duration, sync: flags & NON_SYNC == 0, idr: self.is_idr(bytes)? });
                dts += i64::from(duration);
                at = end;
            }
        }
        Ok(())
    }

    fn is_idr(&self, mut sample: &[u8]) -> Result<bool> {
        let Kind::Video { units, .. } = self.kind else { return Ok(true) };
        let (nal_length_bytes, is_hevc) = match units {
            Units::H264(bytes) => (bytes, false),
            Units::Hevc(bytes) => (bytes, true),
            Units::Av1 => return is_key_frame(sample),
        };
        let mut idr = false;
        while !sample.is_empty() {
            let (length, rest) = sample.split_at_checked(nal_length_bytes.into()).context("a NAL unit's length is cut off")?;
            let length = length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
            let (nal, rest) = rest.split_at_checked(length).context("a NAL unit is cut off")?;
            let header = *nal.first().context("an empty NAL unit")?;
            idr |= if is_hevc { [19, 20].contains(&(header >> 1 & 63)) } else { header & 31 == 5 };
            sample = rest;
        }
        Ok(idr)
    }

    /// Presentation time of `pts` in ns with the edit list applied.
    pub fn presented_ns(&self, pts: i64) -> i64 {
        self.ns(pts - self.media_time)
    }

    /// `ticks` in ns, rounded down.
    pub fn ns(&self, ticks: i64) -> i64 {
        let ns = (i128::from(ticks) * 1_000_000_000).div_euclid(i128::from(self.timescale));
        i64::try_from(ns).unwrap_or(i64::MAX)
    }
}

/// Whether the first frame of a temporal unit of AV1 is a key frame (AV1 specification, 5.3 and 5.9).
fn is_key_frame(mut sample: &[u8]) -> Result<bool> {
    loop {
        let (&header, rest) = sample.split_first().context("no frame in it")?;
        ensure!(header & 0b10 != 0, "an OBU without its size");
        let mut rest = rest.get(usize::from(header >> 2 & 1)..).context("an OBU is cut off")?;
        let (mut size, mut shift) = (0, 0);
        loop {
            let (&byte, after) = rest.split_first().context("a size is cut off")?;
            rest = after;
            size |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
            ensure!(shift < 56, "a size is too long");
        }
        let (body, after) = rest.split_at_checked(size).context("an OBU is cut off")?;
        match header >> 3 & 15 {
            // A frame header, alone or with its frame: not shown before, and of the first type.
            3 | 6 => return Ok(body.first().context("an empty frame")? >> 5 == 0),
            _ => sample = after,
        }
    }
}

/// The boxes of a file or segment, with their places.
fn boxes(bytes: &[u8]) -> Result<Vec<(Range<usize>, Any)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let mut rest = &bytes[at..];
        let atom = Any::decode(&mut rest).with_context(|| format!("box at byte {at}"))?;
        let end = bytes.len() - rest.len();
        found.push((at..end, atom));
        at = end;
    }
    Ok(found)
}
