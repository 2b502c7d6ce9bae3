//! The pods whose logs are read, as the index knows them.
use std::sync::Arc;

use crate::{domain::pod::Pod, index::Index};

/// Looks up pods whose logs are read.
pub(crate) trait PodLookup: Clone + Send + Sync + 'static {
    /// Returns the newest state of this very pod (by its uid); None once it is gone.
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>>;
}

impl PodLookup for Index {
    fn latest(&self, pod: &Pod) -> Option<Arc<Pod>> {
        self.pod(&pod.name).filter(|p| p.uid == pod.uid)
    }
}
