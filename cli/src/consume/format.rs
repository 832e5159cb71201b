//! How a message is written.

use std::io::{self, Write};
use std::str::FromStr;

use bytes::Bytes;
use longwire_client::Received;
use serde_json::{Map, Value, json};

use crate::produce::{EOL_NONE, EOL_PROPERTY};

/// What can be written of a message. `Received`, but for tests.
pub(crate) trait Readable {
    fn topic(&self) -> &str;
    fn queue(&self) -> u32;
    fn offset(&self) -> u64;
    fn position(&self) -> u64;
    fn body(&self) -> Bytes;
    fn tag(&self) -> Option<&str>;
    /// As its producer gave it, blanks and all.
    fn key(&self) -> Option<&str>;
    fn keys(&self) -> Vec<&str>;
    fn properties(&self) -> Vec<(&str, &str)>;
    fn born_ms(&self) -> i64;
    fn stored_ms(&self) -> i64;

    fn property(&self, name: &str) -> Option<&str> {
        self.properties().iter().rev().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

impl Readable for Received {
    fn topic(&self) -> &str {
        Received::topic(self)
    }
    fn queue(&self) -> u32 {
        Received::queue(self)
    }
    fn offset(&self) -> u64 {
        Received::offset(self)
    }
    fn position(&self) -> u64 {
        Received::position(self)
    }
    fn body(&self) -> Bytes {
        Received::body(self)
    }
    fn tag(&self) -> Option<&str> {
        Received::tag(self)
    }
    fn key(&self) -> Option<&str> {
        Received::key(self)
    }
    fn keys(&self) -> Vec<&str> {
        Received::keys(self).collect()
    }
    fn properties(&self) -> Vec<(&str, &str)> {
        Received::properties(self).collect()
    }
    fn born_ms(&self) -> i64 {
        self.born_timestamp_ms()
    }
    fn stored_ms(&self) -> i64 {
        self.store_timestamp_ms()
    }
    fn property(&self, name: &str) -> Option<&str> {
        Received::property(self, name)
    }
}

/// `--format` and `--print`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// The body and a newline, which is left out where none was read.
    Lines,
    /// Bodies and nothing else.
    Raw,
    /// One object a line.
    Json,
    /// The body in hexadecimal digits, one message a line.
    Hex,
    /// Text with fields in it.
    Template(Vec<Part>),
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Field(Field),
}

/// Something a message has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Topic,
    Queue,
    Offset,
    Position,
    Key,
    Tag,
    Born,
    Stored,
    Size,
    Body,
    Property(String),
}

/// The names of [`Field`]s, for help texts.
pub(crate) const FIELD_NAMES: &str =
    "topic, queue, offset, position, key, tag, born, stored, size, body, property:NAME";

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Field, String> {
        Ok(match text {
            "topic" => Field::Topic,
            "queue" => Field::Queue,
            "offset" => Field::Offset,
            "position" => Field::Position,
            "key" => Field::Key,
            "tag" => Field::Tag,
            "born" => Field::Born,
            "stored" => Field::Stored,
            "size" => Field::Size,
            "body" => Field::Body,
            _ => match text.strip_prefix("property:") {
                Some(name) if !name.is_empty() => Field::Property(name.to_owned()),
                _ => return Err(format!("{text:?} is no field; there are {FIELD_NAMES}")),
            },
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "lines" => Ok(Format::Lines),
            "raw" => Ok(Format::Raw),
            "json" => Ok(Format::Json),
            "hex" => Ok(Format::Hex),
            _ if text.contains('{') => template(text).map(Format::Template),
            _ => Err("give lines, raw, json, hex, or a text with {fields} in it".to_owned()),
        }
    }
}

impl Format {
    /// The fields separated by tabs, one message a line.
    pub(crate) fn columns(fields: &[Field]) -> Format {
        let mut parts = Vec::with_capacity(fields.len() * 2);
        for (index, field) in fields.iter().enumerate() {
            if index > 0 {
                parts.push(Part::Text("\t".to_owned()));
            }
            parts.push(Part::Field(field.clone()));
        }
        parts.push(Part::Text("\n".to_owned()));
        Format::Template(parts)
    }

    /// Writes one message.
    pub(crate) fn write(&self, out: &mut impl Write, message: &impl Readable) -> io::Result<()> {
        match self {
            Format::Raw => out.write_all(&message.body()),
            Format::Lines => {
                out.write_all(&message.body())?;
                match message.property(EOL_PROPERTY) {
                    Some(EOL_NONE) => Ok(()),
                    _ => out.write_all(b"\n"),
                }
            }
            Format::Hex => {
                for byte in &message.body() {
                    write!(out, "{byte:02x}")?;
                }
                out.write_all(b"\n")
            }
            Format::Json => {
                serde_json::to_writer(&mut *out, &to_json(message))?;
                out.write_all(b"\n")
            }
            Format::Template(parts) => parts.iter().try_for_each(|part| match part {
                Part::Text(text) => out.write_all(text.as_bytes()),
                Part::Field(field) => field.write(out, message),
            }),
        }
    }
}

