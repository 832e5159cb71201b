//! What `verify` finds in a damaged store, and what `salvage` makes of it.
#![allow(clippy::unwrap_used)]

#[path = "support/store.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longwire_storage::*;
use support::*;

const MESSAGES: u64 = 600;

/// A closed store with two queues of numbered messages over several segments, and a commit.
fn closed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let topic = topic(&store, "t", 2);
    for i in 0..MESSAGES {
        append_bodies(&store, &topic.queue((i % 2) as u32).unwrap(), &[&body(i)]);
    }
    let committed = CommittedOffset { topic: "t".into(), queue: 1, offset: 17 };
    let end = store.commit_offsets("g", &[committed]).unwrap();
    store.flushed_blocking(end).unwrap();
    store.close().unwrap();
    dir
}

/// Every file below a folder with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => drop(all.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    all
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    files(&dir.join("commitlog")).into_keys().collect()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// The messages of both queues after a salvage, by number.
fn salvaged(dir: &Path) -> (Verified, BTreeMap<u64, Vec<u8>>) {
    let before = files(dir);
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("saved");
    let verified = salvage(dir, &to).unwrap();
    assert!(files(dir) == before, "the original has not changed");
    let store = Store::open(config(&to)).unwrap();
    let topic = store.topic("t").unwrap();
    let mut messages = BTreeMap::new();
    for queue in topic.queues() {
        for (offset, body) in read_all(&store, &queue) {
            messages.insert(offset * 2 + u64::from(queue.id()), body);
        }
        let next = append_bodies(&store, &queue, &[b"next"]);
        assert!(next[0].offset > *messages.keys().last().unwrap() / 2);
    }
    assert_eq!(store.committed_offset("g", "t", 1), Some(17));
    store.close().unwrap();
    (verified, messages)
}

fn assert_all_but(messages: &BTreeMap<u64, Vec<u8>>, lost: &[u64]) {
    for i in 0..MESSAGES {
        let expected = (!lost.contains(&i)).then(|| body(i));
        assert!(messages.get(&i) == expected.as_ref(), "message {i}");
    }
}

#[test]
fn a_whole_store_is_whole_and_stays_as_it_is() {
    let dir = closed();
    let before = files(dir.path());
    let verified = verify(dir.path()).unwrap();
    assert!(files(dir.path()) == before);
    assert!(verified.is_whole() && verified.gaps.is_empty(), "{verified:?}");
    assert_eq!((verified.views.len(), verified.torn_tail), (0, None), "{verified:?}");
    assert!(verified.records >= MESSAGES + 2);
    assert_all_but(&salvaged(dir.path()).1, &[]);
}

#[test]
fn a_store_that_is_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let refused = verify(dir.path()).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { pid: Some(_), .. }), "{refused}");
    store.close().unwrap();
}

#[test]
fn a_damaged_record_is_named_and_all_others_are_salvaged() {
    let dir = closed();
    let path = &segments(dir.path())[1];
    let bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    overwrite(path, at as u64, &[bytes[at] ^ 4]);

    let verified = verify(dir.path()).unwrap();
    let [damage] = &verified.damage[..] else { panic!("{verified:?}") };
    assert_eq!(&damage.path, path);
    let base: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let byte = base + at as u64;
    assert!((damage.position..damage.position + damage.bytes).contains(&byte));
    let [lost] = &damage.messages[..] else { panic!("{damage:?}") };
    assert_eq!((&*lost.topic, lost.position), ("t", damage.position));
    let [gap] = &verified.gaps[..] else { panic!("{verified:?}") };
    assert_eq!((gap.queue, gap.first, gap.end), (lost.queue, lost.offset, lost.offset + 1));

    let (_, messages) = salvaged(dir.path());
    assert_all_but(&messages, &[lost.offset * 2 + u64::from(lost.queue)]);
}

