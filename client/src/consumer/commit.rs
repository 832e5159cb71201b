//! Committing how far the application has come.

use std::sync::Arc;
use std::time::Duration;

use longwire_proto::{ErrorCode, control};

use super::{Member, Shared};
use crate::message::QueueOffset;
use crate::{Error, ErrorKind};

/// Offsets in one commit; what is more is committed in several.
const OFFSETS_PER_COMMIT: usize = 10_000;

impl Shared {
    /// Commits what the application is done with, where that is not committed.
    pub(super) async fn commit(&self) -> Result<(), Error> {
        // One after the other, so that an older position never comes after a newer one.
        let _committing = self.committing.lock().await;
        let positions = self.queues.lock().uncommitted();
        let member = self.member.lock().clone();
        for part in positions.chunks(OFFSETS_PER_COMMIT) {
            let offsets: Vec<QueueOffset> = part.iter().map(|(_, offset)| offset.clone()).collect();
            self.send_commit(member.clone(), &offsets).await?;
            self.queues.lock().committed(part);
        }
        Ok(())
    }

    /// Fails if a queue was lost before what had been handed out of it was committed.
    pub(super) fn check_saved(&self) -> Result<(), Error> {
        let is_member = self.member.lock().is_some();
        let mut queues = self.queues.lock();
        let Some(queue) = queues.unsaved() else {
            return Ok(());
        };
        let group = self.config.group.as_deref().unwrap_or_default();
        let (code, why) = if is_member {
            (ErrorCode::NotOwner, "another member repeats what was not committed")
        } else {
            (ErrorCode::UnknownMember, "not a member now; rejoining")
        };
        let message = format!("committing for group {group:?}: queue {queue} was lost: {why}");
        // While there is no membership it may still come back as it was left.
        if is_member {
            queues.forget_unsaved();
        }
        Err(Error::refused(code.number(), message))
    }

    /// Commits these offsets, whatever has been received.
    pub(super) async fn commit_these(&self, offsets: &[QueueOffset]) -> Result<(), Error> {
        let _committing = self.committing.lock().await;
        let member = self.member.lock().clone();
        for part in offsets.chunks(OFFSETS_PER_COMMIT) {
            self.send_commit(member.clone(), part).await?;
            self.queues.lock().committed_explicitly(part);
        }
        Ok(())
    }

    async fn send_commit(
        &self,
        member: Option<Member>,
        offsets: &[QueueOffset],
    ) -> Result<(), Error> {
        let Some(group) = &self.config.group else {
            return Err(Error::invalid("a consumer without a group has nothing to commit to"));
        };
        let (member_id, generation) = match member {
            Some(Member { id, generation }) => (id, generation),
            None if self.config.is_member() => {
                let message =
                    format!("committing for group {group:?}: not a member now; rejoining");
                return Err(Error::refused(ErrorCode::UnknownMember.number(), message));
            }
            None => (String::new(), 0),
        };
        let offsets = offsets.iter().map(|offset| control::TopicQueueOffset {
            topic: offset.topic.to_string(),
            queue: offset.queue,
            offset: offset.offset,
        });
        let request = control::CommitOffsetsRequest {
            group: group.clone(),
            member_id,
            generation,
            offsets: offsets.collect(),
        };
        let answer = self.client.control().offsets().commit_offsets(request).await;
        let what = format!("committing for group {group:?}");
        answer.map(|_| ()).map_err(|status| Error::from_status(&what, &status))
    }
}

/// Commits `interval` after something came to be committed, until the consumer is closed.
pub(super) async fn run(shared: Arc<Shared>, interval: Duration) {
    loop {
        let dirty_for_long = async {
            shared.dirty.notified().await;
            tokio::time::sleep(interval).await;
        };
        if shared.closing.run_until_cancelled(dirty_for_long).await.is_none() {
            return;
        }
        if let Err(error) = shared.commit().await {
            tracing::warn!(%error, "the automatic commit failed; the next one tries again");
            // What was not committed is still there to be.
            if error.kind() != ErrorKind::InvalidArgument {
                shared.dirty.notify_one();
            }
        }
    }
}
