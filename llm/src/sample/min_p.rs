//! Min-p (Nguyen et al. 2024): tokens stay that are at least a share as probable as the most
//! probable one.

use super::candidates::Candidates;

/// Nothing happens when `share` is not above 0.
pub(super) fn apply(all: &mut Candidates, share: f32) {
    if share <= 0.0 {
        return;
    }
    let least = all.max() + share.ln();
    // At a share of 1 rounding must not drop the greatest.
    let least = least.min(all.max());
    all.retain(|c| c.logit >= least);
}
