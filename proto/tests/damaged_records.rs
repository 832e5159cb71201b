//! A record is either read as it was written or refused: flipped bits, missing bytes, lying lengths
//! and arbitrary bytes never pass, and never panic.
#![allow(clippy::unwrap_used)]

#[path = "support/hex.rs"]
mod hex;

use std::net::{IpAddr, SocketAddr};

use longwire_proto::ErrorCode;
use longwire_proto::limits::{BODY_BYTES_MAX, PROPERTIES_BYTES_MAX, RECORD_BYTES_MAX};
use longwire_proto::record::{
    self, EncodeError, Placement, RecordDraft, RecordError, RecordView, property,
};
use proptest::prelude::*;

fn placement(store_host: SocketAddr) -> Placement {
    Placement {
        offset: 7,
        position: 0x4000_0000,
        store_timestamp_ms: 1_700_000_000_123,
        store_host,
    }
}

fn sealed(draft: &RecordDraft<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    draft.encode(&mut bytes).unwrap();
    let store_host = if draft.store_host_v6 { "[fe80::2]:10911" } else { "10.0.0.2:10911" };
    record::seal(&mut bytes, &placement(store_host.parse().unwrap()));
    bytes
}

/// Two records that between them have every part a record can have.
fn samples() -> [Vec<u8>; 2] {
    let small =
        RecordDraft { topic: "TopicTest", body: b"hello", tag: "TagA", ..Default::default() };
    let large = RecordDraft {
        topic: "TopicTest",
        queue: 3,
        born_host: "[2001:db8::1]:54321".parse().unwrap(),
        store_host_v6: true,
        keys: "k1 k2",
        properties: &[("a", "b"), ("é", "value")],
        body: &[0x02; 64],
        ..Default::default()
    };
    [sealed(&small), sealed(&large)]
}

/// What a reader does before it believes a record.
fn read(bytes: &[u8]) -> Result<(), RecordError> {
    let view = RecordView::parse(bytes)?;
    view.verify_checksum()
}

/// Calls everything a parsed record can be asked.
fn touch_everything(view: &RecordView<'_>) {
    assert_eq!(view.bytes().len(), view.size());
    assert!(view.size() <= RECORD_BYTES_MAX);
    assert_eq!(view.body(), &view.bytes()[view.body_range()]);
    let _ = (view.topic(), view.queue(), view.flag(), view.offset(), view.position());
    let _ = (view.sys_flag(), view.born_timestamp_ms(), view.store_timestamp_ms());
    let _ = (view.born_host(), view.store_host(), view.reconsume_times());
    let _ = (view.prepared_transaction_offset(), view.tag(), view.tag_hash());
    let _ = (view.verify_body(), view.verify_checksum(), format!("{view:?}"));
    for (name, value) in view.properties() {
        assert!(!name.is_empty() && !value.is_empty() && name != property::CHECKSUM);
    }
}

