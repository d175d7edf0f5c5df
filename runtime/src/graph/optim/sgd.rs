//! Stochastic gradient descent with momentum.

use super::{Optimizer, Schedule, Trained, counter};
use crate::graph::{Gradients, GraphError, Tensor, Update};

/// Gradient descent: p ← p - rate · t, where t ← momentum · t + gradient (Polyak 1964), or with
/// `nesterov` gradient + momentum · t (Sutskever et al. 2013).
#[derive(Clone, Debug, PartialEq)]
pub struct Sgd {
    pub rate: Schedule,
    /// Share of the step before; 0 for none.
    pub momentum: f64,
    /// Looks ahead along the momentum.
    pub nesterov: bool,
    /// This share of the parameter is added to the gradient.
    pub weight_decay: f64,
    /// Begins the names of the state.
    pub name: String,
}

impl Sgd {
    /// Without momentum.
    pub fn new(rate: Schedule) -> Self {
        Sgd { rate, momentum: 0.0, nesterov: false, weight_decay: 0.0, name: "sgd".to_owned() }
    }

    /// With momentum.
    #[must_use]
    pub fn with_momentum(self, momentum: f64) -> Self {
        Sgd { momentum, ..self }
    }
}

impl Optimizer for Sgd {
    #[track_caller]
    fn updates(
        &self,
        gradients: &Gradients,
        params: &[&Tensor],
    ) -> Result<Vec<Update>, GraphError> {
        let Some((step, count)) = counter(params, &self.name)? else { return Ok(Vec::new()) };
        let rate = self.rate.at(&step);
        let mut updates = vec![count];
        for param in params {
            let trained = Trained::of(gradients, param)?;
            let rate = rate.cast(param.dtype()?);
            let mut gradient = trained.gradient.clone();
            if self.weight_decay != 0.0 {
                gradient = gradient + *param * self.weight_decay;
            }
            let mut direction = gradient.clone();
            if self.momentum != 0.0 {
                let state = trained.state(&self.name, "momentum")?;
                let next = &state * self.momentum + &gradient;
                direction = match self.nesterov {
                    true => gradient + &next * self.momentum,
                    false => next.clone(),
                };
                updates.push(Update { param: state, value: next });
            }
            let value = *param - direction * rate;
            updates.push(Update { param: (*param).clone(), value });
        }
        Ok(updates)
    }
}