#[test]
fn a_missing_segment_takes_only_its_own_messages() {
    let dir = closed();
    let path = segments(dir.path())[2].clone();
    fs::remove_file(&path).unwrap();
    assert!(matches!(Store::open(config(dir.path())), Err(OpenError::Corrupt { .. })));
    let verified = verify(dir.path()).unwrap();
    let [damage] = &verified.damage[..] else { panic!("{verified:?}") };
    assert_eq!(damage.path, path);
    let lost: Vec<u64> =
        damage.messages.iter().map(|m| m.offset * 2 + u64::from(m.queue)).collect();
    assert!(lost.len() > 50, "{lost:?}");
    assert_all_but(&salvaged(dir.path()).1, &lost);
}

#[test]
fn a_segment_cut_short_in_the_middle_of_the_log_loses_only_its_end() {
    let dir = closed();
    let path = segments(dir.path())[1].clone();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(40_000).unwrap();
    let refused = Store::open(config(dir.path())).unwrap_err();
    let expected =
        "the file has a wrong size (40000 bytes, and the next one begins at position 131072)";
    assert!(matches!(&refused, OpenError::Corrupt { path: p, .. } if *p == path), "{refused}");
    assert!(refused.to_string().contains(expected), "{refused}");
    let (verified, messages) = salvaged(dir.path());
    assert!(verified.damage.iter().all(|damage| damage.path == path), "{verified:?}");
    assert_eq!(verified.damage.last().unwrap().reason, expected);
    let lost: Vec<u64> = verified
        .damage
        .iter()
        .flat_map(|damage| &damage.messages)
        .map(|m| m.offset * 2 + u64::from(m.queue))
        .collect();
    assert!(!lost.is_empty());
    assert_all_but(&messages, &lost);
}

#[test]
fn a_copy_into_the_store_itself_is_refused_whatever_leads_there() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store.partial");
    fs::rename(closed().keep(), &dir).unwrap();
    let link = home.path().join("link");
    std::os::unix::fs::symlink(dir.join("consumequeue"), &link).unwrap();
    // What is in the way in `commitlog` could be the very file that is lost.
    fs::remove_file(&segments(&dir)[0]).unwrap();
    let before = files(&dir);
    for to in [
        dir.join("sub"),
        dir.join("new/sub/"),
        dir.join("commitlog/../sub"),
        link.join("sub"),
        home.path().join("store"), // being made in the store's place
    ] {
        let refused = salvage(&dir, &to).unwrap_err();
        assert!(matches!(refused, SalvageError::Inside(_)), "{}: {refused}", to.display());
        assert!(files(&dir) == before, "{}", to.display());
    }
    salvage(&dir, &home.path().join("store.partial2")).unwrap();
    assert!(files(&dir) == before);
}

#[test]
fn damaged_views_are_named_and_do_not_matter() {
    let dir = closed();
    let index = dir.path().join("consumequeue/t/0-00000000000000000000");
    overwrite(&index, 100, &[0xFF; 8]);
    let verified = verify(dir.path()).unwrap();
    assert!(verified.is_whole());
    let named = |what: &str| verified.views.iter().any(|line| line.contains(what));
    assert!(named("its checksum is wrong") && named("t/0: 1 entries are wrong"), "{verified:?}");
    assert_all_but(&salvaged(dir.path()).1, &[]);

    fs::write(dir.path().join("views.redb"), [7; 5000]).unwrap();
    let verified = verify(dir.path()).unwrap();
    assert!(verified.is_whole() && verified.views[0].contains("views.redb"), "{verified:?}");
    assert_all_but(&salvaged(dir.path()).1, &[]);
}

#[test]
fn damage_below_the_checkpoint_stops_a_start_only_where_views_need_it() {
    let dir = closed();
    let path = &segments(dir.path())[1];
    let byte = fs::read(path).unwrap()[30_000];
    overwrite(path, 30_000, &[byte ^ 1]);
    Store::open(config(dir.path())).unwrap().close().unwrap();
    fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
    let refused = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(&refused, OpenError::Corrupt { path: p, .. } if p == path), "{refused}");
    assert!(refused.to_string().contains("--salvage"), "{refused}");
}

