//! Consumer groups: members share the queues of the topics they subscribe to.
//!
//! Groups and their committed offsets are the store's and outlive the broker; who is a member is
//! known here only, and a member is one for as long as its `Join` stream lives.

mod assignment;
mod group;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_storage::{CommittedOffset, Store};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::GroupsConfig;
use crate::state::{Failure, now_ms};
pub(crate) use group::{Assigned, MemberId, MemberView};
use group::{Group, Known};

/// Planning a group that takes longer is followed by a rest: a thousand members that come one after
/// another to 65,536 queues would otherwise keep the control plane busy for minutes.
const PLAN_LONG: Duration = Duration::from_millis(5);
/// How many times as long the rest is as the planning was.
const PLAN_REST: u32 = 9;

/// Every group that has members.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    config: GroupsConfig,
    /// Where release timers and rebalancing after a change of topics run: the control plane.
    runtime: Handle,
    /// Held for computing only, never across a wait.
    groups: Mutex<BTreeMap<Arc<str>, Active>>,
    /// Tells this broker's members from those of the one before it.
    started_ms: i64,
    next_number: AtomicU64,
}

#[derive(Debug)]
struct Active {
    group: Group,
    /// The number of its release timer, while one runs.
    timer: Option<u64>,
    /// It is planned anew no sooner.
    rested: Instant,
    /// It is to be planned anew then.
    is_due: bool,
}

/// How many visible messages of a queue with these offsets, its first and one past its last, a group has
/// not committed; all of them where it has committed nothing.
pub(crate) fn lag((min, max): (u64, u64), committed: Option<u64>) -> u64 {
    max.saturating_sub(committed.unwrap_or(min).max(min))
}

/// A group as `DescribeGroup` sees its members.
#[derive(Debug, Default)]
pub(crate) struct GroupView {
    pub(crate) generation: u64,
    pub(crate) members: Vec<MemberView>,
    /// Every topic a member subscribes to.
    pub(crate) topics: BTreeSet<Arc<str>>,
}

impl Coordinator {
    /// `runtime` must outlive the last call.
    pub(crate) fn new(store: Arc<Store>, config: GroupsConfig, runtime: Handle) -> Coordinator {
        let groups = Mutex::new(BTreeMap::new());
        let next_number = AtomicU64::new(1);
        let started_ms = now_ms();
        Coordinator {
            shared: Arc::new(Shared { store, config, runtime, groups, started_ms, next_number }),
        }
    }

    /// Makes a member of the group, which lasts until the membership is dropped.
    ///
    /// The names must have been checked, and the group be known to the store.
    pub(crate) fn join(
        &self,
        group: &str,
        client_id: String,
        topics: BTreeSet<Arc<str>>,
    ) -> Result<Membership, Failure> {
        let shared = &self.shared;
        let name: Arc<str> = group.into();
        let mut groups = shared.groups.lock();
        let active = groups.entry(Arc::clone(&name)).or_insert_with(Active::new);
        if active.group.size() >= shared.config.members_max {
            let max = shared.config.members_max;
            let message = format!("group {group:?} has {max} members, which is the most allowed");
            return Err((ErrorCode::Overloaded, message));
        }
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        let id: MemberId = format!("{:x}-{number}", shared.started_ms).into();
        tracing::debug!(group, member = &*id, client_id, "member joined");
        let assigned = active.group.add(Arc::clone(&id), client_id, topics);
        self.rebalance(&name, active);
        Ok(Membership { coordinator: self.clone(), group: name, id, assigned })
    }

    /// Rebalances the groups that subscribe to a topic that came, went or has more queues.
    /// Returns at once; the work is the control plane's.
    pub(crate) fn topic_changed(&self, topic: &str) {
        let (coordinator, topic) = (self.clone(), topic.to_owned());
        self.shared.runtime.spawn(async move {
            for (name, active) in coordinator.shared.groups.lock().iter_mut() {
                if active.group.subscribes(&topic) {
                    coordinator.rebalance(name, active);
                }
            }
        });
    }

    /// Appends a commit if the member may make it; returns the position it is durable at.
    ///
    /// An empty `member` is a consumer outside the group, which must have no members then.
    pub(crate) fn commit(
        &self,
        group: &str,
        member: &str,
        generation: u64,
        offsets: &[CommittedOffset],
    ) -> Result<u64, Failure> {
        let groups = self.shared.groups.lock();
        let active = groups.get(group).map(|active| &active.group);
        match active {
            Some(_) if member.is_empty() => return Err(not_empty(group)),
            None if !member.is_empty() => return Err(unknown_member(group, member)),
            Some(active) => {
                for CommittedOffset { topic, queue, .. } in offsets {
                    let now = self.shared.store.topic(topic);
                    let created_position = now.map(|topic| topic.created_position());
                    let topic_now = (&**topic, created_position);
                    let check = active.check_commit(member, generation, topic_now, *queue);
                    check.map_err(|code| match code {
                        ErrorCode::UnknownMember => unknown_member(group, member),
                        _ => (code, format!("queue {queue} of {topic} is not {member}'s")),
                    })?;
                }
            }
            None => {}
        }
        // Under the lock: nobody may come to own a queue between the check and the commit.
        let appended = self.shared.store.commit_offsets(group, offsets);
        appended.map_err(|error| (error.code(), format!("the commit failed: {error}")))
    }

