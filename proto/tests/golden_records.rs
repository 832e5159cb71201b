//! Records laid out by hand after RocketMQ's format (apache/rocketmq 8fc57f14, `MessageExtEncoder`
//! and `MessageDecoder`), field by field, with none of this crate's code.
#![allow(clippy::unwrap_used)]

#[path = "support/hex.rs"]
mod hex;

use std::net::SocketAddr;

use longwire_proto::record::{self, Placement, RecordDraft, RecordError, RecordView};

/// A record's fields and its bytes.
struct Golden {
    what: &'static str,
    hex: &'static str,
    fields: Fields,
}

#[derive(Debug, Clone, PartialEq)]
struct Fields {
    topic: String,
    queue: u32,
    flag: i32,
    offset: u64,
    position: u64,
    sys_flag: u32,
    born_timestamp_ms: i64,
    born_host: SocketAddr,
    store_timestamp_ms: i64,
    store_host: SocketAddr,
    reconsume_times: u32,
    prepared_transaction_offset: u64,
    body: Vec<u8>,
    properties: Vec<(String, String)>,
    checksum: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Fields {
            topic: "TopicTest".into(),
            queue: 3,
            flag: 0,
            offset: 7,
            position: 0x4000_0000,
            sys_flag: 0,
            born_timestamp_ms: 1_700_000_000_000,
            born_host: host("10.0.0.1:54321"),
            store_timestamp_ms: 1_700_000_000_123,
            store_host: host("10.0.0.2:10911"),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"hello".into(),
            properties: vec![("TAGS".into(), "TagA".into()), ("KEYS".into(), "k1".into())],
            checksum: true,
        }
    }
}

impl Fields {
    fn read(view: &RecordView<'_>) -> Fields {
        Fields {
            topic: view.topic().into(),
            queue: view.queue(),
            flag: view.flag(),
            offset: view.offset(),
            position: view.position(),
            sys_flag: view.sys_flag(),
            born_timestamp_ms: view.born_timestamp_ms(),
            born_host: view.born_host(),
            store_timestamp_ms: view.store_timestamp_ms(),
            store_host: view.store_host(),
            reconsume_times: view.reconsume_times(),
            prepared_transaction_offset: view.prepared_transaction_offset(),
            body: view.body().into(),
            properties: view.properties().map(|(n, v)| (n.into(), v.into())).collect(),
            checksum: view.has_checksum(),
        }
    }

