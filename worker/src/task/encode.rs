//! The tasks that encode, on the processor or on a device.

use farm::edit;
use farm::job::{JobId, SourceSpec};
use farm::media::SourceVersion;
use farm::plan::Plan;
use farm::task::{Cost, Outcome};
use farm::{Code, Failure};
use pipelines::Done;
use tokio::time::Instant;

use super::Execution;
use crate::attempt::Sink;
use crate::devices::{LEND_WAIT, Lease};
use crate::rack::Ending;
use crate::retry::Patience;
use crate::sets::Sets;
use crate::source::Source;
use crate::upload::Uploads;
use crate::work::{self, Storing};

impl Execution<'_> {
    /// Encodes, and says which device rungs were made on, if they were.
    pub(super) async fn encode(&self, plan: &Plan, encode: work::Encode) -> Result<((Outcome, Cost), Option<String>), Failure> {
        // The probe has read it. A device is not held while it is waited for.
        let (source, sizes) = self.guard.hold(self.sources(plan, &encode)).await?;
        let encode = encode.of_sizes(sizes);
        // Nor does who waits for a device lose the time.
        let waiting = Instant::now();
        let lease = self.guard.later_by(LEND_WAIT).hold(self.lease(&encode)).await?;
        let guard = self.guard.later_by(waiting.elapsed());
        let encode = match &lease {
            Some(lease) => encode.on(lease.on().clone()),
            None => encode,
        };
        let places = encode.on_device();
        let sets = lease.as_ref().filter(|_| work::joins_parts(plan)).map(|lease| {
            let device = lease.on().device.clone();
            Sets::new(self.farm.state.clone(), self.message.job.clone(), device, places.clone())
        });
        let uploads = Uploads::new(self.output.clone(), Storing::of(plan), self.token.clone(), encode.renditions);
        let mut uploads = uploads.with_sets(sets);
        let attempt = async {
            let (done, cost) = self.attempt((&encode.order, encode.urgency), &source, Sink::Media(&mut uploads)).await?;
            let renditions = uploads.finish().await?;
            match done {
                Done::Encoded(account) => Ok((Outcome::Encoded { renditions, account }, cost)),
                _ => Err(Failure::new(Code::Internal, "something else came of an encode")),
            }
        };
        let made = guard.hold(attempt).await;
        let device = lease.as_ref().map(|lease| lease.on().device.to_string());
        let made = match lease {
            Some(lease) => given_back(lease, &self.message.job, made, uploads.has_begun(&places)),
            None => made,
        };
        if made.is_err() {
            uploads.abandon().await;
        }
        Ok((made?, device))
    }

    /// What an encode reads: the job's source, or those that its edits name, one after the other; and their sizes.
    async fn sources(&self, plan: &Plan, encode: &work::Encode) -> Result<(Source, Vec<u64>), Failure> {
        let wanted = encode.order.sources();
        let Some(edit) = &plan.edit else {
            return Ok((self.source(&self.spec.source, plan.source.as_ref()).await?, Vec::new()));
        };
        let others = edit::others(&self.spec.edit).zip(&edit.others).map(|((_, _, spec), version)| (spec, version.as_ref()));
        let mut row = Vec::new();
        for (number, (spec, version)) in (0..).zip([(&self.spec.source, plan.source.as_ref())].into_iter().chain(others)) {
            row.push(if wanted.contains(&number) { self.source(spec, version).await? } else { Source::empty() });
        }
        let sizes = row.iter().map(Source::bytes).collect();
        Ok((Source::row(row), sizes))
    }

    async fn source(&self, spec: &SourceSpec, version: Option<&SourceVersion>) -> Result<Source, Failure> {
        Source::open(spec, self.farm.places(), Patience::Long).await?.check(version, spec)
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
            tracing::info!(%job, %task, %class, "no device that would do works, or none was free in time: the processor does it");
        }
        Ok(lent)
    }
}

/// Gives a device back after what was made of a job on it. A failure that the device may be to blame for becomes its own.
fn given_back<T>(lease: Lease, job: &JobId, made: Result<T, Failure>, has_begun: bool) -> Result<T, Failure> {
    let (ending, made) = match made {
        Ok(made) => (Ending::Done, Ok(made)),
        Err(failure) if is_the_devices(failure.code) => {
            let message = format!("{}: {}", lease.on().device, failure.message);
            let may_be_full = failure.code == Code::EncoderFailed && !has_begun;
            (Ending::Failed { job: job.clone(), may_be_full }, Err(Failure::new(Code::DeviceFailed, message)))
        }
        Err(failure) => (Ending::Neither, Err(failure)),
    };
    lease.end(ending);
    made
}

/// Whether a failure of this code may be one of the device that was used. The same is tried on the processor then, where the
/// source shows whether it was to blame. That the deadline passed may be for a source that comes slowly.
fn is_the_devices(code: Code) -> bool {
    match code {
        Code::EncoderFailed | Code::ChildCrashed | Code::ChildStalled | Code::MissingElement => true,
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
        | Code::DeadlineExceeded
        | Code::DeviceFailed
        | Code::Cancelled
        | Code::Interrupted
        | Code::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use farm::Class;
    use farm::broker::Broker;
    use farm::encoder::Extent;
    use farm::job::VideoCodec;
    use tokio_util::sync::CancellationToken;

    use crate::devices::Keeper;
    use crate::rack::Need;
    use crate::testing::device;

    /// What a failure becomes of a task that had a device with so many sessions and had begun, or not; whether the device is lent
    /// on as if nothing were, and how many sessions it is believed to bear.
    async fn after(code: Code, sessions: usize, has_begun: bool) -> (Code, bool, Option<u32>) {
        let keeper = Arc::new(Keeper::new(vec![device("/dev/stand-in0".as_ref())]));
        let (broker, stop) = (Broker::local(), CancellationToken::new());
        let work = async {
            let need = Need { codec: VideoCodec::H264, extent: Extent::of(640, 360) };
            keeper.ready(Class::Nvenc).await;
            let lease = keeper.lend(Class::Nvenc, &vec![need; sessions]).await.expect("it works");
            let job = JobId::try_from("j1".to_owned()).expect("a job id");
            let made = given_back(lease, &job, Err::<(), _>(Failure::new(code, "what there is to say")), has_begun);
            let is_lent_on = keeper.serves(Class::Nvenc);
            keeper.ready(Class::Nvenc).await;
            let again = keeper.lend(Class::Nvenc, &vec![need; sessions]).await.expect("it works again").on().sessions;
            (made.expect_err("failed").code, is_lent_on, (again < sessions as u32).then_some(again))
        };
        tokio::select! {
            after = work => after,
            () = keeper.keep(&broker, &stop, |_| std::future::ready(Ok(()))) => panic!("it is kept until it is told to stop"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_put_aside_for_what_may_be_its_fault_and_believed_full_where_no_encoder_starts() {
        for code in [Code::EncoderFailed, Code::ChildCrashed, Code::ChildStalled, Code::MissingElement] {
            let limit = (code == Code::EncoderFailed).then_some(2);
            assert_eq!(after(code, 3, false).await, (Code::DeviceFailed, false, limit), "{code}");
            assert_eq!(after(code, 3, true).await, (Code::DeviceFailed, false, None), "{code}");
            assert_eq!(after(code, 1, false).await, (Code::DeviceFailed, false, None), "{code}");
        }
        for code in [Code::DeadlineExceeded, Code::Internal, Code::Undecodable, Code::StorageFull, Code::DeviceFailed] {
            assert_eq!(after(code, 3, false).await, (code, true, None), "{code}");
        }
    }
}
