//! The task that makes the renditions of text.

use farm::media::SourceVersion;
use farm::task::{Cost, Outcome};
use farm::text::TextPlan;
use farm::{Code, Failure};
use pipelines::{Done, Order};

use super::Execution;
use crate::attempt::Sink;
use crate::process::Urgency;
use crate::retry::Patience;
use crate::source::Source;
use crate::text_upload::TextUploads;

impl Execution<'_> {
    pub(super) async fn text(&self, version: Option<&SourceVersion>, plan: &TextPlan) -> Result<(Outcome, Cost), Failure> {
        let mut uploads = TextUploads::new(self.output.clone(), self.token.clone(), plan.clone());
        let attempt = async {
            // The probe has read it.
            let source = Source::open(&self.spec.source, self.farm.places(), Patience::Long).await?;
            let source = source.check(version, &self.spec.source)?;
            let order = Order::Text(plan.clone());
            let (done, cost) = self.attempt((&order, Urgency::Usual), &source, Sink::Text(&mut uploads)).await?;
            let Done::Texted(told) = done else {
                return Err(Failure::new(Code::Internal, "something else came of text"));
            };
            Ok((Outcome::Texted { renditions: uploads.finish(told)? }, cost))
        };
        let made = self.guard.hold(attempt).await;
        if made.is_err() {
            uploads.abandon().await;
        }
        made
    }
}
