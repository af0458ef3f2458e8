//! `shoal doctor`: checks everything that a farm needs, one line each, with what to do about what is wrong.

use farm::storage::Storage;
use farm::{Code, Failure};
use pipelines::encoders::Candidate;
use serde::Serialize;

use crate::arguments::Doctor;
use crate::encoders::{Found, look};
use crate::ending::{print_json, print_line};
use crate::services::{broker, storage};

/// Free room below which a disk is called full, in MiB.
const DISK_FREE_MIB_MIN: u64 = 1024;

/// A thing that was checked.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    /// How it is, or what is wrong and how to mend it.
    says: String,
}

/// Runs the command.
///
/// # Errors
/// When something is wrong: the environment is at fault, and what was printed says how to mend it.
pub async fn run(doctor: &Doctor) -> Result<(), Failure> {
    let mut findings = vec![elements(), encoders(doctor).await, sandbox()];
    if doctor.connection.storage.is_some() {
        findings.push(check_storage(doctor).await);
        findings.extend(disk(doctor));
    }
    if doctor.connection.broker.is_some() || doctor.connection.broker_file.is_some() {
        findings.push(check_broker(doctor).await);
    }
    let wrong = findings.iter().filter(|finding| !finding.ok).count();
    if doctor.json {
        #[derive(Serialize)]
        struct Findings<'a> {
            ok: bool,
            findings: &'a [Finding],
        }
        print_json(&Findings { ok: wrong == 0, findings: &findings });
    } else {
        for Finding { what, ok, says } in &findings {
            print_line(&format!("{} {what:9} {says}", if *ok { "ok   " } else { "WRONG" }));
        }
    }
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::new(Code::MissingElement, format!("{wrong} of {} checks found something wrong", findings.len()))),
    }
}

fn elements() -> Finding {
    let (ok, says) = match pipelines::encoders::missing_elements() {
        Ok(missing) if missing.is_empty() => (true, "GStreamer starts, and every element is there".to_owned()),
        Ok(missing) => (false, missing.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("; ")),
        Err(failure) => (false, failure.message),
    };
    Finding { what: "gstreamer", ok, says }
}

fn sandbox() -> Finding {
    let walls = worker::sandbox::walls();
    let mend = if walls.are_enough() {
        ""
    } else {
        ": a kernel of 5.13 or newer with Landlock is needed, and a container that lets it through"
    };
    Finding { what: "sandbox", ok: walls.are_enough(), says: format!("{walls}{mend}") }
}

async fn encoders(doctor: &Doctor) -> Finding {
    let mut ok = true;
    let mut says = Vec::new();
    for Found { candidate: Candidate { codec, class, element }, device, failure, .. } in look(&doctor.sandbox).await {
        match (failure, device) {
            (None, None) => says.push(format!("{codec} by {element}")),
            (None, Some(device)) => says.push(format!("{codec} by {class} on {}", device.display())),
            (Some(failure), _) if class.is_cpu() => {
                // The others are for jobs that ask for them.
                ok &= !["h264", "aac"].contains(&codec);
                says.push(format!("no {codec}: {failure}"));
            }
            // Without hardware there is nothing to mend.
            (Some(_), _) => {}
        }
    }
    Finding { what: "encoders", ok, says: says.join("; ") }
}

async fn check_storage(doctor: &Doctor) -> Finding {
    let what = "storage";
    let opened = match storage(&doctor.connection) {
        Ok(opened) => opened,
        Err(failure) => return Finding { what, ok: false, says: failure.message },
    };
    match opened.check().await {
        Ok(found) => {
            let says = format!("{}: written, read, listed and deleted; create-only writes {}", opened.shown(), found.create_only);
            Finding { what, ok: true, says }
        }
        Err(error) => Finding { what, ok: false, says: format!("{}: {error}{}", opened.shown(), storage_remedy(&opened)) },
    }
}

fn storage_remedy(storage: &Storage) -> &'static str {
    match storage.shown().starts_with('/') {
        true => "; see that the folder exists and may be written by this user",
        false => "; see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, --s3-endpoint and that the bucket exists",
    }
}

/// Room on the disk of a folder; nothing for other storages.
fn disk(doctor: &Doctor) -> Option<Finding> {
    let folder = doctor.connection.storage.as_ref()?.to_file_path().ok()?;
    let existing = folder.ancestors().find(|path| path.exists())?;
    let about = nix::sys::statvfs::statvfs(existing).ok()?;
    let free_mib = about.blocks_available().saturating_mul(about.fragment_size()) >> 20;
    let ok = free_mib >= DISK_FREE_MIB_MIN;
    let remedy = if ok { "" } else { ": make room, at least 1 GiB" };
    Some(Finding { what: "disk", ok, says: format!("{free_mib} MiB free at {}{remedy}", existing.display()) })
}

async fn check_broker(doctor: &Doctor) -> Finding {
    let what = "broker";
    let remedy = "see that the server runs, and user, password and virtual host in the URL";
    let checked = async {
        let broker = broker(&doctor.connection).await?;
        Ok::<_, Failure>(broker.check().await?)
    };
    match checked.await {
        Ok(info) => {
            let waiting: u64 = info.queues.iter().map(|queue| u64::from(queue.ready)).sum();
            let says = format!("{} {}, {} queues, {waiting} messages wait", info.product, info.version, info.queues.len());
            Finding { what, ok: true, says }
        }
        Err(failure) => Finding { what, ok: false, says: format!("{failure}; {remedy}") },
    }
}
