//! The task that makes still pictures.

use farm::media::SourceVersion;
use farm::stills::StillsPlan;
use farm::task::{Cost, Outcome};
use farm::{Code, Failure};
use pipelines::{Done, Order};

use super::Execution;
use crate::attempt::Sink;
use crate::process::Urgency;
use crate::retry::Patience;
use crate::source::Source;
use crate::still_upload::StillUploads;

impl Execution<'_> {
    pub(super) async fn stills(&self, version: Option<&SourceVersion>, plan: &StillsPlan) -> Result<(Outcome, Cost), Failure> {
        let mut uploads = StillUploads::new(self.output.clone(), self.token.clone());
        let attempt = async {
            // The probe has read it.
            let source = Source::open(&self.spec.source, self.farm.places(), Patience::Long).await?;
            let source = source.check(version, &self.spec.source)?;
            let order = Order::Stills(plan.clone());
            let (done, cost) = self.attempt((&order, Urgency::Usual), &source, Sink::Stills(&mut uploads)).await?;
            let Done::Pictured(pictured) = done else {
                return Err(Failure::new(Code::Internal, "something else came of still pictures"));
            };
            Ok((Outcome::Pictured { stills: uploads.finish(pictured)? }, cost))
        };
        let made = self.guard.hold(attempt).await;
        if made.is_err() {
            uploads.abandon().await;
        }
        made
    }
}
