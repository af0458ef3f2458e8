//! The farm that one begins with: `farm.sh`, as it is started by hand.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::clip::Clip;
use tests::deploy::deploy;
use tests::process::{Group, until};
use tests::service::free_address;
use tests::{http, shoal};

const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn one_command_starts_a_farm_that_takes_jobs_and_is_watched() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (api, admin, prometheus) = (free_address()?, free_address()?, free_address()?);
    let log = fs::File::create(folder.path().join("log"))?;
    let mut command = Command::new(deploy().join("farm.sh"));
    command.env("FARM", folder.path()).env("PROGRAM", shoal::program()?).env("PROMETHEUS_LISTEN", &prometheus);
    command.envs([("SHOAL_LISTEN", &api), ("SHOAL_ADMIN_LISTEN", &admin)]);
    let mut farm = Group::spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
    let said = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let is_up = || Ok(http::ask(admin.parse()?, "GET /readyz", "", "").is_ok_and(|(status, _)| status == 200));
    until("it is ready", LIMIT, is_up).with_context(said)?;

    let output = format!("file://{}/videos/1/", folder.path().display());
    let mut submit = shoal::command(["submit", "--output", &output, "--wait"])?;
    submit.arg(Clip::new("25", 4).file()?).env("SHOAL_SERVER", format!("http://{api}"));
    submit.env("SHOAL_TOKEN_FILE", folder.path().join("token"));
    shoal::run(submit, LIMIT)?.success().with_context(said)?;
    ensure!(folder.path().join("videos/1/master.m3u8").exists(), "no result:\n{}", said());

    let question = "GET /api/v1/query?query=shoal_jobs_finished_total%7Boutcome%3D%22done%22%7D%3D%3D1";
    let is_seen = || Ok(http::ask(prometheus.parse()?, question, "", "").is_ok_and(|(_, answer)| answer.contains("metric\":{")));
    until("Prometheus has seen the job", LIMIT, is_seen).with_context(said)?;
    farm.signal(Signal::SIGINT);
    farm.wait(LIMIT)?;
    ensure!(!said().contains(fs::read_to_string(folder.path().join("token"))?.trim()), "the token was told");
    Ok(())
}
