//! That a worker is there, and what it is at: for whoever shows the farm. Nothing is decided by it.

use serde::{Deserialize, Serialize};

use crate::task::Token;

/// What a worker says of itself, every ten seconds and when something changes. Lost without harm.
///
/// Programs that do not know it yet understand no word of it, which is why it must not have all the fields of a word that they
/// do know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// The worker, by a name that it gives itself: the one of its [`crate::encoder::Offer`]s.
    pub worker: Token,
    /// Its version.
    pub version: String,
    /// Tasks that it does at a time, those that take a device among them.
    pub slots: u32,
    /// Tasks that it has now.
    pub running: u32,
    /// Whether it takes more.
    pub duty: Duty,
    /// Its devices that work: class and node.
    pub devices: Vec<String>,
    /// Seconds of media that it has gone through per second, in the last minute; none when it encoded nothing.
    pub speed: Option<f64>,
}

/// Whether a worker takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// It does.
    Taking,
    /// It takes no more, and brings what it has to an end.
    Draining,
}

impl Duty {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Taking, Self::Draining];

    /// In a word, as it stands in labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Taking => "taking",
            Self::Draining => "draining",
        }
    }
}

impl Presence {
    /// Most devices that are named.
    pub const DEVICES_MAX: usize = 16;
    /// Longest version and longest name of a device, in bytes.
    pub const TEXT_BYTES_MAX: usize = 128;

    /// Whether a worker may have said it: whoever may speak on the broker may say anything, of any size.
    pub fn is_sound(&self) -> bool {
        let is_short = |text: &String| text.len() <= Self::TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        Token::is_shape_of(self.worker.as_str())
            && is_short(&self.version)
            && self.devices.len() <= Self::DEVICES_MAX
            && self.devices.iter().all(is_short)
            && self.speed.is_none_or(|speed| speed.is_finite() && speed >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::Offer;
    use crate::job::JobId;
    use crate::task::{Progress, TaskId, Word};

    fn presence() -> Presence {
        Presence {
            worker: Token::random(),
            version: "0.1.0".to_owned(),
            slots: 3,
            running: 1,
            duty: Duty::Draining,
            devices: vec!["nvenc /dev/nvidia0".to_owned()],
            speed: Some(1.25),
        }
    }

    #[test]
    fn a_word_is_read_as_what_it_is_and_one_that_is_not_known_as_none() {
        let job = JobId::try_from("j1".to_owned()).expect("a job id");
        let progress = Progress { job, task: TaskId::Probe, token: Token::random(), media_ns: 1 };
        let offer = Offer { worker: Token::random(), encoders: Vec::new() };
        let silent = Presence { speed: None, devices: Vec::new(), duty: Duty::Taking, ..presence() };
        for word in [Word::Progress(progress), Word::Offer(offer), Word::Here(presence()), Word::Here(silent)] {
            let said = serde_json::to_string(&word).expect("JSON");
            assert_eq!(serde_json::from_str::<Word>(&said).expect("a word"), word, "{said}");
        }
        let said = serde_json::to_string(&presence()).expect("JSON");
        assert!(serde_json::from_str::<Progress>(&said).is_err(), "whoever knows no other words takes it for neither");
        assert!(serde_json::from_str::<Offer>(&said).is_err(), "whoever knows no other words takes it for neither");
        assert!(serde_json::from_str::<Word>(r#"{"worker":"0123456789abcdef","mood":"good"}"#).is_err());
    }

    #[test]
    fn what_no_worker_says_is_not_sound() {
        assert!(presence().is_sound());
        let long = "x".repeat(Presence::TEXT_BYTES_MAX + 1);
        let worker: Token = serde_json::from_str(r#""no token""#).expect("a text");
        for unsound in [
            Presence { worker, ..presence() },
            Presence { version: long.clone(), ..presence() },
            Presence { version: "1\n2".to_owned(), ..presence() },
            Presence { devices: vec![long], ..presence() },
            Presence { devices: vec![String::new(); Presence::DEVICES_MAX + 1], ..presence() },
            Presence { speed: Some(-1.0), ..presence() },
            Presence { speed: Some(f64::NAN), ..presence() },
        ] {
            assert!(!unsound.is_sound(), "{unsound:?}");
        }
    }
}
