//! Meaning of the block-quantised types: from bytes to `f32`.
