//! Errors: on the wire with all three axes, so that the caller gets the error that the engine gave.

use std::time::Duration;

use coact_core::{Error, ErrorKind, Retry, error::Effect};
use tonic::{Code, Status, metadata::AsciiMetadataValue};

use crate::wire::coact_v1::Failure;

const KIND: &str = "coact-kind";
const EFFECT: &str = "coact-effect";
const RETRY: &str = "coact-retry-ms";
/// What the text of an error says beside its effect, which travels by itself.
const MAY_HAVE: &str = "; it may have taken effect";

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let effect_unknown = error.effect() == Effect::Unknown;
        let message = error.to_string();
        Self {
            kind: error.kind().name().to_owned(),
            effect_unknown,
            retry_ms: match error.retry() {
                Retry::Never => None,
                Retry::After(pause) => Some(super::to_ms(pause)),
            },
            message: if effect_unknown { message.replacen(MAY_HAVE, "", 1) } else { message },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        // A kind of a later version is nothing that a caller could act on.
        let kind = ErrorKind::from_name(&failure.kind).unwrap_or(ErrorKind::Internal);
        let retry = failure.retry_ms.map_or(Retry::Never, |ms| Retry::After(Duration::from_millis(ms)));
        let error = Self::new(kind, failure.message).with_retry(retry);
        if failure.effect_unknown { error.effect_unknown() } else { error }
    }
}

/// The error as a gRPC status, for a unary call.
pub fn status(error: &Error) -> Status {
    let failure = Failure::from(error);
    let mut status = Status::new(code(error.kind()), failure.message);
    let metadata = status.metadata_mut();
    metadata.insert(KIND, AsciiMetadataValue::from_static(error.kind().name()));
    metadata.insert(EFFECT, AsciiMetadataValue::from_static(error.effect().name()));
    if let Some(ms) = failure.retry_ms {
        metadata.insert(RETRY, ms.into());
    }
    status
}

/// The error that a status carries; `None` if it was not made by [`status`].
pub fn error(status: &Status) -> Option<Error> {
    let text = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
    Some(Error::from(Failure {
        kind: text(KIND)?.to_owned(),
        effect_unknown: text(EFFECT) == Some(Effect::Unknown.name()),
        retry_ms: text(RETRY).and_then(|ms| ms.parse().ok()),
        message: status.message().to_owned(),
    }))
}

/// For clients that know gRPC only.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Fenced => Code::FailedPrecondition,
        ErrorKind::Compacted => Code::OutOfRange,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable | ErrorKind::Closed => Code::Unavailable,
        ErrorKind::Corrupt => Code::DataLoss,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_comes_back_with_its_three_axes() {
        for kind in ErrorKind::ALL {
            for retry in [Retry::Never, Retry::After(Duration::from_millis(250))] {
                let plain = Error::new(kind, "it did not work").with_retry(retry).with("topic", "orders");
                for sent in [plain.clone(), plain.effect_unknown()] {
                    let over_unary = error(&status(&sent)).expect("it says so");
                    for got in [over_unary, Error::from(Failure::from(&sent))] {
                        assert_eq!((got.kind(), got.retry(), got.effect()), (kind, retry, sent.effect()));
                        assert_eq!(got.to_string(), sent.to_string());
                    }
                }
            }
        }
    }

    #[test]
    fn a_status_of_others_carries_no_error() {
        assert!(error(&Status::unavailable("the connection broke")).is_none());
    }
}
