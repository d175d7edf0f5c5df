//! Adam and AdamW.

use super::{Optimizer, Schedule, Trained, counter};
use crate::graph::{Gradients, GraphError, Tensor, Update};

/// Adam (Kingma and Ba 2015); with `weight_decay` AdamW, whose decay does not pass through the
/// moments (Loshchilov and Hutter 2019).
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    pub rate: Schedule,
    /// Share of the first moment that stays.
    pub beta1: f64,
    /// Share of the second moment that stays.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// This share of the parameter, times the rate, is taken away in each step.
    pub weight_decay: f64,
    /// Begins the names of the state.
    pub name: String,
}

impl Adam {
    /// With the paper's constants, without decay.
    pub fn new(rate: Schedule) -> Self {
        Adam {
            rate,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            name: "adam".to_owned(),
        }
    }

    /// AdamW.
    pub fn with_decay(rate: Schedule, weight_decay: f64) -> Self {
        Adam { weight_decay, ..Adam::new(rate) }
    }
}

impl Optimizer for Adam {
    #[track_caller]
    fn updates(
        &self,
        gradients: &Gradients,
        params: &[&Tensor],
    ) -> Result<Vec<Update>, GraphError> {
        let Some((step, count)) = counter(params, &self.name)? else { return Ok(Vec::new()) };
        let rate = self.rate.at(&step);
        let done = &step + 1.0;
        // In f64, as 1 - 0.999 keeps few digits of an f32.
        let correction = |beta: f64| 1.0 - step.full_like(beta).pow(&done);
        let (first, second) = (correction(self.beta1), correction(self.beta2));
        let mut updates = vec![count];
        for param in params {
            let trained = Trained::of(gradients, param)?;
            let dtype = param.dtype()?;
            let gradient = trained.gradient;
            let (m, v) = (trained.state(&self.name, "m")?, trained.state(&self.name, "v")?);
            // Written so that the last use of a moment is the sum that takes its place.
            let next_m = &m + (gradient - &m) * (1.0 - self.beta1);
            let next_v = &v + (gradient.square() - &v) * (1.0 - self.beta2);
            let root = (&next_v / second.cast(dtype)).sqrt() + self.eps;
            let mut direction = &next_m / first.cast(dtype) / root;
            if self.weight_decay != 0.0 {
                direction = direction + *param * self.weight_decay;
            }
            let value = *param - direction * rate.cast(dtype);
            updates.push(Update { param: m, value: next_m });
            updates.push(Update { param: v, value: next_v });
            updates.push(Update { param: (*param).clone(), value });
        }
        Ok(updates)
    }
}
