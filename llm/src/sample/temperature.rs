//! Temperature, and its dynamic range: the more certain the model, the colder (kalomaze's entropy
//! sampling).

use super::candidates::Candidates;

/// Settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Temperature {
    pub value: f32,
    /// The temperature lies in value ± range; 0 for a fixed one.
    pub range: f32,
    /// Of the entropy's share of the greatest possible.
    pub exponent: f32,
}

impl Temperature {
    pub fn apply(self, all: &mut Candidates) {
        let Temperature { value, range, exponent } = self;
        if range <= 0.0 {
            scale(all, value);
            return;
        }
        if all.items.len() <= 1 {
            return;
        }
        all.softmax();
        let most = (all.items.len() as f64).ln();
        let entropy: f64 = all
            .items
            .iter()
            .filter(|c| c.p > 0.0)
            .map(|c| -f64::from(c.p) * f64::from(c.p).ln())
            .sum();
        let (cold, hot) = ((value - range).max(0.0), value + range);
        let share = (entropy / most).powf(f64::from(exponent)) as f32;
        scale(all, cold + (hot - cold) * share);
    }
}

/// Divides the logits; at 0 only the greatest stays.
fn scale(all: &mut Candidates, temperature: f32) {
    let max = all.max();
    if temperature <= 0.0 {
        let best = all.items.iter().filter(|c| c.logit == max).min_by_key(|c| c.token).copied();
        all.items.clear();
        all.items.extend(best);
        return;
    }
    for c in &mut all.items {
        // Relative to the greatest, which stays finite at any temperature.
        c.logit = if c.logit == max { 0.0 } else { (c.logit - max) / temperature };
    }
}
