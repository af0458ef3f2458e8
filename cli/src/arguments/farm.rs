//! The arguments of the farm's services, and of those who use a farm.
//!
//! No secret is an argument, which everybody on a machine can see: they come from variables or files.

use std::net::SocketAddr;
use std::path::PathBuf;

use ::farm::job::JobId;
use ::farm::outbound::Reach;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use url::Url;
use worker::notice::Provider;

use super::{Sandbox, Wanted};

/// Where broker and storage are.
#[derive(Args)]
pub struct Connection {
    /// The broker: amqp://, amqps://, or local: for one inside this process. A password is better kept in the variable or a file.
    #[arg(long, env = "SHOAL_BROKER", hide_env_values = true, value_name = "URL")]
    pub broker: Option<String>,
    /// A file that holds the broker's URL.
    #[arg(long, env = "SHOAL_BROKER_FILE", value_name = "FILE", conflicts_with = "broker")]
    pub broker_file: Option<PathBuf>,
    /// The farm's state: s3://bucket/prefix/ or file:///folder/. S3 credentials are the usual AWS_ variables.
    #[arg(long, env = "SHOAL_STORAGE", value_name = "URL")]
    pub storage: Option<Url>,
    /// The S3 server, when it is not AWS.
    #[arg(long, env = "SHOAL_S3_ENDPOINT", value_name = "URL")]
    pub s3_endpoint: Option<String>,
}

/// Where requests go that jobs ask for.
#[derive(Args)]
pub struct Outbound {
    /// Networks, as 10.1.0.0/16 or fd00::/8, in which sources behind HTTP and whom to call at the end of jobs may be, beside the
    /// public Internet.
    #[arg(long, env = "SHOAL_ALLOW_NETWORKS", value_name = "NETWORKS", value_delimiter = ',')]
    pub allow_networks: Vec<IpNet>,
}

impl Outbound {
    /// The public Internet, and these networks.
    pub fn reach(&self) -> Reach {
        Reach::PublicAnd(self.allow_networks.clone().into())
    }
}

