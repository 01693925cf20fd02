//! What a gRPC status says.

use tonic::Status;

/// What was the matter: tonic tells "transport error" and hides what it was.
pub(super) fn said(status: &Status) -> String {
    let mut said = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        said = error.to_string();
        source = error.source();
    }
    said
}
