//! Committing how far the application has come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::{ErrorCode, control};

use super::{Member, Shared};
use crate::backoff::Backoff;
use crate::message::QueueOffset;
use crate::{Error, ErrorKind};

/// Offsets in one commit; what is more is committed in several.
const OFFSETS_PER_COMMIT: usize = 10_000;

/// Held while committing: one after the other, so that an older position never comes after a newer one.
pub(super) type Committing<'a> = tokio::sync::MutexGuard<'a, ()>;

impl Shared {
    /// Commits what the application is done with, where that is not committed.
    pub(super) async fn commit(&self) -> Result<(), Error> {
        let committing = self.committing.lock().await;
        self.commit_done(&committing).await
    }

    /// The application is done with all it has: commits that. Fails also if a queue was lost before
    /// what had been handed out of it was committed.
    pub(super) async fn commit_received(&self) -> Result<(), Error> {
        self.group()?;
        let committing = self.committing.lock().await;
        self.done();
        self.commit_done(&committing).await.inspect_err(|error| self.refused(error))?;
        self.check_saved()
    }

    /// The application is told that it could not commit.
    fn refused(&self, error: &Error) {
        if let Some(ErrorCode::UnknownMember | ErrorCode::NotOwner) = error.code() {
            self.queues.lock().repeat_uncommitted();
        }
    }

    async fn commit_done(&self, _: &Committing<'_>) -> Result<(), Error> {
        let member = self.member.lock().clone();
        let positions = self.queues.lock().uncommitted();
        for part in positions.chunks(OFFSETS_PER_COMMIT) {
            let offsets: Vec<QueueOffset> = part.iter().map(|(_, offset)| offset.clone()).collect();
            self.send_what_is_left(&member, &offsets).await?;
            self.queues.lock().committed(part);
        }
        Ok(())
    }

    /// Fails if a queue was lost before what had been handed out of it was committed.
    fn check_saved(&self) -> Result<(), Error> {
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
        queues.repeat_uncommitted();
        // While there is no membership it may still come back.
        if is_member {
            queues.forget_unsaved();
        }
        Err(Error::refused(code.number(), message))
    }

    /// Commits for queues that have been given up.
    pub(super) async fn commit_lost(
        &self,
        _: &Committing<'_>,
        offsets: &[QueueOffset],
    ) -> Result<(), Error> {
        let member = self.member.lock().clone();
        for part in offsets.chunks(OFFSETS_PER_COMMIT) {
            self.send_what_is_left(&member, part).await?;
            self.queues.lock().committed_explicitly(part);
        }
        Ok(())
    }

    /// Commits for the topics that are still there. One that has been deleted has nothing to commit any
    /// more, and must not have the others refused.
    async fn send_what_is_left(
        &self,
        member: &Option<Member>,
        offsets: &[QueueOffset],
    ) -> Result<(), Error> {
        let is_gone = |sent: &Result<(), Error>| {
            sent.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::UnknownTopic))
        };
        let sent = self.send_commit(member.clone(), offsets).await;
        if !is_gone(&sent) {
            return sent;
        }
        let mut topics: HashMap<&str, Vec<QueueOffset>> = HashMap::new();
        for offset in offsets {
            topics.entry(&offset.topic).or_default().push(offset.clone());
        }
        for offsets in topics.values() {
            let sent = self.send_commit(member.clone(), offsets).await;
            if !is_gone(&sent) {
                sent?;
            }
        }
        Ok(())
    }

    /// Commits these offsets, whatever has been received.
    pub(super) async fn commit_these(&self, offsets: &[QueueOffset]) -> Result<(), Error> {
        self.group()?;
        let _committing = self.committing.lock().await;
        let member = self.member.lock().clone();
        for part in offsets.chunks(OFFSETS_PER_COMMIT) {
            let sent = self.send_commit(member.clone(), part).await;
            sent.inspect_err(|error| self.refused(error))?;
            self.queues.lock().committed_explicitly(part);
        }
        Ok(())
    }

    fn group(&self) -> Result<&String, Error> {
        let group = self.config.group.as_ref();
        group.ok_or_else(|| Error::invalid("a consumer without a group has nothing to commit to"))
    }

    async fn send_commit(
        &self,
        member: Option<Member>,
        offsets: &[QueueOffset],
    ) -> Result<(), Error> {
        let group = self.group()?;
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

/// Commits `interval` after something came to be committed, or later after failures, until the
/// consumer is closed.
pub(super) async fn run(shared: Arc<Shared>, interval: Duration) {
    let mut backoff = Backoff::default();
    let mut pause = interval;
    loop {
        let dirty_for_long = async {
            shared.dirty.notified().await;
            tokio::time::sleep(pause).await;
        };
        if shared.closing.run_until_cancelled(dirty_for_long).await.is_none() {
            return;
        }
        let Err(error) = shared.commit().await else {
            backoff.reset();
            pause = interval;
            continue;
        };
        pause = interval.max(backoff.next());
        tracing::warn!(%error, "the automatic commit failed; the next one tries again");
        // What was not committed is still there to be.
        if error.kind() != ErrorKind::InvalidArgument {
            shared.dirty.notify_one();
        }
    }
}
