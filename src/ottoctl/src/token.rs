//! The bearer token of the caller.
use std::path::PathBuf;

use anyhow::Context as _;
use tonic::metadata::AsciiMetadataValue;

/// A `Token` says where the token of the caller is.
pub(super) enum Token {
    None,
    Text(String),
    /// A file, in which the kubelet replaces the token before it expires.
    File(PathBuf),
}

impl Token {
    /// A file is taken before a text, so that a variable does not hide the flag.
    pub(super) fn new(text: Option<String>, file: Option<PathBuf>) -> Self {
        match (file, text) {
            (Some(file), _) => Self::File(file),
            (None, Some(text)) if !text.trim().is_empty() => Self::Text(text),
            (None, _) => Self::None,
        }
    }

    /// Returns the value of the metadata key `authorization`, or none without a token.
    ///
    /// # Errors
    /// Returns an error, which quotes no token, if the file cannot be read or the token cannot be
    /// sent.
    pub(super) fn authorization(&self) -> anyhow::Result<Option<AsciiMetadataValue>> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Text(text) => text.clone(),
            Self::File(path) => std::fs::read_to_string(path)
                .with_context(|| format!("the token file {} cannot be read", path.display()))?,
        };
        let text = text.trim();
        anyhow::ensure!(!text.is_empty(), "the token is empty");
        let value = format!("Bearer {text}").parse::<AsciiMetadataValue>();
        let mut value = value
            .ok()
            .context("the token has characters that no token has")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_read_anew_and_never_shown() {
        let path = std::env::temp_dir().join(format!("ottoctl-token-{}", std::process::id()));
        let token = Token::new(Some("other".to_owned()), Some(path.clone()));
        for text in ["s3cr3t\n", "s3cr3t2"] {
            std::fs::write(&path, text).unwrap();
            let value = token.authorization().unwrap().unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", text.trim()));
            assert!(!format!("{value:?}").contains("s3cr3t"));
        }
        std::fs::remove_file(&path).unwrap();
        let missing = token.authorization().unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
        let strange = Token::new(Some("s3cr3t\u{7f}".to_owned()), None);
        let error = format!("{:#}", strange.authorization().unwrap_err());
        assert!(!error.contains("s3cr3t"), "{error}");
        assert!(
            Token::new(Some(String::new()), None)
                .authorization()
                .unwrap()
                .is_none()
        );
    }
}
