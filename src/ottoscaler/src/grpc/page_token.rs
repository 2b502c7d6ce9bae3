//! How clients ask for pages: by a size, and by the token of the page before.
//!
//! A token is an opaque text that every replica takes.
//!
//! A token holds the last position of a page, as text, and the hash of the filters of its request.
//! It is refused for a request with other filters, whose pages would not continue that page.
use base64::prelude::{BASE64_URL_SAFE_NO_PAD as BASE64, Engine as _};
use tonic::Status;
use xxhash_rust::xxh3::xxh3_64;

use super::errors;

/// Returns the page size that a client asks for; None if it leaves the size to the server.
pub(super) fn size(page_size: i32) -> Result<Option<usize>, Status> {
    let size = usize::try_from(page_size);
    let size = size.map_err(|_| errors::invalid("page_size", "must not be negative"))?;
    Ok((size > 0).then_some(size))
}

/// Returns the position of a request's token, if it has one. `parse` reads it.
pub(super) fn position<P>(
    token: &str,
    parse: impl FnOnce(&str) -> Option<P>,
) -> Result<Option<P>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let position = parse(token).ok_or_else(|| {
        let reason = "must be the next_page_token of a response to the same filters";
        errors::invalid("page_token", reason)
    });
    position.map(Some)
}

/// The hexadecimal digits of a hash.
const HASH_LEN: usize = 16;

/// Returns the token of a position.
pub(super) fn encode(filters: &[&str], position: &str) -> String {
    BASE64.encode(format!("{}{position}", hash(filters)))
}

/// Returns the position of a token. Returns None for a text that is no token, and for the token of
/// other filters.
pub(super) fn decode(filters: &[&str], token: &str) -> Option<String> {
    let text = String::from_utf8(BASE64.decode(token).ok()?).ok()?;
    let (found, position) = text.split_at_checked(HASH_LEN)?;
    (found == hash(filters)).then(|| position.to_owned())
}

fn hash(filters: &[&str]) -> String {
    // The lengths keep the filters apart.
    let text: String = filters.iter().map(|f| format!("{}:{f}", f.len())).collect();
    format!("{:0HASH_LEN$x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_its_filters_alone_and_nothing_else_is_one() {
        let token = encode(&["a", "b", ""], "position");
        let position = decode(&["a", "b", ""], &token);
        assert_eq!(position.as_deref(), Some("position"));
        for other in [
            ["a", "", "b"],
            ["ab", "", ""],
            ["", "a", "b"],
            ["a", "b", "c"],
        ] {
            assert_eq!(decode(&other, &token), None);
        }
        let long = "A".repeat(10_000);
        for text in ["", "=", "AAAA", "\u{fffd}", &long] {
            assert_eq!(decode(&["a", "b", ""], text), None, "{text}");
        }
    }
}
