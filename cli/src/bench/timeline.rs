//! How much was done when.

use std::time::{Duration, Instant};

/// What a point stands for at first.
const WIDTH_MIN: Duration = Duration::from_millis(100);
/// Where there would be more points, they are joined by twos.
const POINTS_MAX: usize = 400;

/// Messages and bytes over time, in a bounded number of points.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    start: Instant,
    width: Duration,
    points: Vec<Point>,
}

/// What was done in one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Point {
    messages: u64,
    bytes: u64,
}

/// A timeline as rates.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Rates {
    /// What each point stands for; the last one may stand for less.
    pub(super) seconds_per_point: f64,
    pub(super) messages_per_s: Vec<f64>,
    pub(super) mb_per_s: Vec<f64>,
}

impl Timeline {
    pub(super) fn new(start: Instant) -> Timeline {
        Timeline { start, width: WIDTH_MIN, points: Vec::new() }
    }

    pub(super) fn add(&mut self, at: Instant, messages: u64, bytes: u64) {
        let since = at.saturating_duration_since(self.start);
        while self.index(since) >= POINTS_MAX {
            self.widen();
        }
        let index = self.index(since);
        if self.points.len() <= index {
            self.points.resize(index + 1, Point::default());
        }
        self.points[index].messages += messages;
        self.points[index].bytes += bytes;
    }

    /// Adds what another timeline of the same start has.
    pub(super) fn merge(&mut self, mut other: Timeline) {
        while self.width < other.width {
            self.widen();
        }
        while other.width < self.width {
            other.widen();
        }
        let length = self.points.len().max(other.points.len());
        self.points.resize(length, Point::default());
        for (point, other) in self.points.iter_mut().zip(other.points) {
            point.messages += other.messages;
            point.bytes += other.bytes;
        }
    }

    /// As rates, for a measurement that took so long.
    pub(super) fn rates(&self, took: Duration) -> Rates {
        let mut rates = Rates {
            seconds_per_point: self.width.as_secs_f64(),
            messages_per_s: Vec::new(),
            mb_per_s: Vec::new(),
        };
        for (index, point) in self.points.iter().enumerate() {
            let begins = self.width.as_secs_f64() * index as f64;
            let lasts = (took.as_secs_f64() - begins).min(self.width.as_secs_f64());
            // A sliver at the end says nothing about a rate.
            if index > 0 && lasts < self.width.as_secs_f64() / 2.0 {
                break;
            }
            let rate = |amount: f64| crate::output::rounded(amount / lasts.max(1e-6), 3);
            rates.messages_per_s.push(rate(point.messages as f64));
            rates.mb_per_s.push(rate(point.bytes as f64 / 1e6));
        }
        rates
    }

    fn index(&self, since: Duration) -> usize {
        (since.as_nanos() / self.width.as_nanos().max(1)) as usize
    }

    fn widen(&mut self) {
        self.width *= 2;
        self.points = self
            .points
            .chunks(2)
            .map(|pair| Point {
                messages: pair.iter().map(|point| point.messages).sum(),
                bytes: pair.iter().map(|point| point.bytes).sum(),
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_get_wider_points_and_lose_nothing() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        for ms in (0..200_000).step_by(50) {
            timeline.add(start + Duration::from_millis(ms), 1, 10);
        }
        assert!(timeline.points.len() <= POINTS_MAX);
        assert_eq!(timeline.points.iter().map(|point| point.messages).sum::<u64>(), 4_000);
        let mut short = Timeline::new(start);
        short.add(start, 6, 60);
        short.merge(timeline.clone());
        assert_eq!(short.points.iter().map(|point| point.bytes).sum::<u64>(), 40_060);
        timeline.merge(short);
        assert_eq!(timeline.points[0].messages, timeline.points[1].messages + 6);
        let rates = timeline.rates(Duration::from_secs(200));
        assert_eq!(rates.messages_per_s[1], 40.0, "twice 20 a second");
    }

    #[test]
    fn last_point_is_a_rate_over_the_time_it_really_had() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        timeline.add(start, 100, 1_000_000);
        timeline.add(start + Duration::from_millis(170), 80, 800_000);
        let rates = timeline.rates(Duration::from_millis(180));
        assert_eq!(rates.messages_per_s, [1_000.0, 1_000.0]);
        assert_eq!(timeline.rates(Duration::from_millis(110)).mb_per_s, [10.0]);
    }
}
