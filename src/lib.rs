//! pcopy
