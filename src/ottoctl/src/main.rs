//! `ottoctl`: asks any replica, and shows the answer.
//!
//! Exits 0 when all went well, 1 when a watched worker failed, 64 + the gRPC code
//! when the call did (as grpcurl does), 141 when whoever read the output has gone.
mod client;
mod logs;
mod render;
mod watch;

use std::{io, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use api::{ScaleRequest, ShowLogsRequest, WorkerStatusRequest};

use client::Client;

/// A week: what is longer is no deadline, and some of it no time that the system knows.
const MAX_TIMEOUT: u64 = 7 * 24 * 3_600;

/// Commands Ottoscaler, which runs CI/CD workers as pods.
#[derive(Debug, Parser)]
#[command(name = "ottoctl", version)]
struct Args {
    /// Any replica, or the Service.
    #[arg(
        long,
        env = "OTTOSCALER_SERVER",
        default_value = "127.0.0.1:9090",
        global = true
    )]
    server: String,
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
    /// For the whole call, in seconds; of a stream, for it to begin, and again after it broke.
    #[arg(long, default_value_t = 30, global = true, value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT))]
    timeout: u64,
    /// W3C trace context to join; made up if not given.
    #[arg(long, env = "TRACEPARENT", global = true)]
    traceparent: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run workers for a task.
    ScaleUp {
        task: String,
        #[arg(short = 'n', long, default_value_t = 1)]
        workers: i32,
        #[arg(long, default_value = "")]
        repository: String,
        #[arg(long, default_value = "")]
        commit: String,
        /// Environment of the workers; may be repeated.
        #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = pair)]
        env: Vec<(String, String)>,
        /// The same on a repeat of the call.
        #[arg(long)]
        request_id: Option<String>,
        /// Wait until every worker has ended.
        #[arg(short, long)]
        watch: bool,
    },
    /// Lower a task to so many workers.
    ScaleDown {
        task: String,
        #[arg(short = 'n', long)]
        workers: i32,
    },
    /// Show workers.
    Status {
        task: Option<String>,
        /// pending, running, succeeded or failed.
        #[arg(long, default_value = "")]
        state: String,
        #[arg(long, default_value = "")]
        pod: String,
        /// Go on showing changes.
        #[arg(short, long)]
        watch: bool,
    },
    /// Show what a task's workers print, from their first line.
    Logs {
        task: String,
        /// Until the task has ended.
        #[arg(short, long)]
        follow: bool,
        /// Of one worker.
        #[arg(long, default_value = "")]
        pod: String,
    },
    /// End a task for good.
    Cancel { task: String },
    /// Start no more workers, for maintenance: work is taken and waits.
    Pause {
        /// Told to whoever waits.
        #[arg(default_value = "")]
        reason: String,
    },
    /// End the pause.
    Resume,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What went wrong.
#[derive(Debug)]
enum Failure {
    Call(Box<tonic::Status>),
    /// Of the workers that were watched, this many.
    Workers(usize),
    /// Standard output was not written.
    Output(io::Error),
    Other(anyhow::Error),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Args::parse()).await
}

/// Runs one command.
async fn run(args: Args) -> ExitCode {
    match command(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Workers(n)) => {
            output::note(format_args!("ottoctl: {n} worker(s) failed\n"));
            ExitCode::from(1)
        }
        Err(Failure::Output(error)) if output::reader_is_gone(&error) => output::gone(),
        Err(Failure::Output(error)) => {
            output::note(format_args!("ottoctl: standard output: {error}\n"));
            ExitCode::from(2)
        }
        Err(Failure::Other(error)) => {
            output::note(format_args!("ottoctl: {error:#}\n"));
            ExitCode::from(2)
        }
        Err(Failure::Call(status)) => {
            output::note(format_args!("{}", render::error(&status)));
            ExitCode::from(64 + u8::try_from(i32::from(status.code())).unwrap_or(2))
        }
    }
}

async fn command(args: Args) -> Result<(), Failure> {
    let Args {
        server,
        output,
        timeout,
        traceparent,
        command,
    } = args;
    let client = Client::new(&server, Duration::from_secs(timeout), traceparent)?;
    match command {
        Command::ScaleUp {
            task,
            workers,
            repository,
            commit,
            env,
            request_id,
            watch,
        } => {
            let request = ScaleRequest {
                task_id: task.clone(),
                repository,
                commit_sha: commit,
                worker_count: workers,
                build_config: env.into_iter().collect(),
                triggered_by: "ottoctl".to_owned(),
                ..ScaleRequest::default()
            };
            let response = client.scale_up(request, request_id).await?;
            render::scaled(&response, client.trace_id(), output)?;
            if watch {
                return watch::until_done(&client, &task, output).await;
            }
        }
        Command::ScaleDown { task, workers } => down(&client, task, workers, output).await?,
        Command::Cancel { task } => down(&client, task, 0, output).await?,
        Command::Logs { task, follow, pod } => {
            let request = ShowLogsRequest {
                task_id: task,
                worker_pod_name: pod,
                follow,
            };
            logs::show(&client, request, output).await?;
        }
        Command::Pause { reason } => {
            render::pause(&client.pause(Some(reason)).await?, output)?;
        }
        Command::Resume => render::pause(&client.pause(None).await?, output)?,
        Command::Status {
            task,
            state,
            pod,
            watch,
        } => {
            let request = WorkerStatusRequest {
                task_id: task.unwrap_or_default(),
                worker_pod_name: pod,
                status_filter: state,
            };
            if watch {
                return watch::follow(&client, request, output).await;
            }
            render::status(&client.status(request).await?, output)?;
        }
    }
    Ok(())
}

async fn down(client: &Client, task: String, workers: i32, output: Output) -> Result<(), Failure> {
    let request = ScaleRequest {
        task_id: task,
        worker_count: workers,
        triggered_by: "ottoctl".to_owned(),
        ..ScaleRequest::default()
    };
    render::scaled(
        &client.scale_down(request).await?,
        client.trace_id(),
        output,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
