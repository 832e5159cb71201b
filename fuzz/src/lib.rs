//! Fuzz targets of Longwire; `fuzz/run` runs them.

pub mod targets;
