//! Records: parsed from anything, encoded from parts, sealed.

use std::net::SocketAddr;

use longwire_proto::record::{self, Placement, RecordDraft, RecordView};

use super::input::Input;

pub(super) fn run(data: &[u8]) {
    if let Ok(view) = RecordView::parse(data) {
        read_all(&view, data);
        if view.has_checksum() {
            seal(&view, 7, 4096);
        }
    }
    encode(&mut Input(data));
}

/// Every accessor of a record that was accepted stays inside it.
fn read_all(view: &RecordView<'_>, data: &[u8]) {
    assert!(view.bytes() == &data[..view.size()]);
    assert_eq!(RecordView::size_of(data), Ok(view.size()));
    assert_eq!(&view.bytes()[view.body_range()], view.body());
    let listed = view.properties().count();
    assert!(listed <= view.properties_range().len());
    let last = view.properties().filter(|(name, _)| *name == "TAGS").last();
    assert_eq!(view.tag(), last.map(|(_, value)| value));
    if view.tag().is_none() {
        assert_eq!(view.tag_hash(), 0);
    }
    let _ = (view.born_host(), view.store_host(), view.flag(), view.reconsume_times());
    let _ = (view.prepared_transaction_offset(), view.born_timestamp_ms(), view.sys_flag());
    let _ = (view.verify_body(), view.verify_checksum(), format!("{view:?}"));
}

/// Sealing changes the broker's fields and nothing else.
fn seal(view: &RecordView<'_>, offset: u64, position: u64) {
    let mut sealed = view.bytes().to_vec();
    let store_host = SocketAddr::from(([10, 0, 0, 2], 7650));
    let placement = Placement { offset, position, store_timestamp_ms: 99, store_host };
    record::seal(&mut sealed, &placement);
    let sealed = RecordView::parse(&sealed).expect("a sealed record is one");
    assert_eq!(sealed.verify_checksum(), Ok(()));
    assert_eq!((sealed.offset(), sealed.position()), (offset, position));
    assert_eq!((sealed.store_timestamp_ms(), sealed.store_host().port()), (99, 7650));
    assert_eq!(
        (sealed.topic(), sealed.queue(), sealed.body()),
        (view.topic(), view.queue(), view.body())
    );
    assert!(sealed.properties().eq(view.properties()));
    assert_eq!(sealed.verify_body(), view.verify_body());
}

/// What can be encoded reads back as it was.
fn encode(input: &mut Input<'_>) {
    let hosts = input.byte();
    let born_host = match hosts & 1 {
        0 => SocketAddr::from((input.array::<4>(), input.u16())),
        _ => SocketAddr::from((input.array::<16>(), input.u16())),
    };
    let (queue, flag, sys_flag) = (input.u32(), input.u32() as i32, input.u32());
    let born_timestamp_ms = input.u64() as i64;
    let (topic, tag, keys) = (input.text(), input.text(), input.text());
    let properties = [(input.text(), input.text()), (input.text(), input.text())];
    let count = usize::from(input.byte() % 3);
    let draft = RecordDraft {
        topic,
        queue,
        flag,
        sys_flag,
        born_timestamp_ms,
        born_host,
        store_host_v6: hosts & 2 > 0,
        tag,
        keys,
        properties: &properties[..count],
        body: input.0,
    };
    let mut bytes = vec![0xEE];
    let Ok(size) = draft.encode(&mut bytes) else {
        assert_eq!(bytes, [0xEE], "nothing is written where it fails");
        return;
    };
    let view = RecordView::parse(&bytes[1..]).expect("what is encoded is a record");
    assert_eq!((view.size(), bytes.len()), (size, size + 1));
    assert!(view.has_checksum() && view.verify_body().is_ok());
    assert_eq!((view.topic(), view.queue(), view.flag()), (topic, queue, flag));
    assert_eq!((view.body(), view.born_host()), (draft.body, born_host));
    assert_eq!(view.born_timestamp_ms(), born_timestamp_ms);
    let known = [("TAGS", tag), ("KEYS", keys)].into_iter().filter(|(_, value)| !value.is_empty());
    assert!(view.properties().eq(known.chain(draft.properties.iter().copied())));
    seal(&view, u64::from(queue), u64::MAX / 3);
}
