//! The tasks that encode, on the processor or on a device.

use farm::plan::Plan;
use farm::task::{Cost, Outcome};
use farm::{Code, Failure};
use pipelines::Done;

use super::Execution;
use crate::attempt::Sink;
use crate::devices::Lease;
use crate::rack::Ending;
use crate::retry::Patience;
use crate::sets::Sets;
use crate::source::Source;
use crate::upload::Uploads;
use crate::work::{self, Storing};

impl Execution<'_> {
    /// Encodes, and says which device rungs were made on, if they were.
    pub(super) async fn encode(&self, plan: &Plan, encode: work::Encode) -> Result<((Outcome, Cost), Option<String>), Failure> {
        let lease = self.guard.hold(self.lease(&encode)).await?;
        let encode = match &lease {
            Some(lease) => encode.on(lease.on().clone()),
            None => encode,
        };
        let places = encode.on_device();
        let sets = lease.as_ref().filter(|_| work::joins_parts(plan)).map(|lease| Sets {
            state: self.farm.state.clone(),
            job: self.message.job.clone(),
            device: lease.on().device.clone(),
            places: places.clone(),
        });
        let uploads = Uploads::new(self.output.clone(), Storing::of(plan), self.token.clone(), encode.renditions);
        let mut uploads = uploads.with_sets(sets);
        let attempt = async {
            // The probe has read it.
            let source = Source::open(&self.spec.source, self.farm.places(), Patience::Long).await?;
            let source = source.check(plan.source.as_ref(), &self.spec.source)?;
            let (done, cost) = self.attempt((&encode.order, encode.urgency), &source, Sink::Media(&mut uploads)).await?;
            let renditions = uploads.finish().await?;
            match done {
                Done::Encoded(account) => Ok((Outcome::Encoded { renditions, account }, cost)),
                _ => Err(Failure::new(Code::Internal, "something else came of an encode")),
            }
        };
        let made = self.guard.hold(attempt).await;
        let device = lease.as_ref().map(|lease| lease.on().device.to_string());
        let made = match lease {
            Some(lease) => given_back(lease, made, uploads.has_begun(&places)),
            None => made,
        };
        if made.is_err() {
            uploads.abandon().await;
        }
        Ok((made?, device))
    }

    /// A device for what is pinned to the class of the message; none where all is to be made on the processor.
    async fn lease(&self, encode: &work::Encode) -> Result<Option<Lease>, Failure> {
        let class = self.message.class;
        let needs = encode.needs(class);
        if needs.is_empty() {
            return Ok(None);
        }
        let lent = self.farm.stop.run_until_cancelled(self.farm.keeper.lend(class, &needs)).await;
        let lent = lent.ok_or_else(|| Failure::new(Code::Interrupted, "it was not begun"))?;
        if lent.is_none() {
            let (job, task) = (&self.message.job, &self.message.task);
            tracing::info!(%job, %task, %class, "no device that works is left: the processor does it");
        }
        Ok(lent)
    }
}

/// Gives a device back after what was made on it. A failure that the device may be to blame for becomes its own.
fn given_back<T>(lease: Lease, made: Result<T, Failure>, has_begun: bool) -> Result<T, Failure> {
    let (ending, made) = match made {
        Ok(made) => (Ending::Done, Ok(made)),
        Err(failure) if is_the_devices(failure.code) => {
            let message = format!("{}: {}", lease.on().device, failure.message);
            (Ending::Failed { has_begun }, Err(Failure::new(Code::DeviceFailed, message)))
        }
        Err(failure) => (Ending::Neither, Err(failure)),
    };
    lease.end(ending);
    made
}

/// Whether a failure of this code may be one of the device that was used: anything that is not known to be another's. The same is
/// tried on the processor then, where the source shows whether it was to blame.
fn is_the_devices(code: Code) -> bool {
    match code {
        Code::EncoderFailed
        | Code::ChildCrashed
        | Code::ChildStalled
        | Code::DeadlineExceeded
        | Code::MissingElement
        | Code::Internal => true,
        Code::NotMedia
        | Code::NoDecodableStream
        | Code::UnsupportedCodec
        | Code::Truncated
        | Code::Undecodable
        | Code::SourceUnreadable
        | Code::SourceChanged
        | Code::LimitExceeded
        | Code::InvalidRequest
        | Code::StorageUnwritable
        | Code::StorageFull
        | Code::StorageUnavailable
        | Code::BrokerUnavailable
        | Code::SchedulerUnavailable
        | Code::SandboxMissing
        | Code::DeviceFailed
        | Code::Cancelled
        | Code::Interrupted => false,
    }
}
