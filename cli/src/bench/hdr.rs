//! A histogram as text that HdrHistogram's tools read.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// Steps to each halving of the distance to 100 %, as HdrHistogram's own tools have them.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// The percentile distribution in HdrHistogram's `.hgrm` form, in microseconds: what its plotter
/// (`plotFiles.html`) and scripts that compare such files take.
pub(super) fn percentiles(times: &Histogram<u64>) -> String {
    let us = |ns: u64| ns as f64 / 1e3;
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    for step in times.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        let quantile = step.quantile_iterated_to();
        let value = us(step.value_iterated_to());
        let count = times.count_between(0, step.value_iterated_to());
        // Writing to a string cannot fail.
        let _ = match 1.0 - quantile {
            left if left > 0.0 => {
                writeln!(text, "{value:12.3} {quantile:2.12} {count:10} {:14.2}", 1.0 / left)
            }
            _ => writeln!(text, "{value:12.3} {quantile:2.12} {count:10} {:>14}", "inf"),
        };
    }
    let _ = write!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n\
         #[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        times.mean() / 1e3,
        times.stdev() / 1e3,
        us(times.max()),
        times.len(),
        times.buckets(),
        2048,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::{note_time, times};
    use super::*;
    use std::time::Duration;

    #[test]
    fn distribution_rises_to_all_that_was_counted() {
        let mut histogram = times();
        (1..=10_000).for_each(|us| note_time(&mut histogram, Duration::from_micros(us)));
        let text = percentiles(&histogram);
        let rows: Vec<Vec<f64>> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(2)
            .map(|line| line.split_whitespace().map(|field| field.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 20 && rows.iter().all(|row| row.len() == 4), "{text}");
        assert!(rows.windows(2).all(|two| (0..4).all(|column| two[0][column] <= two[1][column])));
        let half = rows.iter().find(|row| row[1] == 0.5).unwrap();
        assert!((half[0] - 5_000.0).abs() < 10.0 && (half[3] - 2.0).abs() < 1e-9);
        assert_eq!(rows.last().unwrap()[1..3], [1.0, 10_000.0]);
        assert!(text.contains("Total count    =        10000]"), "{text}");
    }

    #[test]
    fn nothing_counted_is_still_a_file() {
        assert!(percentiles(&times()).contains("Total count    =            0]"));
    }
}
