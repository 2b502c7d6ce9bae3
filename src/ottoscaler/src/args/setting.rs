//! A setting as it is declared: its names, and what it takes.
use clap::{Arg, Command};

/// Returns what `command` declares, without its help, version and commands.
pub(super) fn all(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| arg.get_env().is_some())
}

/// Returns the environment variable, which is the setting's name in the README.
pub(super) fn name(arg: &Arg) -> String {
    arg.get_id().as_str().to_uppercase()
}

/// Returns the id of the setting with that name.
pub(super) fn id(name: &str) -> String {
    name.to_lowercase()
}

/// Returns what the setting takes, in words.
pub(super) fn takes(arg: &Arg) -> String {
    let choices = arg.get_possible_values();
    let choices: Vec<&str> = choices.iter().map(|choice| choice.get_name()).collect();
    match choices.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => arg.get_value_names().unwrap_or_default().join(" "),
    }
}