#[test]
fn every_flipped_bit_of_a_sealed_record_is_detected() {
    for mut bytes in samples() {
        assert_eq!(read(&bytes), Ok(()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {} of byte {} went unnoticed", bit % 8, bit / 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_flipped_bit_is_detected_in_a_log_too_where_other_records_follow() {
    let [first, second] = samples();
    let mut log = [first.as_slice(), &second, &second].concat();
    for bit in 0..first.len() * 8 {
        log[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&log).is_err(), "bit {} of byte {} went unnoticed", bit % 8, bit / 8);
        log[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn every_truncation_is_refused() {
    for bytes in samples() {
        for end in 0..bytes.len() {
            let error = RecordView::parse(&bytes[..end]).unwrap_err();
            assert!(matches!(error, RecordError::Short { have, .. } if have == end), "{error}");
        }
    }
}

#[test]
fn what_follows_a_record_is_left_alone() {
    for bytes in samples() {
        let followed = [bytes.as_slice(), b"the next record"].concat();
        assert_eq!(RecordView::parse(&followed).unwrap().bytes(), bytes);
    }
}

#[test]
fn a_record_that_was_never_sealed_does_not_pass_for_one() {
    let mut bytes = Vec::new();
    let draft = RecordDraft { topic: "TopicTest", body: b"hello", ..Default::default() };
    draft.encode(&mut bytes).unwrap();
    assert_eq!(read(&bytes), Err(RecordError::Checksum));
}

#[test]
fn sizes_outside_the_limits_are_refused_from_the_first_eight_bytes() {
    for (hex, size) in [
        ("00000000 daa320a7", 0),
        ("0000005a daa320a7", 90),
        ("00410001 daa320a7", RECORD_BYTES_MAX + 1),
        ("ffffffff daa320ab", u32::MAX as usize),
    ] {
        assert_eq!(RecordView::size_of(&hex::bytes(hex)), Err(RecordError::Size(size)));
    }
    for (hex, size) in [("0000005b daa320a7", 91), ("00410000 daa320ab", RECORD_BYTES_MAX)] {
        assert_eq!(RecordView::size_of(&hex::bytes(hex)), Ok(size));
    }
    assert_eq!(RecordView::size_of(&[0; 8]), Err(RecordError::Magic(0)));
    assert_eq!(RecordView::size_of(&[0; 7]), Err(RecordError::Short { have: 7, need: 91 }));
}

#[test]
fn damage_bad_structure_and_excess_have_their_own_codes() {
    let too_large = RecordError::TooLarge { part: "body", bytes: 9, max: 8 };
    for (error, code) in [
        (RecordError::Checksum, ErrorCode::CorruptRecord),
        (RecordError::BodyChecksum, ErrorCode::CorruptRecord),
        (too_large, ErrorCode::MessageTooLarge),
        (RecordError::Size(RECORD_BYTES_MAX + 1), ErrorCode::MessageTooLarge),
        (RecordError::Size(90), ErrorCode::InvalidRecord),
        (RecordError::Lengths(143), ErrorCode::InvalidRecord),
        (RecordError::NoChecksum, ErrorCode::InvalidRecord),
    ] {
        assert_eq!(error.code(), code, "{error}");
    }
}

/// A record whose topic and property lengths are as given, whatever they are.
fn with_lengths(magic: u32, topic_bytes: usize, properties_bytes: usize) -> Vec<u8> {
    let mut bytes = hex::bytes(
        "00000000 00000000 00000000 00000003 00000000 0000000000000007 0000000000000000 00000000
         0000018bcfe56800 0a0000010000d431 0000018bcfe5687b 0a00000200002a9f
         00000000 0000000000000000 00000000",
    );
    match magic {
        record::MAGIC_V1 => bytes.push(topic_bytes as u8),
        _ => bytes.extend_from_slice(&(topic_bytes as u16).to_be_bytes()),
    }
    bytes.resize(bytes.len() + topic_bytes, b't');
    bytes.extend_from_slice(&(properties_bytes as u16).to_be_bytes());
    bytes.resize(bytes.len() + properties_bytes, b'p');
    let size = bytes.len() as u32;
    bytes[..4].copy_from_slice(&size.to_be_bytes());
    bytes[4..8].copy_from_slice(&magic.to_be_bytes());
    bytes
}

#[test]
fn lengths_that_rocketmq_would_read_as_negative_are_refused() {
    let part = |bytes: &[u8]| match RecordView::parse(bytes) {
        Err(RecordError::TooLarge { part, .. }) => part,
        other => panic!("{other:?}"),
    };
    assert!(RecordView::parse(&with_lengths(record::MAGIC_V1, 127, 32_767)).is_ok());
    assert_eq!(part(&with_lengths(record::MAGIC_V1, 128, 0)), "topic");
    assert_eq!(part(&with_lengths(record::MAGIC_V1, 255, 0)), "topic");
    assert_eq!(part(&with_lengths(record::MAGIC_V1, 9, 32_768)), "property block");
    assert_eq!(part(&with_lengths(record::MAGIC_V1, 9, 65_535)), "property block");
    assert!(RecordView::parse(&with_lengths(record::MAGIC_V2, 32_767, 32_767)).is_ok());
    assert_eq!(part(&with_lengths(record::MAGIC_V2, 32_768, 0)), "topic");

    let mut body = with_lengths(record::MAGIC_V1, 9, 0);
    body[84..88].copy_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_be_bytes());
    assert_eq!(part(&body), "body");
}

#[test]
fn a_body_length_beyond_the_record_is_refused() {
    for lie in [6_u32, 7, 50, 1 << 20, BODY_BYTES_MAX as u32] {
        let [mut bytes, _] = samples();
        bytes[84..88].copy_from_slice(&lie.to_be_bytes());
        let error = RecordView::parse(&bytes).unwrap_err();
        assert!(matches!(error, RecordError::Lengths(_) | RecordError::TooLarge { .. }), "{error}");
    }
}

#[test]
fn the_largest_body_and_properties_fit_and_one_byte_more_does_not() {
    let body = vec![7; BODY_BYTES_MAX + 1];
    let value = "v".repeat(PROPERTIES_BYTES_MAX);
    let largest = PROPERTIES_BYTES_MAX - record::CHECKSUM_PROPERTY_BYTES - "k\u{1}\u{2}".len();
    let draft = RecordDraft { topic: "TopicTest", ..Default::default() };

    let full = [("k", &value[..largest])];
    let bytes = sealed(&RecordDraft { body: &body[1..], properties: &full, ..draft });
    assert_eq!(read(&bytes), Ok(()));
    assert_eq!(RecordView::parse(&bytes).unwrap().body().len(), BODY_BYTES_MAX);

    let refused = |draft: RecordDraft<'_>| {
        let mut out = b"kept".to_vec();
        let error = draft.encode(&mut out).unwrap_err();
        assert_eq!(out, b"kept", "nothing is written of a refused record");
        error
    };
    let over = [("k", &value[..largest + 1])];
    assert_eq!(
        refused(RecordDraft { body: &body, ..draft }),
        EncodeError::Body(BODY_BYTES_MAX + 1)
    );
    assert_eq!(
        refused(RecordDraft { properties: &over, ..draft }),
        EncodeError::Properties(PROPERTIES_BYTES_MAX + 1)
    );
    assert_eq!(refused(RecordDraft { queue: 1 << 31, ..draft }), EncodeError::Queue(1 << 31));
}

#[test]
fn properties_that_could_not_be_read_back_are_refused() {
    let encode = |properties: &[(&str, &str)]| {
        let draft = RecordDraft { topic: "TopicTest", properties, ..Default::default() };
        draft.encode(&mut Vec::new())
    };
    for bad in [("", "v"), ("k", ""), ("k\u{1}", "v"), ("k", "v\u{2}"), ("k", "\u{1}")] {
        assert!(matches!(encode(&[bad]), Err(EncodeError::Property(_))), "{bad:?}");
    }
    let reserved = EncodeError::Reserved(property::CHECKSUM.into());
    assert_eq!(encode(&[(property::CHECKSUM, "1234567890")]), Err(reserved));
    assert!(encode(&[("k", "v")]).is_ok());
}

/// A draft that owns what it is made of.
#[derive(Debug, Clone)]
struct Draft {
    topic: String,
    queue: u32,
    flag: i32,
    sys_flag: u32,
    born_timestamp_ms: i64,
    born_host: SocketAddr,
    store_host_v6: bool,
    tag: String,
    keys: String,
    properties: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Draft {
    fn encode(&self) -> Vec<u8> {
        let properties: Vec<_> =
            self.properties.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let draft = RecordDraft {
            topic: &self.topic,
            queue: self.queue,
            flag: self.flag,
            sys_flag: self.sys_flag,
            born_timestamp_ms: self.born_timestamp_ms,
            born_host: self.born_host,
            store_host_v6: self.store_host_v6,
            tag: &self.tag,
            keys: &self.keys,
            properties: &properties,
            body: &self.body,
        };
        let mut bytes = Vec::new();
        assert_eq!(draft.encode(&mut bytes), Ok(bytes.len()));
        bytes
    }

    fn all_properties(&self) -> Vec<(&str, &str)> {
        let known = [("TAGS", self.tag.as_str()), ("KEYS", self.keys.as_str())];
        let others = self.properties.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        known.into_iter().filter(|(_, v)| !v.is_empty()).chain(others).collect()
    }
}

fn drafts() -> impl Strategy<Value = Draft> {
    let text = "[^\u{1}\u{2}]{0,20}";
    let property = ("p[^\u{1}\u{2}]{0,12}", "[^\u{1}\u{2}]{1,30}");
    let host = (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from);
    let codec = prop::sample::select(vec![0, 0x101, 0x201, 0x301, 0x1]);
    (
        ("[A-Za-z0-9_%|-]{1,127}", 0..=i32::MAX as u32, any::<i32>(), codec),
        (any::<i64>(), host, any::<bool>()),
        (text, text, prop::collection::vec(property, 0..8)),
        prop::collection::vec(any::<u8>(), 0..600),
    )
        .prop_map(|(place, born, (tag, keys, properties), body)| Draft {
            topic: place.0,
            queue: place.1,
            flag: place.2,
            sys_flag: place.3,
            born_timestamp_ms: born.0,
            born_host: born.1,
            store_host_v6: born.2,
            tag,
            keys,
            properties,
            body,
        })
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_encoded_and_sealed_is_what_is_parsed(
        draft in drafts(),
        offset in 0..=i64::MAX as u64,
        position in 0..=i64::MAX as u64,
        store_timestamp_ms: i64,
        port: u16,
    ) {
        let ip: IpAddr = if draft.store_host_v6 { [9; 16].into() } else { [9; 4].into() };
        let store_host = SocketAddr::from((ip, port));
        let mut bytes = draft.encode();
        record::seal(&mut bytes, &Placement { offset, position, store_timestamp_ms, store_host });

        let view = RecordView::parse(&bytes).unwrap();
        prop_assert_eq!(view.verify_checksum(), Ok(()));
        prop_assert_eq!(view.verify_body(), Ok(()));
        prop_assert_eq!(view.topic(), draft.topic.as_str());
        prop_assert_eq!((view.queue(), view.flag()), (draft.queue, draft.flag));
        prop_assert_eq!((view.offset(), view.position()), (offset, position));
        prop_assert_eq!(view.sys_flag() & !0x30, draft.sys_flag);
        prop_assert_eq!(view.born_timestamp_ms(), draft.born_timestamp_ms);
        prop_assert_eq!(view.store_timestamp_ms(), store_timestamp_ms);
        prop_assert_eq!((view.born_host(), view.store_host()), (draft.born_host, store_host));
        prop_assert_eq!((view.reconsume_times(), view.prepared_transaction_offset()), (0, 0));
        prop_assert_eq!(view.body(), &draft.body);
        prop_assert_eq!(view.properties().collect::<Vec<_>>(), draft.all_properties());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(view) = RecordView::parse(&bytes) {
            touch_everything(&view);
        }
    }

    #[test]
    fn arbitrary_bytes_behind_a_plausible_head_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 91..400),
        v2: bool,
        flags in 0_u32..64,
        body_bytes in 0_u32..200,
    ) {
        let magic = if v2 { record::MAGIC_V2 } else { record::MAGIC_V1 };
        let size = bytes.len() as u32;
        bytes[..4].copy_from_slice(&size.to_be_bytes());
        bytes[4..8].copy_from_slice(&magic.to_be_bytes());
        bytes[36..40].copy_from_slice(&flags.to_be_bytes());
        bytes[84..88].copy_from_slice(&body_bytes.to_be_bytes());
        if let Ok(view) = RecordView::parse(&bytes) {
            touch_everything(&view);
        }
    }

    #[test]
    fn mutated_records_never_panic(
        draft in drafts(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = draft.encode();
        for (index, value) in edits {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(view) = RecordView::parse(&bytes) {
            touch_everything(&view);
        }
    }

    #[test]
    fn arbitrary_property_blocks_never_panic(block in prop::collection::vec(0_u8..5, 0..60)) {
        let properties = record::Properties::new(&block);
        for (name, value) in properties.clone() {
            prop_assert!(!name.is_empty() && !value.is_empty());
            prop_assert!(properties.get(name).is_some());
        }
    }
}
