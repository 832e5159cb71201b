//! The views that are maps: topics, groups and committed offsets.
//!
//! A view is a pure fold over the log: the same records give the same maps, from whatever checkpoint
//! the fold goes on. The maps are served from memory; [`database`](mod@database) keeps them, together
//! with the position they have reached, in one transaction per checkpoint.

pub(crate) mod database;
pub(crate) mod system_topic;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use longwire_proto::data::Durability as WireDurability;
use longwire_proto::store::{GroupRecord, OffsetsRecord, QueueOffset, TopicOffsets, TopicRecord};

use crate::queue::{Durability, TopicConfig};
use system_topic::SystemRecord;

/// A group's committed offset in one queue: the next one it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: Arc<str>,
    /// The queue.
    pub queue: u32,
    /// The next offset the group wants.
    pub offset: u64,
}

/// A value, and the position of the record that gave it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) position: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct GroupView {
    /// `None` where the group came into being by its first commit.
    pub(crate) record: Option<At<GroupRecord>>,
    pub(crate) offsets: HashMap<Arc<str>, BTreeMap<u32, At<u64>>>,
}

/// What has changed since the last checkpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    pub(crate) topics: BTreeSet<Arc<str>>,
    pub(crate) groups: BTreeSet<Arc<str>>,
    /// (group, topic) whose offsets have changed.
    pub(crate) offsets: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Changes {
    pub(crate) fn merge(&mut self, other: Changes) {
        self.topics.extend(other.topics);
        self.groups.extend(other.groups);
        self.offsets.extend(other.offsets);
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Views {
    pub(crate) topics: BTreeMap<Arc<str>, At<TopicRecord>>,
    pub(crate) groups: BTreeMap<Arc<str>, GroupView>,
    /// Every system record below this position has been folded, and none above.
    pub(crate) folded: u64,
    pub(crate) changes: Changes,
    /// Topics deleted so far, while a log whose beginning is gone is folded from its first record on.
    deleted: Option<BTreeSet<String>>,
}

/// Offsets at which queues go on at least, as their last records are gone; by topic and where that was
/// created: a new topic does not go on where a deleted one of the name ended.
pub(crate) type Floors = HashMap<(Arc<str>, u64), Vec<QueueOffset>>;

/// What a folded record means for the topics that are being served.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    None,
    /// The topic is new, or its configuration has changed.
    TopicConfigured(TopicConfig, u64),
    TopicDeleted(String),
}

impl Views {
    /// Takes what has changed out: the entries as they are now, and which they are.
    pub(crate) fn take_changes(&mut self) -> (Views, Changes) {
        let changes = std::mem::take(&mut self.changes);
        let mut taken = Views { folded: self.folded, ..Views::default() };
        for name in &changes.topics {
            if let Some(topic) = self.topics.get(name) {
                taken.topics.insert(name.clone(), topic.clone());
            }
        }
        for name in &changes.groups {
            if let Some(view) = self.groups.get(name) {
                taken.groups.entry(name.clone()).or_default().record = view.record.clone();
            }
        }
        for (group, topic) in &changes.offsets {
            if let Some(offsets) = self.groups.get(group).and_then(|view| view.offsets.get(topic)) {
                let view = taken.groups.entry(group.clone()).or_default();
                view.offsets.insert(topic.clone(), offsets.clone());
            }
        }
        (taken, changes)
    }

    /// The fold begins at the first record of a log whose beginning retention has removed.
    ///
    /// A topic's first record there need not be the one that created it. But a topic's deletion comes
    /// behind all of its records, so until one is met, what is there belongs to the topic that follows.
    pub(crate) fn begin_anew(&mut self) {
        self.deleted = Some(BTreeSet::new());
    }

    /// The fold has reached the log's end: topics that have not appeared do not exist.
    pub(crate) fn end_anew(&mut self) {
        if self.deleted.take().is_some() {
            let topics = &self.topics;
            for view in self.groups.values_mut() {
                view.offsets.retain(|topic, _| topics.contains_key(topic));
            }
        }
    }

    /// Folds the record at `position`. Records from before [`folded`](Self::folded) change nothing.
    pub(crate) fn fold(&mut self, record: SystemRecord, position: u64, end: u64) -> Effect {
        if position < self.folded {
            return Effect::None;
        }
        self.folded = end;
        match record {
            SystemRecord::Topic(record) if record.deleted => self.delete_topic(record.name),
            SystemRecord::Topic(record) => self.configure_topic(record, position),
            SystemRecord::Group(record) if record.deleted => self.delete_group(&record.name),
            SystemRecord::Group(record) => self.create_group(record, position),
            SystemRecord::Offsets(record) => self.commit(record, position),
        }
    }

    fn configure_topic(&mut self, mut record: TopicRecord, position: u64) -> Effect {
        let name: Arc<str> = record.name.as_str().into();
        let whole = record.created_position.is_some();
        let mut said_at = position;
        let created = match self.topics.get(&name) {
            Some(known) => {
                if record.floors.is_empty() {
                    record.floors = known.value.floors.clone();
                }
                // A change alone does not say where the topic begins: the record before is needed too.
                said_at = if whole { position } else { known.position };
                record.created_position.unwrap_or_else(|| created_position(known))
            }
            None if may_precede(&self.deleted, &name) => record.created_position.unwrap_or(0),
            None => record.created_position.unwrap_or(position),
        };
        record.created_position = Some(created);
        let effect = Effect::TopicConfigured(topic_config(&record), created);
        self.changes.topics.insert(name.clone());
        self.topics.insert(name, At { value: record, position: said_at });
        effect
    }

    fn delete_topic(&mut self, name: String) -> Effect {
        let key: Arc<str> = name.as_str().into();
        self.deleted.iter_mut().for_each(|deleted| _ = deleted.insert(name.clone()));
        for (group, view) in &mut self.groups {
            if view.offsets.remove(&key).is_some() {
                self.changes.offsets.insert((group.clone(), key.clone()));
            }
        }
        self.topics.remove(&key);
        self.changes.topics.insert(key);
        Effect::TopicDeleted(name)
    }

    fn create_group(&mut self, record: GroupRecord, position: u64) -> Effect {
        let name: Arc<str> = record.name.as_str().into();
        self.changes.groups.insert(name.clone());
        self.groups.entry(name).or_default().record = Some(At { value: record, position });
        Effect::None
    }

    fn delete_group(&mut self, name: &str) -> Effect {
        let name: Arc<str> = name.into();
        for topic in self.groups.remove(&name).into_iter().flat_map(|view| view.offsets) {
            self.changes.offsets.insert((name.clone(), topic.0));
        }
        self.changes.groups.insert(name);
        Effect::None
    }

    fn commit(&mut self, record: OffsetsRecord, position: u64) -> Effect {
        let group: Arc<str> = record.group.as_str().into();
        if !self.groups.contains_key(&group) {
            self.changes.groups.insert(group.clone());
        }
        let view = self.groups.entry(group.clone()).or_default();
        for TopicOffsets { topic, queues } in record.topics {
            let topic: Arc<str> = match self.topics.get_key_value(topic.as_str()) {
                Some((topic, _)) => topic.clone(),
                None if may_precede(&self.deleted, &topic) => topic.into(),
                // A commit for a topic that has been deleted is void.
                None => continue,
            };
            let offsets = view.offsets.entry(topic.clone()).or_default();
            for QueueOffset { queue, offset } in queues {
                offsets.insert(queue, At { value: offset, position });
            }
            self.changes.offsets.insert((group.clone(), topic.clone()));
        }
        Effect::None
    }

    /// Everything a group has committed.
    pub(crate) fn committed(&self, group: &str) -> Vec<CommittedOffset> {
        let offsets = self.groups.get(group).into_iter().flat_map(|view| &view.offsets);
        let flat = offsets.flat_map(|(topic, queues)| {
            queues.iter().map(|(&queue, at)| {
                let topic = topic.clone();
                CommittedOffset { topic, queue, offset: at.value }
            })
        });
        flat.collect()
    }

    /// The records that say again what only records below `position` say now: what has to be
    /// appended anew before that part of the log can go. `floors` are the ends of the queues that
    /// will have no record left, by topic.
    pub(crate) fn carried_forward(&self, position: u64, floors: &Floors) -> Vec<SystemRecord> {
        let mut records = Vec::new();
        for (name, topic) in &self.topics {
            let floors = floors.get(&(name.clone(), created_position(topic)));
            let record = with_floors(&topic.value, floors.map_or(&[], |floors| floors));
            if topic.position < position || record.floors != topic.value.floors {
                records.push(SystemRecord::Topic(record));
            }
        }
        for (name, view) in &self.groups {
            let record = match &view.record {
                Some(at) => (at.position < position).then(|| at.value.clone()),
                // It came into being by a commit of which nothing is left: nothing else says so.
                None => view
                    .offsets
                    .values()
                    .all(BTreeMap::is_empty)
                    .then(|| GroupRecord { name: name.to_string(), ..GroupRecord::default() }),
            };
            records.extend(record.map(SystemRecord::Group));
            // A record for each topic: those of all might be too large for one.
            for (topic, queues) in &view.offsets {
                let old = queues.iter().filter(|(_, at)| at.position < position);
                let queues = old.map(|(&queue, at)| QueueOffset { queue, offset: at.value });
                records.extend(offsets_record(name, topic, queues.collect()));
            }
        }
        records
    }

    /// The records that make of `other` what these views are, with `floors` added.
    pub(crate) fn changes_from(&self, other: &Views, floors: &Floors) -> Vec<SystemRecord> {
        let gone = other.topics.keys().filter(|name| !self.topics.contains_key(*name));
        let mut records: Vec<SystemRecord> = gone
            .map(|name| TopicRecord { name: name.to_string(), deleted: true, ..Default::default() })
            .map(SystemRecord::Topic)
            .collect();
        for (name, topic) in &self.topics {
            let floors = floors.get(&(name.clone(), created_position(topic)));
            let record = with_floors(&topic.value, floors.map_or(&[], |floors| floors));
            if other.topics.get(name).is_none_or(|known| known.value != record) {
                records.push(SystemRecord::Topic(record));
            }
        }
        let gone = other.groups.keys().filter(|name| !self.groups.contains_key(*name));
        records.extend(gone.map(|name| {
            let name = name.to_string();
            SystemRecord::Group(GroupRecord { name, deleted: true, created_ms: 0 })
        }));
        for (name, view) in &self.groups {
            let known = other.groups.get(name);
            let made = GroupRecord { name: name.to_string(), ..GroupRecord::default() };
            let record = view.record.as_ref().map(|at| &at.value);
            if known.is_none_or(|known| known.record.as_ref().map(|at| &at.value) != record) {
                records.push(SystemRecord::Group(record.cloned().unwrap_or(made)));
            }
            for (topic, queues) in &view.offsets {
                let known = known.and_then(|known| known.offsets.get(topic));
                let is_known = |queue, at: &At<u64>| {
                    known.and_then(|known| known.get(queue)).is_some_and(|k| k.value == at.value)
                };
                let lost = queues.iter().filter(|(queue, at)| !is_known(*queue, at));
                let queues = lost.map(|(&queue, at)| QueueOffset { queue, offset: at.value });
                records.extend(offsets_record(name, topic, queues.collect()));
            }
        }
        records
    }
}

/// What a group has committed in a topic; `None` for nothing.
fn offsets_record(group: &str, topic: &str, queues: Vec<QueueOffset>) -> Option<SystemRecord> {
    (!queues.is_empty()).then(|| {
        let topics = vec![TopicOffsets { topic: topic.to_owned(), queues }];
        SystemRecord::Offsets(OffsetsRecord { group: group.to_owned(), topics })
    })
}

/// A topic's record, with floors that are higher than those it has.
fn with_floors(record: &TopicRecord, floors: &[QueueOffset]) -> TopicRecord {
    let mut highest = BTreeMap::new();
    for floor in record.floors.iter().chain(floors) {
        let highest: &mut u64 = highest.entry(floor.queue).or_default();
        *highest = floor.offset.max(*highest);
    }
    let floors = highest.into_iter().map(|(queue, offset)| QueueOffset { queue, offset }).collect();
    TopicRecord { floors, ..record.clone() }
}

/// Whether a topic that is not known may have been created before the first record of the log.
fn may_precede(deleted: &Option<BTreeSet<String>>, topic: &str) -> bool {
    deleted.as_ref().is_some_and(|deleted| !deleted.contains(topic))
}

/// Records of a topic before this position belong to an earlier topic of the same name.
pub(crate) fn created_position(topic: &At<TopicRecord>) -> u64 {
    topic.value.created_position.unwrap_or(topic.position)
}

pub(crate) fn topic_config(record: &TopicRecord) -> TopicConfig {
    let write = record.durability == WireDurability::Write as u32;
    TopicConfig {
        name: record.name.clone(),
        queues: record.queues,
        durability: if write { Durability::Write } else { Durability::Flush },
        retention_ms: record.retention_ms,
        retention_bytes: record.retention_bytes,
        created_ms: record.created_ms,
    }
}

pub(crate) fn topic_record(config: &TopicConfig) -> TopicRecord {
    let durability = match config.durability {
        Durability::Write => WireDurability::Write,
        Durability::Flush => WireDurability::Flush,
    };
    TopicRecord {
        name: config.name.clone(),
        deleted: false,
        queues: config.queues,
        durability: durability as u32,
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        created_ms: config.created_ms,
        created_position: None,
        floors: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, queues: u32) -> SystemRecord {
        SystemRecord::Topic(TopicRecord { name: name.into(), queues, ..Default::default() })
    }

    fn commit(group: &str, topic: &str, offset: u64) -> SystemRecord {
        let queues = vec![QueueOffset { queue: 0, offset }];
        let topics = vec![TopicOffsets { topic: topic.into(), queues }];
        SystemRecord::Offsets(OffsetsRecord { group: group.into(), topics })
    }

    #[test]
    fn folding_from_any_point_again_gives_the_same_maps() {
        let log = [
            topic("a", 1),
            commit("g", "a", 5),
            topic("a", 2),
            SystemRecord::Topic(TopicRecord {
                name: "a".into(),
                deleted: true,
                ..Default::default()
            }),
            topic("a", 3),
            commit("g", "a", 1),
        ];
        let mut views = Views::default();
        for (i, record) in log.iter().enumerate() {
            views.fold(record.clone(), i as u64 * 10, i as u64 * 10 + 10);
        }
        let once = format!("{:?}{:?}", views.topics, views.groups);
        for (i, record) in log.iter().enumerate() {
            assert_eq!(views.fold(record.clone(), i as u64 * 10, i as u64 * 10 + 10), Effect::None);
        }
        assert_eq!(format!("{:?}{:?}", views.topics, views.groups), once);
        assert_eq!(
            views.topics["a"].value.created_position,
            Some(40),
            "the second topic of that name"
        );
        assert_eq!(views.committed("g")[0].offset, 1);
    }

    #[test]
    fn what_is_carried_forward_rebuilds_the_same_maps() {
        let mut views = Views::default();
        views.fold(topic("a", 4), 0, 10);
        views.fold(commit("g", "a", 7), 10, 20);
        views.fold(commit("g", "a", 9), 20, 30);
        assert_eq!(
            views.carried_forward(20, &HashMap::new()).len(),
            1,
            "the newer commit needs no carrying"
        );

        let carried = views.carried_forward(30, &HashMap::new());
        let mut rebuilt = Views::default();
        for (i, record) in carried.into_iter().enumerate() {
            rebuilt.fold(record, 100 + i as u64, 101 + i as u64);
        }
        assert_eq!(rebuilt.committed("g"), views.committed("g"));
        assert_eq!(rebuilt.topics["a"].value, views.topics["a"].value);
    }

    /// Folds records that stand 10 apart, from one of them on.
    fn fold_from(log: &[SystemRecord], first: usize) -> Views {
        let mut views = Views::default();
        views.begin_anew();
        for (i, record) in log.iter().enumerate().skip(first) {
            views.fold(record.clone(), i as u64 * 10, i as u64 * 10 + 10);
        }
        views.end_anew();
        views
    }

    #[test]
    fn what_was_changed_since_is_whole_after_the_beginning_is_gone() {
        let mut log = vec![topic("a", 1), commit("g", "a", 5), topic("a", 2), commit("g", "a", 6)];
        let views = fold_from(&log, 0);
        log.extend(views.carried_forward(10, &HashMap::new()));
        let rebuilt = fold_from(&log, 1);
        assert_eq!(rebuilt.topics["a"].value, views.topics["a"].value);
        assert_eq!(rebuilt.committed("g"), views.committed("g"));
        let continued = log.iter().enumerate().skip(4).fold(views, |mut views, (i, record)| {
            views.fold(record.clone(), i as u64 * 10, i as u64 * 10 + 10);
            views
        });
        let again = continued.carried_forward(40, &HashMap::new());
        assert!(again.iter().all(|r| !matches!(r, SystemRecord::Topic(_))), "once is enough");
    }

    #[test]
    fn a_group_outlives_the_commit_that_made_it() {
        let gone = TopicRecord { name: "a".into(), deleted: true, ..Default::default() };
        let mut log = vec![topic("a", 1), commit("g", "a", 5), SystemRecord::Topic(gone)];
        log.extend(fold_from(&log, 0).carried_forward(30, &HashMap::new()));
        assert!(fold_from(&log, 3).groups.contains_key("g"));
    }

    #[test]
    fn a_topic_whose_beginning_is_gone_has_all_records_behind_the_last_deletion() {
        let gone = TopicRecord { name: "a".into(), deleted: true, ..Default::default() };
        let log = [commit("g", "a", 5), topic("a", 2), commit("g", "b", 1)];
        let views = fold_from(&log, 0);
        assert_eq!(views.topics["a"].value.created_position, Some(0));
        assert_eq!(views.committed("g").len(), 1, "there is no topic b");
        let log =
            [commit("g", "a", 5), SystemRecord::Topic(gone), commit("g", "a", 6), topic("a", 2)];
        let views = fold_from(&log, 0);
        assert_eq!(views.topics["a"].value.created_position, Some(30));
        assert_eq!(views.committed("g"), []);
    }
}