    /// Encodes and seals the record from its fields alone.
    fn write(&self) -> Vec<u8> {
        let of = |name| {
            let property = self.properties.iter().find(|(n, _)| n == name);
            property.map_or("", |(_, value)| value)
        };
        let others: Vec<_> = self
            .properties
            .iter()
            .filter(|(name, _)| !["TAGS", "KEYS"].contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let draft = RecordDraft {
            topic: &self.topic,
            queue: self.queue,
            flag: self.flag,
            sys_flag: self.sys_flag,
            born_timestamp_ms: self.born_timestamp_ms,
            born_host: self.born_host,
            store_host_v6: self.store_host.is_ipv6(),
            tag: of("TAGS"),
            keys: of("KEYS"),
            properties: &others,
            body: &self.body,
        };
        let mut bytes = Vec::new();
        assert_eq!(draft.encode(&mut bytes), Ok(bytes.len()));
        let placement = Placement {
            offset: self.offset,
            position: self.position,
            store_timestamp_ms: self.store_timestamp_ms,
            store_host: self.store_host,
        };
        record::seal(&mut bytes, &placement);
        bytes
    }
}

fn host(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Records in exactly the form Longwire writes.
fn written() -> Vec<Golden> {
    let lz4 = hex::bytes("04224d18 60 40 82 05000080 68656c6c6f 00000000");
    let zstd = hex::bytes("28b52ffd 20 05 290000 68656c6c6f");
    let zlib = hex::bytes("785e cb48cdc9c90700 062c0215");
    vec![
        Golden {
            what: "IPv4 hosts, 143 bytes",
            hex: "0000008f daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 35303732373535353631 02",
            fields: Fields::default(),
        },
        Golden {
            what: "IPv6 born host, 155 bytes",
            hex: "0000009b daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000010 0000018bcfe56800 20010db8000000000000000000000001 0000d431
                  0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 36393335313835313631 02",
            fields: Fields {
                sys_flag: 0x10,
                born_host: host("[2001:db8::1]:54321"),
                ..Fields::default()
            },
        },
        Golden {
            what: "IPv6 store host, 155 bytes",
            hex: "0000009b daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000020 0000018bcfe56800 0a000001 0000d431
                  0000018bcfe5687b fe800000000000000000000000000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 36333132373537313930 02",
            fields: Fields {
                sys_flag: 0x20,
                store_host: host("[fe80::2]:10911"),
                ..Fields::default()
            },
        },
        Golden {
            what: "IPv6 hosts, 167 bytes",
            hex: "000000a7 daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000030 0000018bcfe56800 20010db8000000000000000000000001 0000d431
                  0000018bcfe5687b fe800000000000000000000000000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 32303233363639323530 02",
            fields: Fields {
                sys_flag: 0x30,
                born_host: host("[2001:db8::1]:54321"),
                store_host: host("[fe80::2]:10911"),
                ..Fields::default()
            },
        },
        Golden {
            what: "an LZ4 body (one stored block)",
            hex: "0000009e daa320a7 16108ab1 00000003 00000000 0000000000000007 0000000040000000
                  00000101 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000014 04224d186040820500008068656c6c6f00000000
                  09 546f70696354657374 0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 37393938303239343831 02",
            fields: Fields { sys_flag: 0x101, body: lz4, ..Fields::default() },
        },
        Golden {
            what: "a Zstandard body (one raw block)",
            hex: "00000098 daa320a7 2e896499 00000003 00000000 0000000000000007 0000000040000000
                  00000201 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 0000000e 28b52ffd200529000068656c6c6f
                  09 546f70696354657374 0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 39353637353936373431 02",
            fields: Fields { sys_flag: 0x201, body: zstd, ..Fields::default() },
        },
        Golden {
            what: "a zlib body",
            hex: "00000097 daa320a7 161ab8cb 00000003 00000000 0000000000000007 0000000040000000
                  00000301 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 0000000d 785ecb48cdc9c90700062c0215
                  09 546f70696354657374 0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 32383235343936303431 02",
            fields: Fields { sys_flag: 0x301, body: zlib, ..Fields::default() },
        },
        Golden {
            what: "an empty body",
            hex: "0000008a daa320a7 00000000 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000000 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 34333937313033303630 02",
            fields: Fields { body: vec![], ..Fields::default() },
        },
        Golden {
            what: "no properties but the checksum",
            hex: "0000007d daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0014 5f5f435243333223 01 34373933323033383930 02",
            fields: Fields { properties: vec![], ..Fields::default() },
        },
        Golden {
            what: "the largest numbers, a binary body, a property in UTF-8",
            hex: "00000081 daa320a7 3fb23824 7fffffff fffffffe 7fffffffffffffff 0123456789abcdef
                  00000000 0000000000000001 fffefdfc 0000ffff 0000000000000002 01020304 00000001
                  00000000 0000000000000000 00000004 000102ff 09 546f70696354657374
                  0019 61 01 c3a9 02 5f5f435243333223 01 33303039393336353430 02",
            fields: Fields {
                queue: 0x7fff_ffff,
                flag: -2,
                offset: 0x7fff_ffff_ffff_ffff,
                position: 0x0123_4567_89ab_cdef,
                born_timestamp_ms: 1,
                born_host: host("255.254.253.252:65535"),
                store_timestamp_ms: 2,
                store_host: host("1.2.3.4:1"),
                body: vec![0, 1, 2, 255],
                properties: vec![("a".into(), "é".into())],
                ..Fields::default()
            },
        },
    ]
}

/// Records RocketMQ writes and Longwire only reads.
fn foreign() -> Vec<Golden> {
    let tags_only = vec![("TAGS".into(), "TagA".into())];
    vec![
        Golden {
            what: "no checksum, 123 bytes",
            hex: "0000007b daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0012 54414753 01 54616741 02 4b455953 01 6b31 02",
            fields: Fields { checksum: false, ..Fields::default() },
        },
        Golden {
            what: "V2: a retry topic of 137 bytes",
            hex: "000000fc daa320ab 3610a686 00000000 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000003 0000000000000000 00000005 68656c6c6f 0089 25524554525925
                  676767676767676767676767676767676767676767676767676767676767676767676767676767
                  676767676767676767676767676767676767676767676767676767676767676767676767676767
                  676767676767676767676767676767676767676767676767676767676767676767676767676767
                  676767 5f546f70696354657374 0012 54414753 01 54616741 02 4b455953 01 6b31 02",
            fields: Fields {
                topic: format!("%RETRY%{}_TopicTest", "g".repeat(120)),
                queue: 0,
                reconsume_times: 3,
                checksum: false,
                ..Fields::default()
            },
        },
        Golden {
            what: "a committed transaction's record",
            hex: "0000008f daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000008 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000005 1122334455667788 00000005 68656c6c6f 09 546f70696354657374
                  0026 54414753 01 54616741 02 4b455953 01 6b31 02
                  5f5f435243333223 01 35393234333335343631 02",
            fields: Fields {
                sys_flag: 0x8,
                reconsume_times: 5,
                prepared_transaction_offset: 0x1122_3344_5566_7788,
                ..Fields::default()
            },
        },
        Golden {
            what: "an old client's zlib body: no codec bits",
            hex: "00000083 daa320a7 161ab8cb 00000003 00000000 0000000000000007 0000000040000000
                  00000001 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 0000000d 785ecb48cdc9c90700062c0215
                  09 546f70696354657374 0012 54414753 01 54616741 02 4b455953 01 6b31 02",
            fields: Fields {
                sys_flag: 1,
                body: hex::bytes("785ecb48cdc9c90700062c0215"),
                checksum: false,
                ..Fields::default()
            },
        },
        Golden {
            what: "no body and no properties",
            hex: "00000064 daa320a7 00000000 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000000 09 546f70696354657374 0000",
            fields: Fields {
                body: vec![],
                properties: vec![],
                checksum: false,
                ..Fields::default()
            },
        },
        Golden {
            what: "the last property is not closed",
            hex: "0000007a daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0011 54414753 01 54616741 02 4b455953 01 6b31",
            fields: Fields { checksum: false, ..Fields::default() },
        },
        Golden {
            what: "a property without a value, and one with no name",
            hex: "0000007c daa320a7 3610a686 00000003 00000000 0000000000000007 0000000040000000
                  00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
                  00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
                  0013 6e 01 02 01 7676 02 54414753 01 54616741 02 02 02",
            fields: Fields { properties: tags_only, checksum: false, ..Fields::default() },
        },
    ]
}

#[test]
fn parsing_gives_exactly_the_fields() {
    for golden in written().iter().chain(&foreign()) {
        let bytes = hex::bytes(golden.hex);
        let view = RecordView::parse(&bytes).unwrap_or_else(|e| panic!("{}: {e}", golden.what));
        assert_eq!(Fields::read(&view), golden.fields, "{}", golden.what);
        assert_eq!(view.size(), bytes.len(), "{}", golden.what);
        assert_eq!(&bytes[view.body_range()], golden.fields.body, "{}", golden.what);
        view.verify_body().unwrap_or_else(|e| panic!("{}: {e}", golden.what));
        let checksum = if golden.fields.checksum { Ok(()) } else { Err(RecordError::NoChecksum) };
        assert_eq!(view.verify_checksum(), checksum, "{}", golden.what);
    }
}

#[test]
fn encoding_and_sealing_give_exactly_the_bytes() {
    for golden in written() {
        assert_eq!(golden.fields.write(), hex::bytes(golden.hex), "{}", golden.what);
    }
}

#[test]
fn a_producer_leaves_zeros_in_every_broker_owned_field() {
    let draft = RecordDraft {
        topic: "TopicTest",
        queue: 3,
        born_timestamp_ms: 1_700_000_000_000,
        born_host: host("10.0.0.1:54321"),
        tag: "TagA",
        keys: "k1",
        body: b"hello",
        ..RecordDraft::default()
    };
    let mut bytes = b"before".to_vec();
    assert_eq!(draft.encode(&mut bytes), Ok(143));
    let expected = hex::bytes(
        "0000008f daa320a7 3610a686 00000003 00000000 0000000000000000 0000000000000000
         00000000 0000018bcfe56800 0a000001 0000d431 0000000000000000 00000000 00000000
         00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
         0026 54414753 01 54616741 02 4b455953 01 6b31 02
         5f5f435243333223 01 30303030303030303030 02",
    );
    assert_eq!(bytes, [b"before".as_slice(), &expected].concat());
}

#[test]
fn a_store_host_takes_the_room_the_record_has() {
    let mut wide = Fields { store_host: host("[::]:0"), ..Fields::default() }.write();
    let mut narrow = Fields::default().write();
    let placed_by = |store_host| Placement {
        offset: 0,
        position: 0,
        store_timestamp_ms: 0,
        store_host: host(store_host),
    };
    record::seal(&mut wide, &placed_by("10.0.0.2:10911"));
    record::seal(&mut narrow, &placed_by("[fe80::2]:10911"));
    let store_host = |bytes| RecordView::parse(bytes).map(|view| view.store_host());
    assert_eq!(store_host(&wide), Ok(host("[::ffff:10.0.0.2]:10911")));
    assert_eq!(store_host(&narrow), Ok(host("0.0.0.0:10911")));
    for bytes in [wide, narrow] {
        assert_eq!(RecordView::parse(&bytes).unwrap().verify_checksum(), Ok(()));
    }
}

#[test]
fn the_blank_record_is_its_size_and_magic_and_never_a_message() {
    let blank = record::write_blank(0x0012_3456);
    assert_eq!(blank[..], hex::bytes("00123456 cbd43194"));
    assert_eq!(RecordView::size_of(&blank), Err(RecordError::Magic(0xCBD4_3194)));
    assert!(RecordView::parse(&blank).is_err());
}

#[test]
fn the_tag_and_its_hash_are_what_rocketmq_puts_into_the_consume_queue() {
    let tagged = Fields::default().write();
    let view = RecordView::parse(&tagged).unwrap();
    assert_eq!((view.tag(), view.tag_hash()), (Some("TagA"), 2_598_919));
    let untagged = Fields { properties: vec![], ..Fields::default() }.write();
    let view = RecordView::parse(&untagged).unwrap();
    assert_eq!((view.tag(), view.tag_hash()), (None, 0));
}
