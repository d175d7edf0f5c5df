//! Locally typical sampling (Meister et al. 2022): tokens whose surprise is nearest to the entropy
//! stay, until they have probability p together.

use super::candidates::Candidates;

/// Nothing happens when `p` is 1 or more.
pub(super) fn apply(all: &mut Candidates, p: f32) {
    if p >= 1.0 {
        return;
    }
    all.sort();
    all.softmax();
    let surprise = |p: f32| -f64::from(p).ln();
    let entropy: f64 =
        all.items.iter().filter(|c| c.p > 0.0).map(|c| f64::from(c.p) * surprise(c.p)).sum();
    let distance = |p: f32| (surprise(p) - entropy).abs();
    all.items.sort_by(|a, b| distance(a.p).total_cmp(&distance(b.p)));
    let mut sum = 0.0;
    let enough = all.items.iter().position(|c| {
        sum += f64::from(c.p);
        sum > f64::from(p)
    });
    all.items.truncate(enough.map_or(all.items.len(), |i| i + 1));
    all.sorted = false;
}
