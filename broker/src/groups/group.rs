//! One group with members: who reads which queue, and who will.
//!
//! A queue never has two readers. When the plan moves it from A to B it stays A's until A has
//! released it, has left, or its time is up; only then does B hear of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::ErrorCode;
use tokio::sync::watch;
use tokio::time::Instant;

use super::assignment::{Queues, Subscriber, assign};

/// A member's name, given by the broker.
pub(crate) type MemberId = Arc<str>;
type QueueKey = (Arc<str>, u32);

/// What one member reads from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// Grows with every change in the group, so no two assignments of a member share one.
    pub(crate) generation: u64,
    /// Queues by topic.
    pub(crate) queues: Queues,
    /// Where each of these topics was created.
    pub(crate) created_positions: BTreeMap<Arc<str>, u64>,
    /// Topics it subscribes to that do not exist.
    pub(crate) unknown_topics: BTreeSet<Arc<str>>,
}

/// A topic that exists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// How many it has.
    pub(super) queues: u32,
    /// Tells it from others that have had its name.
    pub(super) created_position: u64,
}

/// A group that has, or just had, members.
#[derive(Debug, Default)]
pub(super) struct Group {
    generation: u64,
    members: BTreeMap<MemberId, Member>,
    readers: BTreeMap<QueueKey, Reader>,
    /// Queues whose reader has been asked to stop.
    releases: BTreeMap<QueueKey, Release>,
    /// Topics that are subscribed to and do not exist.
    unknown_topics: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Member {
    client_id: String,
    topics: BTreeSet<Arc<str>>,
    /// What it is to read once others have let go of it.
    plan: Queues,
    /// Holds only the latest, so a slow member costs nothing.
    assigned: watch::Sender<Assigned>,
}

#[derive(Debug)]
struct Reader {
    member: MemberId,
    /// A commit from before this generation is from an earlier time with the queue.
    since: u64,
    /// Where the topic was created: what comes later under its name is not what is being read.
    created_position: u64,
}

#[derive(Debug)]
struct Release {
    /// The assignment that no longer has the queue.
    generation: u64,
    deadline: Instant,
    next: Option<MemberId>,
}

/// A member as `DescribeGroup` shows it.
#[derive(Debug)]
pub(crate) struct MemberView {
    pub(crate) id: MemberId,
    pub(crate) client_id: String,
    pub(crate) assigned: Assigned,
}

impl Group {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn size(&self) -> usize {
        self.members.len()
    }

    pub(super) fn subscribes(&self, topic: &str) -> bool {
        self.members.values().any(|member| member.topics.contains(topic))
    }

    /// Every topic a member subscribes to.
    pub(super) fn topics(&self) -> BTreeSet<Arc<str>> {
        self.members.values().flat_map(|member| member.topics.iter().cloned()).collect()
    }

    pub(super) fn members(&self) -> Vec<MemberView> {
        let view = |(id, member): (&MemberId, &Member)| MemberView {
            id: Arc::clone(id),
            client_id: member.client_id.clone(),
            assigned: member.assigned.borrow().clone(),
        };
        self.members.iter().map(view).collect()
    }

    /// Adds a member; [`rebalance`](Group::rebalance) then gives it something to read.
    pub(super) fn add(
        &mut self,
        id: MemberId,
        client_id: String,
        topics: BTreeSet<Arc<str>>,
    ) -> watch::Receiver<Assigned> {
        let (assigned, receiver) = watch::channel(Assigned::default());
        self.members.insert(id, Member { client_id, topics, plan: Queues::new(), assigned });
        receiver
    }

