//! Top-nσ (Tang et al. 2024): only logits within n standard deviations of the greatest stay.

use super::candidates::Candidates;

/// Nothing happens when `n` is not above 0.
pub(super) fn apply(all: &mut Candidates, n: f32) {
    if n <= 0.0 || all.items.len() <= 1 {
        return;
    }
    let finite =
        || all.items.iter().map(|c| f64::from(c.logit)).filter(|l| *l != f64::NEG_INFINITY);
    let count = finite().count().max(1) as f64;
    let mean = finite().sum::<f64>() / count;
    let variance = finite().map(|l| (l - mean).powi(2)).sum::<f64>() / count;
    let least = (f64::from(all.max()) - f64::from(n) * variance.sqrt()) as f32;
    all.retain(|c| c.logit >= least);
}
