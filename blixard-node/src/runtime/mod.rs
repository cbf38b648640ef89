//! runtime

pub mod images;
