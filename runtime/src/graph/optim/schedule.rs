//! Learning rates over time.

use std::f64::consts::PI;

use crate::graph::Tensor;

/// The learning rate as a function of the number of steps done. The first step has done none.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// Always the same.
    Constant { rate: f64 },
    /// Multiplied by `factor` after each `every` steps.
    Step { rate: f64, every: u64, factor: f64 },
    /// From `rate` to `rate * floor` along half a cosine within `steps`, then staying there
    /// (Loshchilov and Hutter 2017, without restarts).
    Cosine { rate: f64, steps: u64, floor: f64 },
    /// From 0 in a line to `peak` within `steps`, then another schedule from its beginning.
    Warmup { peak: f64, steps: u64, then: Box<Schedule> },
}

impl Schedule {
    /// Always the same rate.
    pub fn constant(rate: f64) -> Self {
        Schedule::Constant { rate }
    }

    /// Multiplied by `factor` after each `every` steps.
    pub fn step(rate: f64, every: u64, factor: f64) -> Self {
        Schedule::Step { rate, every, factor }
    }

    /// Half a cosine from `rate` to 0 within `steps`.
    pub fn cosine(rate: f64, steps: u64) -> Self {
        Schedule::Cosine { rate, steps, floor: 0.0 }
    }

    /// Before this schedule, a line from 0 to its first rate within `steps`.
    #[must_use]
    pub fn with_warmup(self, steps: u64) -> Self {
        Schedule::Warmup { peak: self.first(), steps, then: Box::new(self) }
    }

    fn first(&self) -> f64 {
        match self {
            Schedule::Constant { rate }
            | Schedule::Step { rate, .. }
            | Schedule::Cosine { rate, .. } => *rate,
            Schedule::Warmup { .. } => 0.0,
        }
    }

    /// The rate, for a floating-point number of steps done.
    #[track_caller]
    pub fn at(&self, step: &Tensor) -> Tensor {
        match self {
            Schedule::Constant { rate } => step.full_like(*rate),
            Schedule::Step { rate, every, factor } => {
                let times = (step / (*every).max(1) as f64).floor();
                step.full_like(*factor).pow(times) * *rate
            }
            Schedule::Cosine { rate, steps, floor } => {
                let share = (step / (*steps).max(1) as f64).minimum(1.0);
                let down = ((share * PI).cos() + 1.0) * 0.5;
                (down * (1.0 - floor) + *floor) * *rate
            }
            Schedule::Warmup { peak, steps, then } => {
                let n = *steps as f64;
                let up = step * (peak / n.max(1.0));
                let after = then.at(&(step - n).maximum(0.0));
                step.lt(n).select(up, after)
            }
        }
    }
}
