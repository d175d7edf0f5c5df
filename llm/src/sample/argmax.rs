//! The greatest logit.

use super::SampleError;

/// The index of the greatest logit, the first among equals.
///
/// # Errors
/// When there is none, one is not a number, or the greatest is infinite.
pub fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best = 0;
    let mut max = f32::NEG_INFINITY;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > max {
            (best, max) = (i, logit);
        } else if logit.is_nan() {
            return Err(SampleError::NotANumber { token: i });
        }
    }
    match (logits.is_empty(), max.is_finite()) {
        (true, _) => Err(SampleError::Empty),
        (_, false) => Err(SampleError::NotFinite(max)),
        _ => Ok(best as u32),
    }
}
