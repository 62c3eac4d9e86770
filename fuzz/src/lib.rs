//! What the fuzz targets share.

pub mod input;
pub mod live;
pub mod messages;
pub mod reference;
pub mod written;