#[test]
fn the_oldest_segment_cannot_go_missing_unnoticed() {
    let dir = closed();
    let path = segments(dir.path())[0].clone();
    fs::remove_file(&path).unwrap();
    let refused = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(&refused, OpenError::Corrupt { path: p, .. } if *p == path), "{refused}");
    let verified = verify(dir.path()).unwrap();
    assert_eq!(verified.damage[0].path, path, "{verified:?}");
    assert!(verified.damage[0].messages.len() > 50);
}

#[test]
fn the_newest_segment_cannot_go_missing_unnoticed() {
    let dir = closed();
    let end = verify(dir.path()).unwrap().end_position;
    let base =
        |path: &PathBuf| -> u64 { path.file_name().unwrap().to_str().unwrap().parse().unwrap() };
    let (written, ready): (Vec<_>, Vec<_>) =
        segments(dir.path()).into_iter().partition(|path| base(path) < end);
    let newest = written.last().unwrap();
    ready.iter().chain([newest]).for_each(|path| fs::remove_file(path).unwrap());
    let refused = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(&refused, OpenError::Corrupt { path, .. } if path == newest), "{refused}");
    let verified = verify(dir.path()).unwrap();
    let [damage] = &verified.damage[..] else { panic!("{verified:?}") };
    assert_eq!((&damage.path, damage.position + damage.bytes), (newest, end));
    assert!(!damage.messages.is_empty());
}

#[test]
fn views_of_a_log_whose_beginning_retention_has_removed_are_not_called_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let eager = StoreConfig {
        retention_check_interval: Duration::from_millis(5),
        retention_bytes: Some(256 << 10),
        ..config(dir.path())
    };
    let store = Store::open(eager).unwrap();
    let filler = topic(&store, "filler", 1).queue(0).unwrap();
    let fill = || _ = append_bodies(&store, &filler, &[&[7; 4096][..]; 4]);
    topic(&store, "t", 1);
    // Into another segment than the topic's own record, which is carried behind it.
    while store.stats().segments < 2 {
        fill();
    }
    let at = CommittedOffset { topic: "t".into(), queue: 0, offset: 3 };
    assert_eq!(store.stats().first_position, 0);
    store.commit_offsets("g", &[at]).unwrap();
    while store.stats().first_position == 0 {
        fill();
    }
    store.close().unwrap();
    let verified = verify(dir.path()).unwrap();
    assert!(verified.is_whole() && verified.views.is_empty(), "{verified:?}");
}

/// A closed store in which queue 1 of t ends, and a group commits, before queue 0 begins.
fn two_ends() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let topic = topic(&store, "t", 2);
    for (queue, count) in [(1, 20), (0, 30)] {
        for i in 0..count {
            append_bodies(&store, &topic.queue(queue).unwrap(), &[&body(i)]);
        }
        if queue == 1 {
            let committed = CommittedOffset { topic: "t".into(), queue: 1, offset: 20 };
            let end = store.commit_offsets("g", &[committed]).unwrap();
            store.flushed_blocking(end).unwrap();
            // Alone it would be taken for the creation, and hide what comes before.
            let update = TopicUpdate { retention_ms: Some(86_400_000), ..TopicUpdate::default() };
            store.update_topic("t", update).unwrap();
        }
    }
    store.close().unwrap();
    dir
}

/// The first record with this text in it: its segment, and where the text is.
fn find(dir: &Path, text: &[u8]) -> (PathBuf, u64) {
    let path = segments(dir).remove(0);
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    (path, at as u64)
}

