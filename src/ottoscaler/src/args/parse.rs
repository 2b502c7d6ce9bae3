//! Arguments and environment → what the program is to do.
//!
//! The arguments are parsed twice. The first time they are text, and tell which flags are
//! set. The second time each setting that is set, by a flag or else by its variable, is
//! given as a flag and is checked.
use std::{collections::HashMap, ffi::OsString};

use clap::{
    ArgMatches, Command, FromArgMatches as _,
    builder::{OsStr, Resettable, StringValueParser},
    error::ErrorKind,
};

use super::{
    Args, Invalid, Options, declared,
    environment::{Lookup, Variable, ignored, variable},
    setting,
};

/// What the program is to do.
#[derive(Debug)]
pub enum Invocation {
    Serve(Box<Options>),
    /// Print the CustomResourceDefinition.
    Crd,
    /// Print this text.
    Show(String),
}

/// Parses arguments (without the program's name) and, for settings without a flag, the
/// environment.
///
/// # Errors
/// The first flag or value that no setting takes, or settings that do not go together.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: Lookup<'_>,
) -> Result<Invocation, Invalid> {
    let declared = declared();
    let as_text = |arg: clap::Arg| {
        arg.value_parser(StringValueParser::new())
            .default_value(Resettable::<OsStr>::Reset)
    };
    let matches = match parser(&declared)
        .mut_args(as_text)
        .try_get_matches_from(args)
    {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp => Ok(Invocation::Show(help(declared))),
                ErrorKind::DisplayVersion => Ok(Invocation::Show(declared.render_version())),
                _ => Err(Invalid::of(&error, &declared)),
            };
        }
    };
    if matches.subcommand_name().is_some() {
        return Ok(Invocation::Crd);
    }
    let flags: HashMap<&str, &String> = setting::all(&declared)
        .map(|arg| arg.get_id().as_str())
        .filter_map(|id| Some((id, matches.get_one(id)?)))
        .collect();
    let options = options(&declared, &flags, environment)?;
    Ok(Invocation::Serve(Box::new(options)))
}

/// The declarations as a parser that takes neither a program's name nor the process's
/// environment.
fn parser(declared: &Command) -> Command {
    let command = declared.clone().no_binary_name(true);
    command.mut_args(|arg| arg.env(Resettable::<OsStr>::Reset))
}

fn help(mut declared: Command) -> String {
    declared.render_help().to_string()
}

fn options(
    declared: &Command,
    flags: &HashMap<&str, &String>,
    environment: Lookup<'_>,
) -> Result<Options, Invalid> {
    let (mut set, mut warnings) = (Vec::new(), Vec::new());
    for arg in setting::all(declared) {
        let (id, name) = (arg.get_id().as_str(), setting::name(arg));
        let value = match (flags.get(id), variable(environment, &name)) {
            (Some(value), _) => (*value).clone(),
            (None, Variable::Set(value)) => value,
            (None, Variable::ServiceLink) => {
                warnings.push(ignored(&name));
                continue;
            }
            (None, Variable::Absent) => continue,
        };
        if !value.is_empty() {
            set.push(format!("--{}={value}", id.replace('_', "-")));
        }
    }
    let matches = parser(declared)
        .try_get_matches_from(set)
        .map_err(|error| Invalid::of(&error, declared))?;
    let args = Args::from_arg_matches(&matches).map_err(|error| Invalid::of(&error, declared))?;
    checked(args, &matches, environment("HOSTNAME"), warnings)
}

/// Checks what no setting shows by itself.
fn checked(
    args: Args,
    set: &ArgMatches,
    host: Option<String>,
    mut warnings: Vec<String>,
) -> Result<Options, Invalid> {
    let Args {
        serving,
        tls: tls_args,
        callers,
        replica,
        lease,
        limits,
        worker,
        logs,
        telemetry,
    } = args;
    let handler = logs.options();
    let tls = tls_args.serving()?;
    warnings.splice(0..0, telemetry.warning());
    Ok(Options {
        namespace: replica.namespace.clone(),
        callers: callers.options(tls.is_some(), tls_args.replicas_name())?,
        lease: lease.options()?,
        worker: worker.policy(set, replica.service_account.clone(), replica.own_secrets())?,
        replica: replica.options(host, serving.grpc_port),
        serve: serving,
        paused: limits.paused,
        limits: limits.options(handler.host.is_some()),
        handler_tls: tls_args.handler(handler.host.as_deref(), tls.as_ref())?,
        handler,
        tls,
        telemetry,
        warnings,
    })
}

#[cfg(test)]
impl Options {
    /// Reads every setting from `environment` for tests.
    pub(crate) fn from_lookup(environment: Lookup<'_>) -> Result<Self, Invalid> {
        options(&declared(), &HashMap::new(), environment)
    }
}