impl Field {
    fn write(&self, out: &mut impl Write, message: &impl Readable) -> io::Result<()> {
        match self {
            Field::Topic => out.write_all(message.topic().as_bytes()),
            Field::Queue => write!(out, "{}", message.queue()),
            Field::Offset => write!(out, "{}", message.offset()),
            Field::Position => write!(out, "{}", message.position()),
            Field::Key => out.write_all(message.key().unwrap_or_default().as_bytes()),
            Field::Tag => out.write_all(message.tag().unwrap_or_default().as_bytes()),
            Field::Born => write!(out, "{}", message.born_ms()),
            Field::Stored => write!(out, "{}", message.stored_ms()),
            Field::Size => write!(out, "{}", message.body().len()),
            Field::Body => out.write_all(&message.body()),
            Field::Property(name) => {
                out.write_all(message.property(name).unwrap_or_default().as_bytes())
            }
        }
    }
}

/// Text with `{field}`s; `{{` and `}}` are braces, `\n`, `\t`, `\r`, `\0` and `\\` as usual.
fn template(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => plain.push(match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('0') => '\0',
                Some('\\') => '\\',
                _ => return Err("after \\ comes n, t, r, 0 or \\".to_owned()),
            }),
            '{' | '}' if rest.next_if_eq(&c).is_some() => plain.push(c),
            '{' => {
                let mut name = String::new();
                loop {
                    match rest.next() {
                        Some('}') => break,
                        Some(c) => name.push(c),
                        None => return Err(format!("{{{name} has no closing brace")),
                    }
                }
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Field(name.parse()?));
            }
            '}' => return Err("} has no opening brace; }} writes one".to_owned()),
            c => plain.push(c),
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

fn to_json(message: &impl Readable) -> Value {
    let properties: Map<_, _> = message
        .properties()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect();
    let mut value = json!({
        "topic": message.topic(),
        "queue": message.queue(),
        "offset": message.offset(),
        "position": message.position(),
        "keys": message.keys(),
        "tag": message.tag(),
        "properties": properties,
        "born_timestamp_ms": message.born_ms(),
        "store_timestamp_ms": message.stored_ms(),
    });
    let body = message.body();
    match str::from_utf8(&body) {
        Ok(text) => value["body"] = text.into(),
        Err(_) => value["body_base64"] = base64(&body).into(),
    }
    value
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit <= chunk.len() { DIGITS[index as usize].into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample {
        body: &'static [u8],
        properties: Vec<(&'static str, &'static str)>,
    }

    impl Readable for Sample {
        fn topic(&self) -> &str {
            "orders"
        }
        fn queue(&self) -> u32 {
            3
        }
        fn offset(&self) -> u64 {
            7
        }
        fn position(&self) -> u64 {
            4096
        }
        fn body(&self) -> Bytes {
            Bytes::from_static(self.body)
        }
        fn tag(&self) -> Option<&str> {
            self.property("TAGS")
        }
        fn key(&self) -> Option<&str> {
            self.property("KEYS")
        }
        fn keys(&self) -> Vec<&str> {
            self.property("KEYS").into_iter().flat_map(|keys| keys.split(' ')).collect()
        }
        fn properties(&self) -> Vec<(&str, &str)> {
            self.properties.clone()
        }
        fn born_ms(&self) -> i64 {
            1
        }
        fn stored_ms(&self) -> i64 {
            2
        }
    }

    fn written(
        format: &str,
        body: &'static [u8],
        properties: &[(&'static str, &'static str)],
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let sample = Sample { body, properties: properties.to_vec() };
        format.parse::<Format>().unwrap().write(&mut out, &sample).unwrap();
        out
    }

    #[test]
    fn lines_and_raw_are_the_bytes_of_the_body() {
        assert_eq!(written("lines", b"a\0\xff\r", &[]), b"a\0\xff\r\n");
        assert_eq!(written("lines", b"", &[]), b"\n");
        assert_eq!(written("lines", b"a", &[("LW_EOL", "none")]), b"a");
        assert_eq!(written("lines", b"a", &[("LW_EOL", "some")]), b"a\n");
        assert_eq!(written("raw", b"a", &[]), b"a");
        assert_eq!(written("hex", b"\0a\xff", &[]), b"0061ff\n");
    }

    #[test]
    fn json_has_every_field_and_says_how_the_body_is_written() {
        let properties = [("KEYS", "k1 k2"), ("TAGS", "paid"), ("a", "b")];
        let value: Value =
            serde_json::from_slice(&written("json", b"hi \xc3\xa9", &properties)).unwrap();
        assert_eq!(
            value,
            json!({
                "topic": "orders", "queue": 3, "offset": 7, "position": 4096,
                "keys": ["k1", "k2"], "tag": "paid",
                "properties": {"KEYS": "k1 k2", "TAGS": "paid", "a": "b"},
                "born_timestamp_ms": 1, "store_timestamp_ms": 2, "body": "hi é",
            })
        );
        let value: Value = serde_json::from_slice(&written("json", b"\xff\xfe", &[])).unwrap();
        assert_eq!((&value["body_base64"], &value["body"]), (&json!("//4="), &Value::Null));
    }

    #[test]
    fn templates_mix_text_and_fields() {
        let properties = [("KEYS", "k"), ("a", "b")];
        assert_eq!(
            written(
                r"{{{queue}}}\t{offset}:{body}|{property:a}|{property:none}|{tag}\n",
                b"x\n",
                &properties
            ),
            b"{3}\t7:x\n|b||\n"
        );
        let columns = Format::columns(&["key".parse().unwrap(), "size".parse().unwrap()]);
        let mut out = Vec::new();
        columns.write(&mut out, &Sample { body: b"xyz", properties: properties.to_vec() }).unwrap();
        assert_eq!(out, b"k\t3\n");
        for bad in ["{", "{body", "{nothing}", "}{body}", "{body}\\x", "{property:}", "plain"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xFB, 0xFF]), "+/8=");
    }
}
