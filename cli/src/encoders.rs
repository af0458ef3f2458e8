//! `shoal encoders`: every encoder that is looked for, and whether it passed a real encode; or what the workers of a farm have.

use std::path::PathBuf;

use farm::encoder::Device;
use farm::job::VideoCodec;
use farm::{Class, Code, Failure};
use pipelines::encoders::{CANDIDATES, Candidate, devices_of};
use serde::Serialize;
use worker::Settings;

use crate::arguments::{Encoders, Sandbox};
use crate::client::Client;
use crate::ending::{print_json, print_line};

/// An encoder that was looked for.
#[derive(Serialize)]
pub struct Found {
    /// Which it is.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// The device that it runs on.
    pub device: Option<PathBuf>,
    /// Why it is not usable, if it is not.
    pub failure: Option<Failure>,
    /// Whether it is used for its codec.
    pub chosen: bool,
}

/// Runs the command.
///
/// # Errors
/// When a farm is asked, and does not tell. What does not work on this machine is what is asked for.
pub async fn run(encoders: &Encoders) -> Result<(), Failure> {
    if encoders.farm {
        return of_farm(encoders).await;
    }
    let found = look(&encoders.sandbox).await;
    if encoders.json {
        #[derive(Serialize)]
        struct Answer {
            encoders: Vec<Found>,
        }
        print_json(&Answer { encoders: found });
        return Ok(());
    }
    for found in found.chunk_by(is_told_with) {
        let Some(first) = found.first() else { continue };
        let codecs: Vec<_> = found.iter().map(|found| found.candidate.codec).collect();
        let name = match first.candidate.class {
            Class::Cpu => first.candidate.element,
            class => class.word(),
        };
        print_line(&format!("{:14} {name:10} {}", codecs.join(" "), first.verdict()));
    }
    Ok(())
}

/// Tells what the workers of a farm encode with.
async fn of_farm(encoders: &Encoders) -> Result<(), Failure> {
    let equipment = Client::new(&encoders.server)?.encoders().await?;
    if encoders.json {
        print_json(&equipment);
        return Ok(());
    }
    for scheduler::api::Encoders { class, workers, slots, codecs } in &equipment.classes {
        let names: Vec<String> = codecs.iter().map(|encoder| name(encoder.codec)).collect();
        print_line(&format!("{:8} {workers:>5} workers, {slots:>5} slots  {}", class.word(), names.join(" ")));
    }
    Ok(())
}

/// A codec as jobs name it.
fn name(codec: VideoCodec) -> String {
    serde_json::to_value(codec).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Whether both stand on one line: of one kind of hardware, and with the same to say.
fn is_told_with(one: &Found, other: &Found) -> bool {
    let class = one.candidate.class;
    class.is_hardware() && class == other.candidate.class && one.verdict() == other.verdict()
}

impl Found {
    fn verdict(&self) -> String {
        match (&self.failure, &self.device) {
            (None, None) => "works, is used".to_owned(),
            (None, Some(device)) => format!("works on {}; is used where the plan prefers it", device.display()),
            (Some(failure), _) => failure.message.clone(),
        }
    }
}

/// Looks for every encoder, on every device, and has each that may be there prove itself, kept in as a worker's children are.
pub async fn look(sandbox: &Sandbox) -> Vec<Found> {
    let settings = Settings::new(1, sandbox.child());
    let mut all = Vec::new();
    for class in Class::ALL {
        let devices: Vec<Result<Option<Device>, Failure>> = match devices_of(class) {
            Ok(_) if class.is_cpu() => vec![Ok(None)],
            Ok(devices) => devices.into_iter().map(|device| Ok(Some(device))).collect(),
            Err(failure) => vec![Err(failure)],
        };
        for device in devices {
            for candidate in CANDIDATES.into_iter().filter(|candidate| candidate.class == class) {
                let (device, failure) = match device.clone() {
                    Ok(device) => (device.clone(), prove(candidate, device, &settings).await.err()),
                    Err(failure) => (None, Some(failure)),
                };
                let device = device.map(|device| device.node);
                let chosen = failure.is_none();
                all.push(Found { candidate, device, failure, chosen });
            }
        }
    }
    all
}

/// Has a process of its own prove an encoder.
async fn prove(candidate: Candidate, device: Option<Device>, settings: &Settings) -> Result<(), Failure> {
    let proven = worker::prove(&candidate.proof(device), settings).await;
    proven.map_err(|failure| match failure.code {
        Code::MissingElement | Code::EncoderFailed => failure,
        _ => Failure::new(Code::EncoderFailed, format!("{} fails a test encode: {failure}", candidate.element)),
    })
}