    /// Removes a member and frees what it read. False if there is no such member.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        if self.members.remove(id).is_none() {
            return false;
        }
        self.readers.retain(|_, reader| &*reader.member != id);
        let readers = &self.readers;
        self.releases.retain(|queue, _| readers.contains_key(queue));
        true
    }

    /// Changes what a member subscribes to. False if there is no such member.
    pub(super) fn resubscribe(&mut self, id: &str, topics: BTreeSet<Arc<str>>) -> bool {
        self.members.get_mut(id).map(|member| member.topics = topics).is_some()
    }

    /// Plans anew after members, subscriptions or topics changed, and tells whom it concerns.
    ///
    /// `known` looks a topic up; `None` where there is none.
    pub(super) fn rebalance(
        &mut self,
        known: impl Fn(&str) -> Option<Known>,
        now: Instant,
        release_timeout: Duration,
    ) {
        let mut topics: BTreeMap<Arc<str>, Known> = BTreeMap::new();
        self.unknown_topics.clear();
        for topic in self.topics() {
            match known(&topic) {
                Some(known) => _ = topics.insert(topic, known),
                None => _ = self.unknown_topics.insert(topic),
            }
        }
        self.generation += 1;
        self.plan(&topics.iter().map(|(name, topic)| (Arc::clone(name), topic.queues)).collect());

        self.readers.retain(|(topic, queue), reader| {
            // Where nobody subscribes to a topic any more, that does not mean that it is gone.
            let topic = topics.get(topic).copied().or_else(|| known(topic));
            topic.is_some_and(|topic| {
                *queue < topic.queues && topic.created_position == reader.created_position
            })
        });
        let readers = &self.readers;
        self.releases.retain(|key, _| readers.contains_key(key));

        let mut planned: BTreeMap<QueueKey, MemberId> = BTreeMap::new();
        for (id, member) in &self.members {
            for (topic, queues) in &member.plan {
                let keys = queues.iter().map(|&queue| (Arc::clone(topic), queue));
                planned.extend(keys.map(|key| (key, Arc::clone(id))));
            }
        }
        let deadline = now + release_timeout;
        for (key, reader) in &self.readers {
            let next = planned.remove(key);
            if next.as_ref() == Some(&reader.member) {
                self.releases.remove(key);
            } else {
                // A release that is under way keeps its deadline.
                let release = Release { generation: self.generation, deadline, next: None };
                self.releases.entry(key.clone()).or_insert(release).next = next;
            }
        }
        let since = self.generation;
        self.readers.extend(planned.into_iter().filter_map(|(key, member)| {
            let created_position = topics.get(&key.0)?.created_position;
            Some((key, Reader { member, since, created_position }))
        }));
        self.tell();
    }

    /// The member has stopped reading what is not in its assignment of this generation.
    pub(super) fn released(&mut self, id: &str, generation: u64) {
        let readers = &self.readers;
        let by = |key: &QueueKey| readers.get(key).is_some_and(|reader| &*reader.member == id);
        let ready = self.releases.iter().filter(|(key, r)| r.generation <= generation && by(key));
        let ready: Vec<QueueKey> = ready.map(|(key, _)| key.clone()).collect();
        self.hand_over(ready);
    }

    /// Takes queues from members that were asked for them too long ago. Returns when to look again.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let late = self.releases.iter().filter(|(_, release)| release.deadline <= now);
        let late: Vec<QueueKey> = late.map(|(key, _)| key.clone()).collect();
        self.hand_over(late);
        self.next_deadline()
    }

    /// When the first release that is under way is late.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.releases.values().map(|release| release.deadline).min()
    }

    /// Whether the member may commit for the queue: it reads it, or is about to release it, and the topic
    /// was created where the one was that there is now.
    pub(super) fn check_commit(
        &self,
        id: &str,
        generation: u64,
        (topic, created_position): (&str, Option<u64>),
        queue: u32,
    ) -> Result<(), ErrorCode> {
        if !self.members.contains_key(id) {
            return Err(ErrorCode::UnknownMember);
        }
        let reader = self.readers.get(&(Arc::from(topic), queue));
        match reader {
            Some(reader)
                if &*reader.member == id
                    && generation >= reader.since
                    && Some(reader.created_position) == created_position =>
            {
                Ok(())
            }
            _ => Err(ErrorCode::NotOwner),
        }
    }

    /// Sets every member's plan.
    fn plan(&mut self, topics: &BTreeMap<Arc<str>, u32>) {
        // A queue on its way to a member that left stays, if it can, with the one that reads it.
        for (key, reader) in &self.readers {
            let next = self.releases.get(key).and_then(|release| release.next.as_ref());
            let moving = next.is_some_and(|next| self.members.contains_key(next));
            if !moving && let Some(member) = self.members.get_mut(&reader.member) {
                member.plan.entry(Arc::clone(&key.0)).or_default().insert(key.1);
            }
        }
        let subscribers: Vec<Subscriber<'_>> = self
            .members
            .values()
            .map(|member| Subscriber { topics: &member.topics, has: &member.plan })
            .collect();
        let plans = assign(&subscribers, topics);
        self.members.values_mut().zip(plans).for_each(|(member, plan)| member.plan = plan);
    }

    fn hand_over(&mut self, keys: Vec<QueueKey>) {
        if keys.is_empty() {
            return;
        }
        self.generation += 1;
        for key in keys {
            match self.releases.remove(&key).and_then(|release| release.next) {
                Some(member) => {
                    if let Some(reader) = self.readers.get_mut(&key) {
                        (reader.member, reader.since) = (member, self.generation);
                    }
                }
                None => {
                    self.readers.remove(&key);
                }
            }
        }
        self.tell();
    }

    /// Sends each member whose queues changed its assignment: of its plan, what it may read now.
    fn tell(&self) {
        for (id, member) in &self.members {
            let mut queues = Queues::new();
            let mut created_positions = BTreeMap::new();
            for (topic, planned) in &member.plan {
                for &queue in planned {
                    let reader = self.readers.get(&(Arc::clone(topic), queue));
                    if let Some(reader) = reader.filter(|reader| reader.member == *id) {
                        queues.entry(Arc::clone(topic)).or_default().insert(queue);
                        created_positions.insert(Arc::clone(topic), reader.created_position);
                    }
                }
            }
            let unknown_topics =
                member.topics.intersection(&self.unknown_topics).cloned().collect();
            let generation = self.generation;
            let mut new = Assigned { generation, queues, created_positions, unknown_topics };
            member.assigned.send_if_modified(|assigned| {
                // Generation 0 is a member that has been told nothing yet, not even its name.
                new.generation = assigned.generation;
                let changed = assigned.generation == 0 || new != *assigned;
                if changed {
                    *assigned = Assigned { generation, ..new };
                }
                changed
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    struct Scene {
        group: Group,
        now: Instant,
        topics: BTreeMap<&'static str, Known>,
        heard: BTreeMap<&'static str, watch::Receiver<Assigned>>,
    }

    impl Scene {
        fn new(queues: &[(&'static str, u32)]) -> Scene {
            let (group, now) = (Group::default(), Instant::now());
            let mut scene = Scene { group, now, topics: BTreeMap::new(), heard: BTreeMap::new() };
            queues.iter().for_each(|&(topic, queues)| scene.set(topic, queues, 0));
            scene
        }

        fn set(&mut self, topic: &'static str, queues: u32, created_position: u64) {
            self.topics.insert(topic, Known { queues, created_position });
        }

        fn rebalance(&mut self) {
            self.group.rebalance(|t| self.topics.get(t).copied(), self.now, TIMEOUT);
        }

        fn join(&mut self, id: &'static str, topics: &[&str]) {
            let topics = topics.iter().map(|&topic| Arc::from(topic)).collect();
            self.heard.insert(id, self.group.add(id.into(), format!("client-{id}"), topics));
            self.rebalance();
        }

        fn leave(&mut self, id: &str) {
            assert!(self.group.remove(id));
            self.heard.remove(id);
            self.rebalance();
        }

        fn assigned(&self, id: &str) -> Assigned {
            self.heard[id].borrow().clone()
        }

        fn queues(&self, id: &str, topic: &str) -> Vec<u32> {
            self.assigned(id).queues.get(topic).into_iter().flatten().copied().collect()
        }

        fn release(&mut self, id: &str) {
            let generation = self.assigned(id).generation;
            self.group.released(id, generation);
        }

        fn commit(&self, id: &str, generation: u64, queue: u32) -> Result<(), ErrorCode> {
            let created_position = self.topics.get("t").map(|topic| topic.created_position);
            self.group.check_commit(id, generation, ("t", created_position), queue)
        }
    }

    #[test]
    fn a_moving_queue_is_withheld_until_its_reader_has_released_it() {
        let mut scene = Scene::new(&[("t", 4)]);
        scene.join("a", &["t"]);
        assert_eq!(scene.queues("a", "t"), [0, 1, 2, 3]);
        scene.join("b", &["t"]);
        assert_eq!(scene.queues("a", "t"), [0, 1], "a is asked for two");
        assert_eq!(scene.queues("b", "t"), [0; 0], "b knows its name and waits");
        assert_ne!(scene.assigned("b").generation, 0);
        scene.release("a");
        assert_eq!(scene.queues("b", "t"), [2, 3]);
    }

    #[test]
    fn a_reader_that_never_releases_loses_the_queue_when_its_time_is_up() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        let before = scene.assigned("a").generation;
        scene.join("b", &["t"]);
        let deadline = scene.group.next_deadline().unwrap();
        assert_eq!(deadline, scene.now + TIMEOUT);
        assert_eq!(scene.group.expire(deadline - Duration::from_millis(1)), Some(deadline));
        assert_eq!(scene.commit("a", before, 1), Ok(()), "still its own");
        assert_eq!(scene.group.expire(deadline), None);
        assert_eq!(scene.queues("b", "t"), [1]);
        assert_eq!(scene.commit("a", before, 1), Err(ErrorCode::NotOwner));
        assert_eq!(scene.commit("b", scene.assigned("b").generation, 1), Ok(()));
    }

    #[test]
    fn a_leaver_frees_its_queues_at_once() {
        let mut scene = Scene::new(&[("t", 4)]);
        scene.join("a", &["t"]);
        scene.join("b", &["t"]);
        scene.leave("a");
        assert_eq!(scene.queues("b", "t"), [0, 1, 2, 3]);
        assert_eq!(scene.commit("a", u64::MAX, 0), Err(ErrorCode::UnknownMember));
        assert_eq!(scene.group.next_deadline(), None);
    }

    #[test]
    fn a_release_of_an_older_assignment_does_not_count_for_a_newer_one() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        let old = scene.assigned("a").generation;
        scene.join("b", &["t"]);
        scene.group.released("a", old);
        assert_eq!(scene.queues("b", "t"), [0; 0]);
        scene.group.released("b", u64::MAX);
        assert_eq!(scene.queues("b", "t"), [0; 0], "nobody releases for another");
    }

    #[test]
    fn a_queue_whose_next_member_left_stays_with_its_reader() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        scene.join("b", &["t"]);
        scene.leave("b");
        assert_eq!(scene.queues("a", "t"), [0, 1]);
        assert_eq!(scene.group.next_deadline(), None, "nothing is pending");
    }

    #[test]
    fn a_commit_from_an_earlier_time_with_the_queue_is_refused() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        let old = scene.assigned("a").generation;
        scene.join("b", &["t"]);
        scene.release("a");
        scene.leave("b");
        assert_eq!(scene.queues("a", "t"), [0, 1]);
        assert_eq!(scene.commit("a", old, 0), Ok(()), "kept all the time");
        assert_eq!(scene.commit("a", old, 1), Err(ErrorCode::NotOwner), "lost and regained");
        assert_eq!(scene.commit("a", scene.assigned("a").generation, 1), Ok(()));
    }

    #[test]
    fn added_queues_new_topics_and_deleted_topics_change_assignments() {
        let mut scene = Scene::new(&[("t", 1)]);
        scene.join("a", &["t", "u"]);
        scene.set("t", 3, 0);
        scene.rebalance();
        assert_eq!(scene.queues("a", "t"), [0, 1, 2]);
        scene.set("u", 1, 0);
        scene.rebalance();
        assert_eq!(scene.queues("a", "u"), [0]);
        scene.topics.remove("t");
        scene.rebalance();
        assert_eq!(scene.queues("a", "t"), [0; 0]);
        assert_eq!(scene.assigned("a").unknown_topics, BTreeSet::from(["t".into()]));
        assert_eq!(scene.commit("a", u64::MAX, 0), Err(ErrorCode::NotOwner));
    }

    #[test]
    fn a_topic_made_anew_is_assigned_anew_even_where_its_queues_look_the_same() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        let before = scene.assigned("a");
        scene.set("t", 2, 4096);
        let commit = scene.commit("a", before.generation, 0);
        assert_eq!(commit, Err(ErrorCode::NotOwner), "of the new one it knows nothing yet");
        scene.rebalance();
        let after = scene.assigned("a");
        assert_eq!(after.queues, before.queues);
        assert_eq!(after.created_positions["t"], 4096);
        let late = scene.commit("a", before.generation, 1);
        assert_eq!(late, Err(ErrorCode::NotOwner), "it was for the topic before");
        assert_eq!(scene.commit("a", after.generation, 1), Ok(()));
    }

    #[test]
    fn a_queue_of_a_topic_made_anew_waits_for_nobody_to_release_it() {
        let mut scene = Scene::new(&[("t", 2)]);
        scene.join("a", &["t"]);
        scene.join("b", &["t"]);
        assert_eq!(scene.queues("b", "t"), [0; 0]);
        scene.set("t", 2, 4096);
        scene.rebalance();
        assert_eq!([scene.queues("a", "t"), scene.queues("b", "t")], [[0], [1]]);
        assert_eq!(scene.group.next_deadline(), None);
    }

    #[test]
    fn members_share_only_what_they_subscribe_to_and_can_change_their_minds() {
        let mut scene = Scene::new(&[("t", 2), ("u", 2)]);
        scene.join("a", &["t"]);
        scene.join("b", &["t", "u"]);
        scene.release("a");
        assert_eq!(scene.queues("a", "t").len(), 1);
        assert_eq!(scene.queues("b", "u"), [0, 1]);
        assert!(scene.group.resubscribe("b", BTreeSet::from(["u".into()])));
        scene.rebalance();
        assert_eq!(scene.queues("a", "t").len(), 1, "b has not released its queue of t yet");
        scene.release("b");
        assert_eq!(scene.queues("a", "t"), [0, 1]);
    }

    #[test]
    fn whoever_is_not_concerned_is_not_told() {
        let mut scene = Scene::new(&[("t", 1), ("u", 1)]);
        scene.join("a", &["t"]);
        scene.heard.get_mut("a").unwrap().mark_unchanged();
        scene.join("b", &["u"]);
        assert!(!scene.heard["a"].has_changed().unwrap());
    }

    proptest! {
        #[test]
        fn whatever_happens_a_queue_has_one_reader_and_ends_up_with_one(
            steps in proptest::collection::vec((0_u8..7, 0_usize..6), 1..60),
        ) {
            const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
            let mut scene = Scene::new(&[("t", 7), ("u", 3)]);
            for (step, index) in steps {
                let id = NAMES[index];
                let here = scene.heard.contains_key(id);
                match step {
                    0 if !here => scene.join(id, &["t", "u"]),
                    1 if !here => scene.join(id, &["u"]),
                    2 if here => scene.leave(id),
                    3 | 4 if here => scene.release(id),
                    5 => { scene.group.expire(scene.now); }
                    _ => scene.now += Duration::from_secs(1),
                }
                let mut seen = BTreeSet::new();
                for id in scene.heard.keys() {
                    for (topic, queues) in scene.assigned(id).queues {
                        for queue in queues {
                            prop_assert!(seen.insert((topic.clone(), queue)), "two readers");
                            let generation = scene.assigned(id).generation;
                            let topic = (&*topic, Some(0));
                            let check = scene.group.check_commit(id, generation, topic, queue);
                            prop_assert_eq!(check, Ok(()));
                        }
                    }
                }
            }
            scene.group.expire(scene.now + TIMEOUT);
            let reads: usize =
                scene.heard.keys().flat_map(|id| scene.assigned(id).queues.into_values()).map(|q| q.len()).sum();
            let expected = match (scene.group.subscribes("t"), scene.group.subscribes("u")) {
                (true, _) => 10, (false, true) => 3, _ => 0,
            };
            prop_assert_eq!(reads, expected);
        }
    }
}
