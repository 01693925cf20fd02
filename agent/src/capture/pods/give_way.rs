//! The agent's listeners move where an application wants a port of theirs.

use std::collections::HashSet;

use heddle_ebpf::attach::ListeningKey;

use super::super::error::CaptureError;
use super::super::request::Attachment;
use super::super::rows::occupied;
use super::Capture;

impl Capture {
    /// Opens a captured pod's listeners anew, on other ports: an application wants one of those that they occupy.
    /// The data plane must close the old ones before it tells [`Self::gave_way`].
    ///
    /// # Errors
    /// When no port is free.
    pub fn move_listeners(&self, cookie: u64, wanted: u16) -> Result<Option<Attachment>, CaptureError> {
        let inner = &mut *self.lock();
        if !self.writes() {
            return Ok(None);
        }
        let Some(pod) = inner.pods.get(&cookie).cloned() else {
            return Ok(None);
        };
        let mut taken: HashSet<u16> = occupied(&inner.maps, cookie)?;
        // An application that goes through a range should not meet the agent again on its next step.
        taken.extend((0..256).filter_map(|step| wanted.checked_add(step)));
        let listeners = self.listen(inner, &pod, &taken)?;
        Ok(Some(Attachment { pod, listeners, fresh: false }))
    }

    /// The old listeners are closed: lets the application that waits in `bind()` go on.
    pub fn gave_way(&self, cookie: u64, kept: &HashSet<u16>) {
        let inner = &mut *self.lock();
        if !self.writes() {
            return;
        }
        let ports = match occupied(&inner.maps, cookie) {
            Ok(ports) => ports,
            Err(error) => {
                return tracing::error!(%error, "ports that the agent's listeners had stay theirs: who binds there waits");
            }
        };
        for port in ports.difference(kept) {
            let key = ListeningKey { netns: cookie, port: (*port).into(), early: 0 };
            let _ = inner.maps.listener_ports.remove(&key);
        }
    }
}
