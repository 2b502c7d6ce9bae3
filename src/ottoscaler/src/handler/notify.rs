//! Notifications of workers' transitions to otto-handler.
use std::{error::Error as _, time::Duration};

use tonic::{Code, Request, Status};

use super::client::{HandlerClient, loggable};
use crate::{
    proto::{
        WorkerStatusNotification, otto_handler_log_service_client::OttoHandlerLogServiceClient,
        worker_status_ack,
    },
    telemetry,
};

/// The deadline of a notification. otto-handler stores one row; one that takes longer is asked
/// again, and drops the repeat by its event id.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a notification was not taken; it is worth another try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// otto-handler cannot be reached, or does not answer.
    #[error("{0}")]
    Away(String),
    /// otto-handler answered ERROR, or a status that says the same.
    #[error("{0}")]
    Refused(String),
}

/// Takes notifications for otto-handler.
#[tonic::async_trait]
pub trait NotificationSink: Send + Sync + 'static {
    /// Returns once otto-handler has taken it (RECEIVED or IGNORED).
    ///
    /// # Errors
    /// See [`Untold`].
    async fn tell(&self, notification: WorkerStatusNotification) -> Result<(), Untold>;
}

/// Tells a status that refuses this notification from one that says that otto-handler cannot
/// be reached or does not serve.
pub(super) fn not_taken(status: &Status) -> Untold {
    let why = loggable(status);
    // tonic made this status from an error of the connection.
    if status.source().is_some() {
        return Untold::Away(why);
    }
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unimplemented
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Ok => Untold::Away(why),
        Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => Untold::Refused(why),
    }
}

/// The sink where there is no otto-handler. It takes everything.
#[derive(Debug)]
pub struct NoHandler;

#[tonic::async_trait]
impl NotificationSink for NoHandler {
    async fn tell(&self, _: WorkerStatusNotification) -> Result<(), Untold> {
        Ok(())
    }
}

#[tonic::async_trait]
impl NotificationSink for HandlerClient {
    async fn tell(&self, notification: WorkerStatusNotification) -> Result<(), Untold> {
        let mut request = Request::new(notification);
        request.set_timeout(NOTIFY_TIMEOUT);
        telemetry::inject(request.metadata_mut(), None);
        let mut client = OttoHandlerLogServiceClient::new(self.notify_channel());
        let answer = tokio::time::timeout(NOTIFY_TIMEOUT, client.notify_worker_status(request));
        match answer.await {
            Err(_) => {
                self.reconnect_notify();
                Err(Untold::Away("no answer in time".to_owned()))
            }
            Ok(Err(status)) => {
                // tonic reports a call that reached its deadline as cancelled.
                if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
                    self.reconnect_notify();
                }
                Err(not_taken(&status))
            }
            Ok(Ok(ack)) if ack.get_ref().status() == worker_status_ack::Status::Error => {
                Err(Untold::Refused("answered ERROR".to_owned()))
            }
            Ok(Ok(_)) => Ok(()),
        }
    }
}
