//! The message of a failed API call, for conditions, Events and answers to callers.
use std::fmt;

use super::object;

/// The maximum length of a message of the API server, in bytes; the rest is cut off. Its beginning
/// says what is wrong; the rest may be a whole object.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// An `ErrorMessage` displays a failed call with the API server's message.
///
/// It contains neither a body that is not a Kubernetes `Status` nor what serde quotes of an
/// object, because both may hold what a request carried. Logs use [`super::Loggable`], which
/// leaves out the API server's message too.
#[derive(Debug, Clone, Copy)]
pub struct ErrorMessage<'a>(pub &'a kube::Error);

impl fmt::Display for ErrorMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // A proxy before the API server answered; the message is its whole page.
            kube::Error::Api(status) if status.reason == "Failed to parse error data" => {
                write!(f, "HTTP status {}", status.code)
            }
            kube::Error::Api(status) if status.message.is_empty() => {
                write!(f, "HTTP status {}", status.code)
            }
            kube::Error::Api(status) => f.write_str(clip(&status.message)),
            kube::Error::SerdeError(error) => {
                write!(
                    f,
                    "the answer cannot be decoded ({})",
                    object::expectation(error)
                )
            }
            error => error.fmt(f),
        }
    }
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_body_is_told() {
        let page = kube::core::Status::failure("<html>hunter2", "Failed to parse error data");
        let page = kube::Error::Api(Box::new(page.with_code(502)));
        assert_eq!(ErrorMessage(&page).to_string(), "HTTP status 502");
        let number = serde_json::from_str::<u32>("\"hunter2, expected\"").map(drop);
        let message =
            number.map_err(|error| ErrorMessage(&kube::Error::SerdeError(error)).to_string());
        assert_eq!(
            message,
            Err("the answer cannot be decoded (expected u32)".to_owned())
        );
        let long = kube::core::Status::failure(&"é".repeat(5_000), "Invalid");
        let long = kube::Error::Api(Box::new(long));
        assert_eq!(ErrorMessage(&long).to_string().len(), MAX_MESSAGE_BYTES);
    }
}
