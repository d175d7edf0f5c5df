//! XTC, "exclude top choices" (p-e-w, text-generation-webui #6335): with some probability all tokens
//! above a threshold go, but the least probable of them.

use super::Rng;
use super::candidates::Candidates;

/// Nothing happens when `probability` is not above 0, or `threshold` is above one half: then no
/// two tokens can be above it. A random number is drawn only when something can happen.
pub(super) fn apply(all: &mut Candidates, probability: f32, threshold: f32, rng: &mut Rng) {
    if probability <= 0.0 || threshold > 0.5 || all.items.len() < 2 {
        return;
    }
    if rng.next_f64() > f64::from(probability) {
        return;
    }
    all.sort();
    all.softmax();
    let above = all.items.iter().take_while(|c| c.p >= threshold).count();
    if above > 1 {
        all.items.drain(..above - 1);
    }
}
