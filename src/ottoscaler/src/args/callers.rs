//! The settings of who may call, and of how callers prove who they are.
use std::path::PathBuf;

use clap::{ArgAction, ValueEnum};

use super::Invalid;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Callers")]
pub(super) struct CallerArgs {
    /// How callers prove who they are; none: whoever reaches the port may do everything.
    #[arg(long, env, default_value = "none", value_enum)]
    callers: CallerMode,
    /// File with the callers of CALLERS=static, which is followed (docs/callers.md).
    #[arg(long, env, value_name = "a path")]
    callers_file: Option<PathBuf>,
    /// Audience of the tokens of CALLERS=kubernetes.
    #[arg(long, env, default_value = "ottoscaler", value_name = "an audience")]
    caller_audience: String,
    /// Takes tokens over connections without TLS, where others may read them.
    #[arg(long, env, action = ArgAction::Set, default_value = "false")]
    allow_plaintext_tokens: bool,
}

/// How callers prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CallerMode {
    /// They do not: anyone may do everything.
    None,
    /// By a token or a certificate that a file names.
    Static,
    /// By a token that the API server knows.
    Kubernetes,
}

impl CallerMode {
    /// Returns the value of CALLERS.
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Static => "static",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// The settings of who may call, and of how callers prove who they are.
#[derive(Debug, Clone)]
pub struct CallerOptions {
    pub mode: CallerMode,
    /// The file of [`CallerMode::Static`], which is given then.
    pub file: Option<PathBuf>,
    /// The audience of tokens for [`CallerMode::Kubernetes`].
    pub audience: String,
    /// The name that the certificates of the replicas bear.
    pub replicas_name: Option<String>,
}

impl CallerArgs {
    /// `has_tls`: the gRPC port takes connections with TLS only. `replicas_name` is the name in the
    /// certificates of the replicas.
    pub(super) fn options(
        self,
        has_tls: bool,
        replicas_name: Option<String>,
    ) -> Result<CallerOptions, Invalid> {
        let Self {
            callers: mode,
            callers_file,
            caller_audience,
            allow_plaintext_tokens,
        } = self;
        if mode != CallerMode::None && !has_tls && !allow_plaintext_tokens {
            let takes = "safe without TLS: others could read the tokens. Set TLS_CERT_FILE and its \
                         like, or take the risk with ALLOW_PLAINTEXT_TOKENS=true";
            return Err(Invalid::new("CALLERS", mode.name(), takes));
        }
        if mode == CallerMode::Static && callers_file.is_none() {
            let takes = "complete without CALLERS_FILE, the path of the file with the callers";
            return Err(Invalid::new("CALLERS", mode.name(), takes));
        }
        Ok(CallerOptions {
            mode,
            file: callers_file,
            audience: caller_audience,
            replicas_name,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used)]
    use super::*;
    use crate::args::Options;

    fn with(pairs: &[(&str, &str)]) -> Result<CallerOptions, Invalid> {
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        Options::from_lookup(&|name| value(name).map(str::to_owned)).map(|c| c.callers)
    }

    #[test]
    fn tokens_over_plaintext_take_a_setting_that_says_so() {
        for mode in ["static", "kubernetes"] {
            let settings = [("CALLERS", mode), ("CALLERS_FILE", "/f")];
            let refused = with(&settings).unwrap_err().to_string();
            assert!(refused.contains("ALLOW_PLAINTEXT_TOKENS=true"), "{refused}");
            let risky = [settings[0], settings[1], ("ALLOW_PLAINTEXT_TOKENS", "true")];
            assert!(with(&risky).is_ok());
        }
        assert_eq!(with(&[]).unwrap().mode, CallerMode::None);
    }

    #[test]
    fn static_callers_take_a_file() {
        let settings = [("CALLERS", "static"), ("ALLOW_PLAINTEXT_TOKENS", "true")];
        let refused = with(&settings).unwrap_err().to_string();
        assert!(refused.contains("CALLERS_FILE"), "{refused}");
    }
}
