//! Jobs from instances of PeerTube: this farm is an ordinary remote runner of each.
//!
//! ```text
//! available ─▶ accept ─▶ source (fetched once) ─▶ one job of the farm for the whole ladder ─▶ success, form by form
//!                └──────────── update, every 15 s, until it has ended or is nobody's business any more ────────────┘
//! ```
//!
//! An instance asks for each form of each resolution by itself, the smaller ones after it has the largest. Here they are all
//! made at the first one, from one decode of the original; what is asked for later is there. An edited video is made of the
//! original too, with all that the instance is going to ask for once it has it.

mod answer;
mod film;
mod ladder;
mod muxed;
mod order;
mod protocol;
mod runner;
pub mod settings;
mod slide;
mod studio;
mod sweep;
mod wake;
mod work;

use std::sync::Arc;

use farm::Failure;
use farm::storage::Storage;
use url::Url;

pub use protocol::{register, unregister};

use crate::scheduler::{Handle, Watch};
use film::Films;
use protocol::Client;
use runner::Runner;
use settings::Instance;

/// What instances are served with.
pub struct Config {
    /// The instances.
    pub instances: Vec<Instance>,
    /// The URL of the farm's state, below which sources and results are kept: workers read and write there.
    pub url: Url,
}

/// Serves every instance, each by itself, until the future is dropped.
///
/// # Errors
/// When no requests can be made at all.
pub async fn run(config: Config, scheduler: Arc<Handle>, state: Storage, watch: Watch) -> Result<(), Failure> {
    let mut runners = Vec::new();
    for instance in config.instances {
        let films = Films { state: state.clone(), url: config.url.clone(), slug: instance.slug() };
        let client = Client::new(&instance)?;
        let (scheduler, state) = (Arc::clone(&scheduler), state.clone());
        let (preparing, waiting, held, ahead) = Default::default();
        let watch = watch.clone();
        let runner = Runner { scheduler, state, instance, client, films, preparing, waiting, held, watch, ahead };
        runners.push(Arc::new(runner).run());
    }
    futures::future::join_all(runners).await;
    // Without instances there is nothing to do, which is no end.
    std::future::pending().await
}
