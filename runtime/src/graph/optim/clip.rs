//! Keeping gradients small.

use crate::graph::{Gradients, Tensor};

impl Gradients {
    /// All gradients here shrunk by one factor, so that their common Euclidean norm is at most
    /// `max` (Pascanu et al. 2013). The norm counts every gradient that is here: take those of
    /// the parameters alone with [`Tensor::backward_to`].
    #[must_use]
    #[track_caller]
    pub fn clip_by_norm(&self, max: f64) -> Gradients {
        // In the order of the graph: sums of floats depend on it.
        let mut squares = self.sorted().map(|(_, g)| g.square().sum_all());
        let Some(first) = squares.next() else { return self.clone() };
        let norm = squares.fold(first, |sum, square| sum + square).sqrt();
        // A norm of 0 divides to infinity, of which the minimum is 1.
        let factor = (max / norm).minimum(1.0);
        self.map(|g| g * &factor)
    }

    /// Every element of the gradients kept within -limit and limit.
    #[must_use]
    #[track_caller]
    pub fn clip_by_value(&self, limit: f64) -> Gradients {
        self.map(|g: &Tensor| g.clamp(-limit, limit))
    }
}