/// `shoal scheduler`.
#[derive(Args)]
pub struct Scheduler {
    /// Where broker and storage are.
    #[command(flatten)]
    pub connection: Connection,
    /// Address of the HTTP API; without it jobs come from the queue alone.
    #[arg(long, env = "SHOAL_LISTEN", value_name = "ADDRESS", requires = "tokens")]
    pub listen: Option<SocketAddr>,
    /// TOML file with the tenants and their tokens.
    #[arg(long, env = "SHOAL_TOKENS_FILE", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// TOML file with the instances of PeerTube whose jobs are done; `shoal peertube register` writes it.
    #[arg(long, env = "SHOAL_PEERTUBE_FILE", value_name = "FILE")]
    pub peertube: Option<PathBuf>,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Allow file: URLs as sources and outputs of jobs: whoever may submit can then read and write this machine's files.
    #[arg(long, env = "SHOAL_ALLOW_FILE_URLS")]
    pub allow_file_urls: bool,
    /// Where requests go that jobs ask for.
    #[command(flatten)]
    pub outbound: Outbound,
    /// Also run a worker in this process, with so many slots.
    #[arg(long, env = "SHOAL_SLOTS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub slots: u16,
    /// How children are kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// From the end of a job until left-over media is deleted, and a failed one cannot be retried any more.
    #[arg(long, env = "SHOAL_GRACE_HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=8760))]
    pub grace_hours: u32,
    /// From the end of a job until its state is deleted; kept for ever when not given. The result is always kept.
    #[arg(long, env = "SHOAL_KEEP_DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub keep_days: Option<u32>,
    /// How long a job is to take from when it is first heard of: by that `shoal_wanted_workers` says how many workers are wanted.
    #[arg(long, env = "SHOAL_SCALE_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(60..=86400))]
    pub scale_seconds: u32,
    /// Slots of each of the workers that are wanted: what they have in SHOAL_SLOTS.
    #[arg(long, env = "SHOAL_SLOTS_PER_WORKER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots_per_worker: u16,
    /// Where a trace of each job goes when it has ended: a collector that takes OTLP over HTTP in JSON, as http://127.0.0.1:4318.
    #[arg(long, env = "SHOAL_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// A file that holds headers for it, as name=value,name=value; otherwise they are in SHOAL_OTLP_HEADERS.
    #[arg(long, env = "SHOAL_OTLP_HEADERS_FILE", value_name = "FILE")]
    pub otlp_headers_file: Option<PathBuf>,
    /// Print an error as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal worker`.
#[derive(Args)]
pub struct Worker {
    /// Where broker and storage are.
    #[command(flatten)]
    pub connection: Connection,
    /// Pieces of work done at a time; one per core when not given.
    #[arg(long, env = "SHOAL_SLOTS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: Option<u16>,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// When asked to stop: how long running work may take to end before it is given back.
    #[arg(long, env = "SHOAL_DRAIN_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(0..=86400))]
    pub drain_seconds: u32,
    /// Longest duration of an attempt.
    #[arg(long, env = "SHOAL_DEADLINE_SECONDS", default_value_t = 1200, value_parser = clap::value_parser!(u32).range(1..=1500))]
    pub deadline_seconds: u32,
    /// Longest silence of an attempt.
    #[arg(long, env = "SHOAL_STALL_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1500))]
    pub stall_seconds: u32,
    /// Ask this cloud every 5 s whether the machine is to be taken away, and stop in time when it is.
    #[arg(long, env = "SHOAL_SPOT_NOTICES", value_enum, default_value_t = SpotNotices::None)]
    pub spot_notices: SpotNotices,
    /// Whom to ask instead of the cloud: for tests.
    #[arg(long, env = "SHOAL_SPOT_ENDPOINT", value_name = "URL", hide = true)]
    pub spot_endpoint: Option<Url>,
    /// End after so many tasks, with what runs beside the last of them; never when not given.
    #[arg(long, env = "SHOAL_TASKS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tasks: Option<u32>,
    /// End when there was nothing to do for so long; never when not given.
    #[arg(long, env = "SHOAL_IDLE_SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub idle_seconds: Option<u32>,
    /// Where requests go that jobs ask for.
    #[command(flatten)]
    pub outbound: Outbound,
    /// How children are kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Print an error as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How `--spot-notices` names who gives notice.
#[derive(Clone, Copy, ValueEnum)]
pub enum SpotNotices {
    /// Nobody.
    None,
    /// Amazon EC2, of the end of spot instances.
    Ec2,
    /// Google Cloud, of the end of spot machines.
    Gcp,
    /// Azure, of the end of spot machines, of restarts and moves.
    Azure,
}

impl SpotNotices {
    /// Whom to ask.
    pub fn provider(self) -> Option<Provider> {
        match self {
            Self::None => None,
            Self::Ec2 => Some(Provider::Ec2),
            Self::Gcp => Some(Provider::Gcp),
            Self::Azure => Some(Provider::Azure),
        }
    }
}

/// Which farm to talk to. The token is in `SHOAL_TOKEN`, or in a file.
#[derive(Args)]
pub struct Server {
    /// The scheduler's HTTP API.
    #[arg(long, env = "SHOAL_SERVER", value_name = "URL")]
    pub server: Option<Url>,
    /// A file that holds the token; otherwise it is in SHOAL_TOKEN.
    #[arg(long, env = "SHOAL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `shoal submit`.
#[derive(Args)]
pub struct Submit {
    /// The sources: https://, http://, s3://, or files where the farm allows those. A - reads a list of them from standard input.
    #[arg(value_name = "INPUT", required_unless_present = "from")]
    pub inputs: Vec<String>,
    /// A file with more sources, one a line: URLs, paths, or patterns of paths as videos/*.mp4. What begins with # is passed over.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Where the result goes: s3://bucket/prefix/, or a folder where the farm allows those. Of several sources, or of a list, each
    /// has a folder of its own below it.
    #[arg(long, short, env = "SHOAL_OUTPUT")]
    pub output: String,
    /// Which farm.
    #[command(flatten)]
    pub server: Server,
    /// Name of the job: the same name with the same settings is the same job. Of several, what their names begin with.
    #[arg(long, value_parser = |text: &str| JobId::try_from(text.to_owned()).map_err(|failure| failure.message))]
    pub id: Option<JobId>,
    /// Who it is for; only an admin may say.
    #[arg(long)]
    pub tenant: Option<String>,
    /// What to make.
    #[command(flatten)]
    pub result: Wanted,
    /// Jobs of one tenant with a higher priority go first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Whom to call when it has ended; the key of the signature is in SHOAL_NOTIFY_SECRET.
    #[arg(long)]
    pub notify_url: Option<Url>,
    /// Wait until it has ended, and end as it did; of several, as the worst of them.
    #[arg(long)]
    pub wait: bool,
    /// Print the job, the jobs or the error as one JSON object; of several also each that is taken, as soon as it is, on a line of
    /// its own before.
    #[arg(long)]
    pub json: bool,
}

/// `shoal status`.
#[derive(Args)]
pub struct Status {
    /// The job; without it all jobs are listed.
    pub job: Option<String>,
    /// Which farm.
    #[command(flatten)]
    pub server: Server,
    /// Show how it goes on until it has ended, and end as it did.
    #[arg(long, requires = "job")]
    pub follow: bool,
    /// Show all jobs that have not ended, and how they go on, until Ctrl-C. Where there is no terminal it is the list.
    #[arg(long, conflicts_with = "job")]
    pub watch: bool,
    /// At most so many jobs in the list.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// Only those after this job, in the order of the list.
    #[arg(long)]
    pub after: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal cancel` and `shoal retry`.
#[derive(Args)]
pub struct JobCommand {
    /// The job.
    pub job: String,
    /// Which farm.
    #[command(flatten)]
    pub server: Server,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal delete`.
#[derive(Args)]
pub struct Delete {
    /// The jobs. Each has ended; nothing is deleted but what it has made.
    #[arg(value_name = "JOB", required = true)]
    pub jobs: Vec<String>,
    /// Which farm.
    #[command(flatten)]
    pub server: Server,
    /// Print the job or the error as one JSON object; of several jobs one for each, on a line of its own.
    #[arg(long)]
    pub json: bool,
}

/// `shoal doctor`.
#[derive(Args)]
pub struct Doctor {
    /// Where broker and storage are; what is not given is not checked.
    #[command(flatten)]
    pub connection: Connection,
    /// How children are kept in.
    #[command(flatten)]
    pub sandbox: Sandbox,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal peertube`.
#[derive(Args)]
pub struct PeerTube {
    /// What to do.
    #[command(subcommand)]
    pub command: PeerTubeCommand,
}

/// What `shoal peertube` does.
#[derive(Subcommand)]
pub enum PeerTubeCommand {
    /// Make this farm a runner of an instance. The registration token is in SHOAL_REGISTRATION_TOKEN, or in a file.
    Register(Register),
    /// Show the instances of a file.
    List(InstanceFile),
    /// Have an instance forget this farm.
    Unregister(Unregister),
}

/// The file of instances.
#[derive(Args)]
pub struct InstanceFile {
    /// TOML file with the instances, as `shoal scheduler` reads it.
    #[arg(long, env = "SHOAL_PEERTUBE_FILE", value_name = "FILE", default_value = "peertube.toml")]
    pub file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `shoal peertube register`.
#[derive(Args)]
pub struct Register {
    /// Where the instance is: https://tube.example.org
    #[arg(long)]
    pub url: Url,
    /// What the runner is called there.
    #[arg(long, default_value = "shoal")]
    pub name: String,
    /// A file that holds the registration token; otherwise it is in SHOAL_REGISTRATION_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The file of instances, made when it is not there.
    #[command(flatten)]
    pub file: InstanceFile,
}

/// `shoal peertube unregister`.
#[derive(Args)]
pub struct Unregister {
    /// Where the instance is.
    #[arg(long)]
    pub url: Url,
    /// The file of instances.
    #[command(flatten)]
    pub file: InstanceFile,
}