fn salvage_of(dir: &Path) -> (tempfile::TempDir, std::sync::Arc<Store>) {
    let home = tempfile::tempdir().unwrap();
    // As a shell completes it.
    let to = home.path().join("saved/");
    salvage(dir, &to).unwrap();
    let store = Store::open(config(&to)).unwrap();
    (home, store)
}

#[test]
fn a_topic_or_commit_whose_record_is_lost_is_salvaged_with_all_messages() {
    for text in [&b"%SYS%TOPICS"[..], b"%SYS%OFFSETS"] {
        let dir = two_ends();
        let (path, at) = find(dir.path(), text);
        overwrite(&path, at, b"?");
        assert!(!verify(dir.path()).unwrap().is_whole());
        let (_home, store) = salvage_of(dir.path());
        let topic = store.topic("t").expect("the topic");
        for (queue, messages) in [(1, 20), (0, 30)] {
            let queue = topic.queue(queue).unwrap();
            assert_eq!(read_all(&store, &queue), numbered(0..messages));
        }
        assert_eq!(store.committed_offset("g", "t", 1), Some(20));
    }
}

#[test]
fn offsets_of_lost_messages_at_a_queues_end_are_not_given_again() {
    let dir = two_ends();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = store.topic("t").unwrap().queue(1).unwrap();
    let last = store.plan_read(&queue, 19, 1, &TagFilter::All, IndexRead::MayBlock).unwrap();
    let position = last.ranges[0].position();
    drop(last);
    store.close().unwrap();
    drop((queue, store));
    let path = segments(dir.path()).remove(0);
    overwrite(&path, position + 20, &[0xFF]);
    let (home, store) = salvage_of(dir.path());
    let queue = store.topic("t").unwrap().queue(1).unwrap();
    assert_eq!(read_all(&store, &queue), numbered(0..19));
    store.close().unwrap();
    drop((queue, store));
    // Also after another start.
    let store = Store::open(config(&home.path().join("saved"))).unwrap();
    let queue = store.topic("t").unwrap().queue(1).unwrap();
    assert_eq!(append_bodies(&store, &queue, &[b"next"])[0].offset, 20, "19 is lost");
    assert_eq!(read_from(&store, &queue, 19), [(20, b"next".to_vec())]);
    // What is lost has the time of what follows.
    assert_eq!(store.offset_at_time(&queue, i64::MAX).unwrap(), 21);
}

#[test]
fn a_topic_that_was_created_again_has_no_wrong_entries() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    for _ in 0..2 {
        let queue = topic(&store, "t", 1).queue(0).unwrap();
        append_numbered(&store, &queue, 0..10);
        store.delete_topic("t").unwrap();
    }
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    append_numbered(&store, &queue, 0..10);
    store.close().unwrap();
    assert_eq!(verify(dir.path()).unwrap().views, Vec::<String>::new());
}

#[test]
fn a_torn_tail_is_no_damage_even_with_whole_records_behind_it() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let never = StoreConfig { flush_interval: Duration::from_secs(3600), ..config(dir.path()) };
    let store = Store::open(never).unwrap();
    let topic = TopicConfig { durability: Durability::Write, ..TopicConfig::new("t", 1) };
    let queue = store.create_topic(topic).unwrap().queue(0).unwrap();
    let append = |i| {
        let mut bytes = records("t", 0, &[&body(i)]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run).unwrap()[0]
    };
    let extents = [0, 1, 2].map(append);
    copy_dir(dir.path(), crashed.path());
    store.close().unwrap();
    // As written back out of order: the second of the three is not there.
    overwrite(&segments(crashed.path())[0], extents[1].position, &[0; 8]);

    let verified = verify(crashed.path()).unwrap();
    assert_eq!(verified.torn_tail, Some(extents[1].position), "{verified:?}");
    assert!(verified.is_whole(), "{verified:?}");
    let store = Store::open(config(crashed.path())).unwrap();
    assert_eq!(store.topic("t").unwrap().queue(0).unwrap().max_offset(), 1, "it was cut");
}
