//! Who reads which queue: a pure function of members, topics and what they have already.
//!
//! What holds of every outcome, and is tested for any input:
//! - complete: every queue of a topic somebody subscribes to has exactly one member, a subscriber;
//! - even by topic: of one topic no subscriber has two queues more than another;
//! - even in total: members with the same subscriptions differ by one queue at most;
//! - sticky: what was even stays, and a newcomer takes only what evenness gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Queues by topic.
pub(crate) type Queues = BTreeMap<Arc<str>, BTreeSet<u32>>;

/// One member as the assignment sees it.
#[derive(Debug)]
pub(super) struct Subscriber<'a> {
    pub(super) topics: &'a BTreeSet<Arc<str>>,
    /// What it has now. Queues that no longer exist, or are another's too, are passed over.
    pub(super) has: &'a Queues,
}

/// Gives each queue of `topics` (name, number of queues) to a member; the answer is in the order
/// of `members`, which also breaks ties.
pub(super) fn assign(members: &[Subscriber<'_>], topics: &BTreeMap<Arc<str>, u32>) -> Vec<Queues> {
    let mut totals = vec![0_usize; members.len()];
    for (member, total) in members.iter().zip(&mut totals) {
        *total = member.has.values().map(BTreeSet::len).sum();
    }
    let mut shares: Vec<TopicShare<'_>> = topics
        .iter()
        .filter_map(|(topic, &queues)| TopicShare::keep(topic, queues, members, &mut totals))
        .collect();
    // From here on the totals count what is kept; members' other queues are gone.
    totals.fill(0);
    for share in &shares {
        share.members.iter().for_each(|part| totals[part.member] += part.queues.len());
    }
    shares.iter_mut().for_each(|share| share.fill(&mut totals, false));
    shares.iter_mut().for_each(|share| share.fill(&mut totals, true));
    // Each move lowers the sum of the squared totals, so this ends.
    let mut moved = true;
    while moved {
        moved = false;
        shares.iter_mut().for_each(|share| moved |= share.even_out(&mut totals));
    }

    let mut assigned: Vec<Queues> = members.iter().map(|_| Queues::new()).collect();
    for share in shares {
        for part in share.members.into_iter().filter(|part| !part.queues.is_empty()) {
            assigned[part.member].insert(Arc::clone(share.topic), part.queues);
        }
    }
    assigned
}

/// How one topic is shared among its subscribers: `base` queues each, and one more for some.
struct TopicShare<'a> {
    topic: &'a Arc<str>,
    base: usize,
    members: Vec<Part>,
    /// Queues nobody has yet.
    free: BTreeSet<u32>,
}

struct Part {
    /// Its index among all members.
    member: usize,
    queues: BTreeSet<u32>,
}

impl<'a> TopicShare<'a> {
    /// Lets the subscribers keep what an even share allows. `None` if there are no subscribers.
    fn keep(
        topic: &'a Arc<str>,
        queues: u32,
        members: &[Subscriber<'_>],
        totals: &mut [usize],
    ) -> Option<TopicShare<'a>> {
        let mut free: BTreeSet<u32> = (0..queues).collect();
        let mut parts = Vec::new();
        for (member, subscriber) in members.iter().enumerate() {
            if subscriber.topics.contains(topic) {
                let had = subscriber.has.get(topic).into_iter().flatten();
                let queues = had.copied().filter(|queue| free.remove(queue)).collect();
                parts.push(Part { member, queues });
            }
        }
        if parts.is_empty() {
            return None;
        }
        let base = queues as usize / parts.len();
        let mut extras = queues as usize % parts.len();
        // One queue over the base is kept by those who have least in all.
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(|&part| totals[parts[part].member]);
        for index in order {
            let part: &mut Part = &mut parts[index];
            let keep = if part.queues.len() > base && extras > 0 {
                extras -= 1;
                base + 1
            } else {
                base
            };
            while part.queues.len() > keep {
                free.extend(part.queues.pop_last());
                totals[part.member] -= 1;
            }
        }
        Some(TopicShare { topic, base, members: parts, free })
    }

    /// Hands out free queues: first until everybody has `base`, then (`extra`) one more each.
    fn fill(&mut self, totals: &mut [usize], extra: bool) {
        let limit = self.base + usize::from(extra);
        let mut open: Vec<&mut Part> =
            self.members.iter_mut().filter(|part| part.queues.len() < limit).collect();
        open.sort_by_key(|part| totals[part.member]);
        for part in open {
            while part.queues.len() < limit {
                let Some(queue) = self.free.pop_first() else {
                    return;
                };
                part.queues.insert(queue);
                totals[part.member] += 1;
            }
        }
    }

