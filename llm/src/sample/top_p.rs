//! Nucleus sampling (Holtzman et al. 2019): the most probable tokens stay that together have
//! probability p.

use super::candidates::Candidates;

/// Candidates that are sorted first: mostly the nucleus is among them.
const FIRST: usize = 256;

/// Nothing happens when `p` is 1 or more.
pub(super) fn apply(all: &mut Candidates, p: f32) {
    if p >= 1.0 {
        return;
    }
    all.softmax();
    let enough = |all: &Candidates| {
        let mut sum = 0.0;
        all.items.iter().position(|c| {
            sum += f64::from(c.p);
            sum >= f64::from(p)
        })
    };
    if !all.sorted && all.items.len() > 4 * FIRST {
        let mut first = all.clone();
        first.keep_top(FIRST);
        if let Some(last) = enough(&first) {
            first.items.truncate(last + 1);
            *all = first;
            return;
        }
    }
    all.sort();
    if let Some(last) = enough(all) {
        all.items.truncate(last + 1);
    }
}
