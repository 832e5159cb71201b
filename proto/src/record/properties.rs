//! The property block: `name 0x01 value 0x02`, repeated, without escapes.

use bytes::BufMut;

use super::property;

const NAME_END: u8 = 0x01;
const VALUE_END: u8 = 0x02;

/// Appends one property. Name and value must not contain a separator ([`has_separator`]).
pub fn encode_property(out: &mut impl BufMut, name: &str, value: &str) {
    debug_assert!(!has_separator(name) && !has_separator(value));
    out.put_slice(name.as_bytes());
    out.put_u8(NAME_END);
    out.put_slice(value.as_bytes());
    out.put_u8(VALUE_END);
}

/// Whether the text has a byte that ends a name or value, so that it cannot be part of a property.
pub fn has_separator(text: &str) -> bool {
    text.bytes().any(|b| b == NAME_END || b == VALUE_END)
}

/// An iterator over the properties of a record, in the order they are stored in.
///
/// As in RocketMQ the last 0x02 may be missing, and a property without a name or value, or one that
/// is not UTF-8, is passed over. The whole-record checksum is not listed.
#[derive(Debug, Clone)]
pub struct Properties<'a> {
    rest: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Properties of an encoded block.
    pub fn new(block: &'a [u8]) -> Self {
        Properties { rest: block }
    }

    /// The value of this property. Where it occurs more than once the last counts, as in RocketMQ.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.clone().filter(|(n, _)| *n == name).last().map(|(_, value)| value)
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|&b| b == VALUE_END).unwrap_or(self.rest.len());
            let (pair, rest) = self.rest.split_at(end);
            self.rest = rest.get(1..).unwrap_or_default();
            let Some(split) = pair.iter().position(|&b| b == NAME_END) else {
                continue;
            };
            let (name, value) = (&pair[..split], &pair[split + 1..]);
            let (Ok(name), Ok(value)) = (str::from_utf8(name), str::from_utf8(value)) else {
                continue;
            };
            if !name.is_empty() && !value.is_empty() && name != property::CHECKSUM {
                return Some((name, value));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_forgives_what_rocketmq_forgives() {
        let mut block = Vec::new();
        encode_property(&mut block, "KEYS", "k1 k2");
        encode_property(&mut block, "TAGS", "paid");
        assert_eq!(Properties::new(&block).get("TAGS"), Some("paid"));
        encode_property(&mut block, "TAGS", "shipped");
        assert_eq!(Properties::new(&block).get("TAGS"), Some("shipped"));

        let sloppy = b"novalue\x02\x01v\x02n\x01\x02\xff\x01x\x02a\x01b";
        assert_eq!(Properties::new(sloppy).collect::<Vec<_>>(), [("a", "b")]);
    }
}