    /// Appends the deletion of a group that has no members; returns the position it is durable at.
    pub(crate) fn delete(&self, group: &str) -> Result<u64, Failure> {
        let groups = self.shared.groups.lock();
        if groups.contains_key(group) {
            return Err(not_empty(group));
        }
        // Under the lock: whoever joins now commits behind the deletion.
        let deleted = self.shared.store.delete_group(group);
        deleted.map_err(|error| (error.code(), error.to_string()))
    }

    /// Whether the group has members.
    pub(crate) fn has_members(&self, group: &str) -> bool {
        self.shared.groups.lock().contains_key(group)
    }

    /// Fails with `GROUP_NOT_EMPTY` while the group has members.
    pub(crate) fn check_empty(&self, group: &str) -> Result<(), Failure> {
        if self.has_members(group) { Err(not_empty(group)) } else { Ok(()) }
    }

    /// The groups that have members, with their number.
    pub(crate) fn sizes(&self) -> BTreeMap<Arc<str>, usize> {
        let groups = self.shared.groups.lock();
        groups.iter().map(|(name, active)| (Arc::clone(name), active.group.size())).collect()
    }

    /// What a group with members looks like; empty for one without.
    pub(crate) fn view(&self, group: &str) -> GroupView {
        let groups = self.shared.groups.lock();
        groups.get(group).map_or_else(GroupView::default, |Active { group, .. }| GroupView {
            generation: group.generation(),
            members: group.members(),
            topics: group.topics(),
        })
    }

    /// Applies a change to a group; plans anew if it says so.
    fn change(&self, group: &Arc<str>, change: impl FnOnce(&mut Group) -> bool) {
        let mut groups = self.shared.groups.lock();
        let Some(active) = groups.get_mut(group) else {
            return;
        };
        let plan_anew = change(&mut active.group);
        if active.group.size() == 0 {
            groups.remove(group);
        } else if plan_anew {
            self.rebalance(group, active);
        }
    }

    /// Plans a group anew: at once, or together with what else changes until the control plane has
    /// had time for others.
    fn rebalance(&self, name: &Arc<str>, active: &mut Active) {
        if active.is_due {
            return;
        }
        if active.rested <= Instant::now() {
            return self.plan(name, active);
        }
        active.is_due = true;
        let (coordinator, name, rested) = (self.clone(), Arc::clone(name), active.rested);
        self.shared.runtime.spawn(async move {
            tokio::time::sleep_until(rested).await;
            // The group may have emptied and filled again meanwhile.
            if let Some(active) = coordinator.shared.groups.lock().get_mut(&name)
                && std::mem::take(&mut active.is_due)
            {
                coordinator.plan(&name, active);
            }
        });
    }

    fn plan(&self, name: &Arc<str>, active: &mut Active) {
        let Shared { store, config, .. } = &*self.shared;
        let began = Instant::now();
        let known = |topic: &str| {
            let topic = store.topic(topic)?;
            Some(Known {
                queues: topic.config().queues,
                created_position: topic.created_position(),
            })
        };
        active.group.rebalance(known, began, config.release_timeout);
        let (planned, took) = (Instant::now(), began.elapsed());
        active.rested = if took < PLAN_LONG { planned } else { planned + took * PLAN_REST };
        let (generation, members) = (active.group.generation(), active.group.size());
        tracing::debug!(group = &**name, generation, members, "group rebalanced");
        if active.timer.is_none()
            && let Some(deadline) = active.group.next_deadline()
        {
            let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
            active.timer = Some(number);
            self.shared.runtime.spawn(self.clone().expire(Arc::clone(name), number, deadline));
        }
    }

    /// Runs while releases are pending in the group, and ends with the last of them.
    async fn expire(self, name: Arc<str>, number: u64, mut deadline: Instant) {
        loop {
            tokio::time::sleep_until(deadline).await;
            let mut groups = self.shared.groups.lock();
            // The group may have emptied and filled again meanwhile, with another timer.
            let Some(active) = groups.get_mut(&name).filter(|a| a.timer == Some(number)) else {
                return;
            };
            match active.group.expire(Instant::now()) {
                Some(next) => deadline = next,
                None => {
                    active.timer = None;
                    return;
                }
            }
        }
    }
}

impl Active {
    fn new() -> Active {
        Active { group: Group::default(), timer: None, rested: Instant::now(), is_due: false }
    }
}

fn not_empty(group: &str) -> Failure {
    (ErrorCode::GroupNotEmpty, format!("group {group:?} has members; stop them first"))
}

fn unknown_member(group: &str, member: &str) -> Failure {
    let member: String = member.chars().take(80).collect();
    let message = format!("{member:?} is no member of group {group:?}; it has to join again");
    (ErrorCode::UnknownMember, message)
}

/// Being a member of a group; dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Membership {
    coordinator: Coordinator,
    group: Arc<str>,
    id: MemberId,
    /// The latest assignment.
    pub(crate) assigned: watch::Receiver<Assigned>,
}

impl Membership {
    pub(crate) fn id(&self) -> &MemberId {
        &self.id
    }

    pub(crate) fn group(&self) -> &Arc<str> {
        &self.group
    }

    /// Changes the topics subscribed to.
    pub(crate) fn resubscribe(&self, topics: BTreeSet<Arc<str>>) {
        self.coordinator.change(&self.group, |group| group.resubscribe(&self.id, topics));
    }

    /// Says that nothing is read any more that the assignment of this generation lacks.
    pub(crate) fn released(&self, generation: u64) {
        self.coordinator.change(&self.group, |group| {
            group.released(&self.id, generation);
            false
        });
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        tracing::debug!(group = &*self.group, member = &*self.id, "member left");
        self.coordinator.change(&self.group, |group| group.remove(&self.id));
    }
}
