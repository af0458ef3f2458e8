//! Why something did not work: one code, one sentence, and whose fault it is.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong, as a word that scripts can test. The texts around it may change, these do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The bytes are not audio or video in any known container.
    NotMedia,
    /// A media container without any stream that could be decoded.
    NoDecodableStream,
    /// A stream in a codec for which there is no decoder; the message names it.
    UnsupportedCodec,
    /// Media data ends before the container says it should, and nothing usable is there.
    Truncated,
    /// A decoder exists but the stream does not decode.
    Undecodable,
    /// The source cannot be opened or read: missing file, HTTP error, permission.
    SourceUnreadable,
    /// The source changed while it was being read.
    SourceChanged,
    /// Larger, longer or more numerous than the limits on input allow.
    LimitExceeded,
    /// The job message or a setting is not valid.
    InvalidRequest,
    /// The output or state cannot be written.
    StorageUnwritable,
    /// No space is left on the storage.
    StorageFull,
    /// The storage does not answer or misbehaves.
    StorageUnavailable,
    /// The broker does not answer or misbehaves.
    BrokerUnavailable,
    /// The farm's scheduler does not answer.
    SchedulerUnavailable,
    /// A GStreamer element is not installed; the message names the package.
    MissingElement,
    /// The kernel cannot wall children in as it is required.
    SandboxMissing,
    /// The child process of an attempt ended without a result.
    ChildCrashed,
    /// The child process of an attempt made no progress for too long.
    ChildStalled,
    /// An attempt took longer than its deadline.
    DeadlineExceeded,
    /// An encoder failed on frames that decoded well.
    EncoderFailed,
    /// A device failed that encodes; what it was at is made on the processor.
    DeviceFailed,
    /// The job was cancelled.
    Cancelled,
    /// The process was asked to stop.
    Interrupted,
    /// A mistake in Shoal itself.
    Internal,
}

/// On whose side a failure lies: it decides exit codes, retries and alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The source: trying again gives the same.
    Source,
    /// What the user asked for: never started.
    Request,
    /// The machine or a service: trying again later or elsewhere may help.
    Environment,
    /// Nobody: it was asked to stop.
    Interruption,
}

impl Code {
    /// On whose side failures of this code lie.
    pub fn fault(self) -> Fault {
        match self {
            Self::NotMedia
            | Self::NoDecodableStream
            | Self::UnsupportedCodec
            | Self::Truncated
            | Self::Undecodable
            | Self::SourceUnreadable
            | Self::SourceChanged
            | Self::LimitExceeded
            | Self::ChildCrashed
            | Self::ChildStalled
            | Self::DeadlineExceeded
            | Self::EncoderFailed
            | Self::DeviceFailed
            | Self::Cancelled => Fault::Source,
            Self::InvalidRequest => Fault::Request,
            Self::StorageUnwritable
            | Self::StorageFull
            | Self::StorageUnavailable
            | Self::BrokerUnavailable
            | Self::SchedulerUnavailable
            | Self::MissingElement
            | Self::SandboxMissing
            | Self::Internal => Fault::Environment,
            Self::Interrupted => Fault::Interruption,
        }
    }

    /// Whether another attempt of the same task may end differently.
    pub fn may_pass_next_time(self) -> bool {
        match self {
            Self::ChildCrashed
            | Self::ChildStalled
            | Self::DeadlineExceeded
            | Self::EncoderFailed
            | Self::DeviceFailed
            | Self::SourceUnreadable
            | Self::StorageUnavailable
            | Self::BrokerUnavailable
            | Self::SchedulerUnavailable
            | Self::Internal => true,
            Self::NotMedia
            | Self::NoDecodableStream
            | Self::UnsupportedCodec
            | Self::Truncated
            | Self::Undecodable
            | Self::SourceChanged
            | Self::LimitExceeded
            | Self::InvalidRequest
            | Self::StorageUnwritable
            | Self::StorageFull
            | Self::MissingElement
            | Self::SandboxMissing
            | Self::Cancelled
            | Self::Interrupted => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A failure as it is stored, sent and shown: one line that says what failed, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong, for programs.
    pub code: Code,
    /// What went wrong, for people: one line of at most [`Failure::MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// The stream of the source it concerns, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Whether it is known that trying again gives the same, though failures of this code often pass: a source that its
    /// server says is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lasting: bool,
}

impl Failure {
    /// Longest message in bytes; longer ones are cut. Messages may come from a hostile source by way of a decoder.
    pub const MESSAGE_BYTES_MAX: usize = 1024;

    /// A failure with this code and message. Control characters become spaces, so it is always one line.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let mut line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line.len() > Self::MESSAGE_BYTES_MAX {
            let mut end = Self::MESSAGE_BYTES_MAX;
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            line.truncate(end);
        }
        Self { code, message: line, stream: None, lasting: false }
    }

    /// The same failure, known to stay.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self { lasting: true, ..self }
    }

    /// Whether another attempt of the same task may end differently.
    pub fn may_pass_next_time(&self) -> bool {
        !self.lasting && self.code.may_pass_next_time()
    }

    /// The same failure, naming the stream it concerns.
    #[must_use]
    pub fn on_stream(mut self, stream: impl Into<String>) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// The same failure, whose message says by this name what it is about, if it does not yet.
    #[must_use]
    pub fn about(self, name: &str) -> Self {
        if self.message.contains(name) {
            return self;
        }
        Self { message: Self::new(self.code, format!("{name}: {}", self.message)).message, ..self }
    }
}
