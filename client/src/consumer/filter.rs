//! Which messages of a topic are wanted.

use longwire_proto::limits::TAGS_PER_FETCH_MAX;
use longwire_proto::record::tag_hash;

use crate::Error;

/// Which messages of a topic are wanted, by tag.
///
/// The broker filters by the tags' hashes, the client by the tags themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagFilter {
    /// Sorted; empty for all messages, with and without tag.
    tags: Vec<String>,
    /// What the broker compares; sorted.
    hashes: Vec<i32>,
}

impl TagFilter {
    /// Every message.
    pub fn all() -> TagFilter {
        TagFilter::default()
    }

    /// Messages with one of these tags; every message if none is given. At most 256.
    pub fn any<T: Into<String>>(tags: impl IntoIterator<Item = T>) -> TagFilter {
        let mut tags: Vec<String> = tags.into_iter().map(Into::into).collect();
        tags.retain(|tag| !tag.is_empty());
        tags.sort();
        tags.dedup();
        let mut hashes: Vec<i32> = tags.iter().map(|tag| tag_hash(tag)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        TagFilter { tags, hashes }
    }

    /// RocketMQ's notation: `a || b`, or `*` (or nothing) for every message.
    pub fn parse(expression: &str) -> TagFilter {
        let tags: Vec<&str> = expression.split("||").map(str::trim).collect();
        if tags.contains(&"*") { TagFilter::all() } else { TagFilter::any(tags) }
    }

    pub(super) fn matches(&self, tag: Option<&str>) -> bool {
        self.is_all() || tag.is_some_and(|tag| self.tags.iter().any(|wanted| wanted == tag))
    }

    pub(super) fn is_all(&self) -> bool {
        self.tags.is_empty()
    }

    pub(super) fn hashes(&self) -> &[i32] {
        &self.hashes
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let count = self.tags.len();
        if count <= TAGS_PER_FETCH_MAX {
            return Ok(());
        }
        Err(Error::invalid(format!("a filter of {count} tags; the limit is {TAGS_PER_FETCH_MAX}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_lists_tags_or_means_all() {
        assert_eq!(TagFilter::parse("a || b||c "), TagFilter::any(["c", "b", "a"]));
        for all in ["*", "", "  ", " * ", "a || *"] {
            assert_eq!(TagFilter::parse(all), TagFilter::all(), "{all:?}");
        }
    }

    #[test]
    fn tags_with_the_same_hash_are_told_apart() {
        let filter = TagFilter::any(["Aa"]);
        assert_eq!(tag_hash("Aa"), tag_hash("BB"));
        assert!(filter.matches(Some("Aa")) && !filter.matches(Some("BB")) && !filter.matches(None));
        assert_eq!(TagFilter::any(["Aa", "BB"]).hashes().len(), 1);
        assert!(TagFilter::all().matches(None) && TagFilter::all().matches(Some("x")));
    }
}
