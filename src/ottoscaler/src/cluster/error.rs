//! What may be told of a failed call: never a body of the API server, which may hold what
//! a request carried.
use std::fmt;

use super::object;

/// Bytes of an API server's own words that are told.
const MOST: usize = 1_024;

/// A failed call, as it may be logged and answered.
#[derive(Debug, Clone, Copy)]
pub struct Brief<'a>(pub &'a kube::Error);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Not the API server's words, but of something before it: all of its page.
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
                    object::reason(error)
                )
            }
            error => error.fmt(f),
        }
    }
}

fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MOST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_body_is_told() {
        let page = kube::core::Status::failure("<html>hunter2", "Failed to parse error data");
        let page = kube::Error::Api(Box::new(page.with_code(502)));
        assert_eq!(Brief(&page).to_string(), "HTTP status 502");
        let number = serde_json::from_str::<u32>("\"hunter2, expected\"").map(drop);
        let told = number.map_err(|error| Brief(&kube::Error::SerdeError(error)).to_string());
        assert_eq!(
            told,
            Err("the answer cannot be decoded (expected u32)".to_owned())
        );
        let long = kube::core::Status::failure(&"é".repeat(5_000), "Invalid");
        let long = kube::Error::Api(Box::new(long));
        assert_eq!(Brief(&long).to_string().len(), MOST);
    }
}
