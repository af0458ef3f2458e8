//! The codec string of a rendition whose pieces were made by different encoders (RFC 6381): one that is true of all of them.

/// What is true of all of these; nothing where they differ in more than level and constraints.
pub fn of_all<'a>(mut all: impl Iterator<Item = &'a str>) -> Option<String> {
    let first = all.next()?.to_owned();
    all.try_fold(first, |so_far, other| of_both(&so_far, other))
}

fn of_both(one: &str, other: &str) -> Option<String> {
    if one == other {
        return Some(one.to_owned());
    }
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split('.').collect(), other.split('.').collect());
    match (one.as_slice(), other.as_slice()) {
        (["avc1", one], ["avc1", other]) => avc1(one, other),
        (["hvc1", one_profile, one_fits, one_level, ..], ["hvc1", profile, fits, level, ..]) => {
            let is_same = (one_profile, one_fits) == (profile, fits);
            // Constraints are said by those of the higher level.
            let greater = if hevc_level(one_level)? >= hevc_level(level)? { &one } else { &other };
            is_same.then(|| greater.join("."))
        }
        (["av01", one_profile, one_level, one_rest @ ..], ["av01", profile, level, rest @ ..]) => {
            let is_same = (one_profile, one_rest) == (profile, rest);
            is_same.then(|| [&["av01", *profile, *one_level.max(level)], rest].concat().join("."))
        }
        _ => None,
    }
}

/// `PPCCLL`: profile, constraints that all keep to, the highest level.
fn avc1(one: &str, other: &str) -> Option<String> {
    let bytes = |text: &str| {
        let value = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 6)?;
        let [_, profile, constraints, level] = value.to_be_bytes();
        Some((profile, constraints, level))
    };
    let ((profile, constraints, level), other) = (bytes(one)?, bytes(other)?);
    (profile == other.0).then(|| format!("avc1.{profile:02X}{:02X}{:02X}", constraints & other.1, level.max(other.2)))
}

/// Tier and level of `L93` or `H120`.
fn hevc_level(text: &str) -> Option<(bool, u32)> {
    let is_high = text.starts_with('H');
    Some((is_high, text.strip_prefix(['L', 'H'])?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_string_is_true_of_all_pieces() {
        for (all, wanted) in [
            (vec!["avc1.64001F"; 2], Some("avc1.64001F")),
            (vec!["avc1.640C1F", "avc1.640028", "avc1.640C1E"], Some("avc1.640028")),
            (vec!["avc1.640C32", "avc1.640C28"], Some("avc1.640C32")),
            (vec!["avc1.64001F", "avc1.4D001F"], None),
            (vec!["hvc1.1.6.L93.90", "hvc1.1.6.L120.B0"], Some("hvc1.1.6.L120.B0")),
            (vec!["hvc1.1.6.L93", "hvc1.1.6.L93.B0"], Some("hvc1.1.6.L93")),
            (vec!["hvc1.1.6.L150", "hvc1.1.6.H120"], Some("hvc1.1.6.H120")),
            (vec!["hvc1.1.6.L93.90", "hvc1.2.4.L93.90"], None),
            (vec!["av01.0.04M.08", "av01.0.05M.08"], Some("av01.0.05M.08")),
            (vec!["av01.0.04M.08", "av01.0.04M.10"], None),
            (vec!["avc1.64001F", "hvc1.1.6.L93.90"], None),
            (vec!["mp4a.40.2", "mp4a.40.5"], None),
            (vec![], None),
        ] {
            assert_eq!(of_all(all.iter().copied()).as_deref(), wanted, "{all:?}");
        }
    }
}