    /// Moves queues over the base from members with much to members with little in all.
    fn even_out(&mut self, totals: &mut [usize]) -> bool {
        let mut moved = false;
        loop {
            let base = self.base;
            let rich = (0..self.members.len())
                .filter(|&part| self.members[part].queues.len() > base)
                .max_by_key(|&part| totals[self.members[part].member]);
            let poor = (0..self.members.len())
                .filter(|&part| self.members[part].queues.len() == base)
                .min_by_key(|&part| totals[self.members[part].member]);
            let (Some(rich), Some(poor)) = (rich, poor) else {
                return moved;
            };
            let (from, to) = (self.members[rich].member, self.members[poor].member);
            if totals[from] < totals[to] + 2 {
                return moved;
            }
            let queue = self.members[rich].queues.pop_last();
            self.members[poor].queues.extend(queue);
            totals[from] -= 1;
            totals[to] += 1;
            moved = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Topics = BTreeMap<Arc<str>, u32>;

    /// A group whose members come, go and change their minds.
    #[derive(Debug, Clone, Default)]
    struct Group {
        members: Vec<(BTreeSet<Arc<str>>, Queues)>,
    }

    impl Group {
        fn rebalance(&mut self, topics: &Topics) -> usize {
            let members: Vec<Subscriber<'_>> =
                self.members.iter().map(|(topics, has)| Subscriber { topics, has }).collect();
            let assigned = assign(&members, topics);
            let mut moved = 0;
            for ((_, has), assigned) in self.members.iter_mut().zip(assigned) {
                moved += pairs(&assigned).difference(&pairs(has)).count();
                *has = assigned;
            }
            moved
        }

        fn check(&self, topics: &Topics) {
            let mut seen = BTreeSet::new();
            for (wanted, has) in &self.members {
                for (topic, queue) in pairs(has) {
                    assert!(wanted.contains(&topic), "a member got a topic it has not asked for");
                    assert!(queue < topics[&topic], "a queue that does not exist");
                    assert!(seen.insert((topic, queue)), "a queue twice");
                }
            }
            for (topic, &queues) in topics {
                let counts: Vec<usize> = self
                    .members
                    .iter()
                    .filter(|(wanted, _)| wanted.contains(topic))
                    .map(|(_, has)| has.get(topic).map_or(0, BTreeSet::len))
                    .collect();
                if let (Some(max), Some(min)) = (counts.iter().max(), counts.iter().min()) {
                    assert!(max - min <= 1, "{topic} is shared unevenly: {counts:?}");
                    assert_eq!(counts.iter().sum::<usize>(), queues as usize, "{topic} incomplete");
                }
            }
            for (wanted, has) in &self.members {
                for (other_wanted, other_has) in &self.members {
                    let (a, b) = (pairs(has).len(), pairs(other_has).len());
                    assert!(
                        wanted != other_wanted || a.abs_diff(b) <= 1,
                        "unequal totals {a}, {b}"
                    );
                }
            }
        }
    }

    fn pairs(queues: &Queues) -> BTreeSet<(Arc<str>, u32)> {
        queues
            .iter()
            .flat_map(|(topic, queues)| queues.iter().map(|&queue| (Arc::clone(topic), queue)))
            .collect()
    }

    fn topic_set(bits: u8, topics: &Topics) -> BTreeSet<Arc<str>> {
        let chosen = topics.keys().enumerate().filter(|(i, _)| bits & (1 << i) != 0);
        chosen.map(|(_, topic)| Arc::clone(topic)).collect()
    }

    fn topics(queues: &[u32]) -> Topics {
        queues.iter().enumerate().map(|(i, &n)| (Arc::from(format!("t{i}")), n)).collect()
    }

    proptest! {
        #[test]
        fn any_history_ends_complete_even_and_stable(
            mut counts in proptest::collection::vec(0_u32..20, 1..6),
            steps in proptest::collection::vec((0_u8..5, any::<u8>(), any::<proptest::sample::Index>()), 1..25),
        ) {
            let mut group = Group::default();
            for (step, bits, index) in steps {
                let size = group.members.len();
                match step {
                    0 | 1 => group.members.push((topic_set(bits, &topics(&counts)), Queues::new())),
                    2 if size > 0 => drop(group.members.remove(index.index(size))),
                    3 if size > 0 => {
                        group.members[index.index(size)].0 = topic_set(bits, &topics(&counts));
                    }
                    _ => {
                        let topic = index.index(counts.len());
                        counts[topic] = if bits < 50 { 0 } else { counts[topic] + u32::from(bits % 5) };
                    }
                }
                let topics = topics(&counts);
                group.rebalance(&topics);
                group.check(&topics);
                prop_assert_eq!(group.clone().rebalance(&topics), 0, "nothing moves without a reason");
            }
        }

        #[test]
        fn a_newcomer_takes_its_share_and_nothing_else_moves(
            counts in proptest::collection::vec(0_u32..40, 1..6), members in 1_usize..9,
        ) {
            let topics = topics(&counts);
            let all = topic_set(u8::MAX, &topics);
            let mut group = Group { members: vec![(all.clone(), Queues::new()); members] };
            group.rebalance(&topics);
            group.members.push((all, Queues::new()));
            let moved = group.rebalance(&topics);
            let got = pairs(&group.members[members].1).len();
            // Evenness within a topic can make an old member give one and take another.
            prop_assert!(moved <= got + counts.len(), "{} moved, {} taken", moved, got);
        }

        #[test]
        fn with_one_topic_exactly_the_share_of_the_newcomer_or_the_leaver_moves(
            queues in 0_u32..200, members in 2_usize..12, leaver: proptest::sample::Index,
        ) {
            let topics = topics(&[queues]);
            let all = topic_set(1, &topics);
            let mut group = Group { members: vec![(all.clone(), Queues::new()); members] };
            group.rebalance(&topics);
            let (_, lost) = group.members.remove(leaver.index(members));
            prop_assert_eq!(group.rebalance(&topics), pairs(&lost).len());
            group.members.push((all, Queues::new()));
            let moved = group.rebalance(&topics);
            prop_assert_eq!(moved, pairs(&group.members[members - 1].1).len());
        }
    }

    #[test]
    fn ten_thousand_queues_among_a_hundred_members_take_milliseconds() {
        let topics = topics(&[8; 1250]);
        let all: BTreeSet<Arc<str>> = topics.keys().cloned().collect();
        let mut group = Group { members: vec![(all, Queues::new()); 100] };
        let begin = std::time::Instant::now();
        group.rebalance(&topics);
        assert!(begin.elapsed().as_millis() < 2_000, "{:?}", begin.elapsed());
        group.members.pop();
        let moved = group.rebalance(&topics);
        assert!((100..110).contains(&moved), "what the leaver had and hardly more: {moved}");
    }
}
