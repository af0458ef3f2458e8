//! What S3's answers mean.

use std::error::Error;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::storage::StorageError;

/// Longest text of a server that is passed on, in characters.
const SAID_CHARS_MAX: usize = 200;

/// What an answer other than success means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// No object under that key.
    NoObject,
    /// No such bucket.
    NoBucket,
    /// No such upload: it was finished or aborted before.
    NoUpload,
    /// Not allowed, or not to these credentials.
    Denied,
    /// No space left.
    Full,
    /// The condition of the request does not hold.
    ConditionFails,
    /// Somebody writes the same key at this moment.
    Conflict,
    /// The object ends before the range.
    BeyondTheEnd,
    /// The parts of an upload do not make an object, to this server's mind.
    PartsUnfit,
    /// The server does not know how to do that.
    Unsupported,
    /// Anything else: trying again may help.
    Trouble,
}

/// The meaning of an HTTP status and the error code in its body, where there is one. Servers agree more on codes than on
/// statuses; answers to HEAD have no code.
fn meaning(status: u16, code: Option<&str>) -> Meaning {
    match (status, code) {
        (_, Some("NoSuchBucket")) => Meaning::NoBucket,
        (_, Some("NoSuchUpload")) => Meaning::NoUpload,
        // The first is what R2 says of parts that differ in size.
        (_, Some("InvalidPart" | "EntityTooSmall")) => Meaning::PartsUnfit,
        (_, Some("QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull")) | (507, _) => Meaning::Full,
        (_, Some("NotImplemented" | "MethodNotAllowed" | "UnsupportedOperation")) | (405 | 501, _) => Meaning::Unsupported,
        (_, Some("ConditionalRequestConflict" | "OperationAborted")) | (409, _) => Meaning::Conflict,
        // A clock that is off, which the SDK takes into account the next time.
        (_, Some("RequestTimeTooSkewed" | "RequestTimeout")) => Meaning::Trouble,
        (401 | 403, _) => Meaning::Denied,
        (404, _) => Meaning::NoObject,
        (412, _) => Meaning::ConditionFails,
        (416, _) => Meaning::BeyondTheEnd,
        _ => Meaning::Trouble,
    }
}

/// The meaning of what the SDK reports.
pub(super) fn meaning_of<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Meaning {
    let status = error.raw_response().map(|raw| raw.status().as_u16());
    status.map_or(Meaning::Trouble, |status| meaning(status, error.code()))
}

/// What the SDK reports of `place` (an object as `s3://bucket/key`), as one of ours. Holds no header and no query, hence no
/// secret.
pub(super) fn failed<E: ProvideErrorMetadata + Error + 'static>(place: &str, error: &SdkError<E>) -> StorageError {
    let place = place.to_owned();
    let why = why(error);
    match meaning_of(error) {
        Meaning::NoObject => StorageError::NotFound(place),
        Meaning::NoBucket => StorageError::Denied(format!("{place}: there is no such bucket")),
        Meaning::Denied => StorageError::Denied(format!("{place}: {why}")),
        Meaning::Full => StorageError::Full(place),
        Meaning::NoUpload
        | Meaning::ConditionFails
        | Meaning::Conflict
        | Meaning::BeyondTheEnd
        | Meaning::PartsUnfit
        | Meaning::Unsupported
        | Meaning::Trouble => StorageError::Unavailable { key: place, why },
    }
}

/// What went wrong, in one line.
fn why<E: ProvideErrorMetadata + Error + 'static>(error: &SdkError<E>) -> String {
    match error {
        SdkError::TimeoutError(_) => "the server does not answer in time".to_owned(),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => "the server does not answer in time".to_owned(),
        SdkError::DispatchFailure(failure) => {
            let cause = failure.as_connector_error().map(|error| innermost(error));
            format!("the server cannot be reached: {}", cause.unwrap_or_default())
        }
        SdkError::ConstructionFailure(_) => format!("the request cannot be made: {}", innermost(error)),
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            let status = error.raw_response().map(|raw| raw.status().as_u16()).unwrap_or_default();
            let said: String = error.message().unwrap_or_default().chars().take(SAID_CHARS_MAX).collect();
            let words = [Some(status.to_string()), error.code().map(str::to_owned), Some(said)];
            let words: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
            format!("the server answers {}", words.join(" "))
        }
        _ => innermost(error),
    }
}

/// The cause of all: the outer ones only hint at it.
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_outweigh_statuses_and_statuses_speak_for_themselves() {
        for (status, code, wanted) in [
            (404, Some("NoSuchKey"), Meaning::NoObject),
            (404, None, Meaning::NoObject),
            (404, Some("NoSuchBucket"), Meaning::NoBucket),
            (404, Some("NoSuchUpload"), Meaning::NoUpload),
            (403, Some("AccessDenied"), Meaning::Denied),
            (403, Some("SignatureDoesNotMatch"), Meaning::Denied),
            (403, Some("QuotaExceeded"), Meaning::Full),
            (403, Some("RequestTimeTooSkewed"), Meaning::Trouble),
            (507, None, Meaning::Full),
            (412, Some("PreconditionFailed"), Meaning::ConditionFails),
            (409, Some("ConditionalRequestConflict"), Meaning::Conflict),
            (416, Some("InvalidRange"), Meaning::BeyondTheEnd),
            (501, Some("NotImplemented"), Meaning::Unsupported),
            (400, Some("NotImplemented"), Meaning::Unsupported),
            (503, Some("SlowDown"), Meaning::Trouble),
            (500, None, Meaning::Trouble),
            (400, Some("InvalidPart"), Meaning::PartsUnfit),
            (400, Some("InvalidPartOrder"), Meaning::Trouble),
        ] {
            assert_eq!(meaning(status, code), wanted, "{status} {code:?}");
        }
    }
}
