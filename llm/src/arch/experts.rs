//! Feed-forward networks of many experts, of which each token goes through few (Shazeer et al.
//! 2017).
//!
//! A product with a router's weight gives every expert a score. The best ones' networks are
//! computed for the token and summed, weighted by their share. Variants: scores by softmax or
//! sigmoid, a bias that counts for the choice alone, groups of experts of which the best are chosen
//! first, weights that are normed or scaled, and experts that every token goes through.

use aether_ir::{Attrs, DType, Dim, Op, TensorType, ValueId};

use super::ArchError;
use super::blocks::{self, LayerBuilder};
use super::hparams::{Hparams, Keys};
use super::weights::Spec;

/// The experts of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: u64,
    /// How many a token goes through.
    pub used: u64,
    /// Width of an expert's network.
    pub n_ff: u64,
    /// Width of the network that every token goes through; 0 for none.
    pub n_ff_shared: u64,
    /// How scores become weights.
    pub gating: Gating,
    /// Whether the weights of a token sum to one.
    pub normed: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// Groups of experts, and how many of them a token chooses from.
    pub groups: Option<(u64, u64)>,
}

/// How the scores of experts become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    Softmax,
    Sigmoid,
}

/// No model is believed to have more experts.
const MOST: u64 = 1 << 14;

/// Weights that are normed are divided by no less, the least normal f16.
const LEAST_SUM: f64 = 6.103_515_625e-5;

impl Experts {
    /// Reads the keys `expert_*`; `None` for a model without experts. Weights are normed where the
    /// architecture says so or the file.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Option<Experts>, ArchError> {
        let count = keys.count("expert_count")?;
        if count == 0 {
            return Ok(None);
        }
        if count > MOST {
            return Err(keys.wrong("expert_count", count, format!("should be at most {MOST}")));
        }
        let used = keys.size("expert_used_count")?;
        if used > count {
            let expected = format!("should be at most the expert_count {count}");
            return Err(keys.wrong("expert_used_count", used, expected));
        }
        let gating = match keys.count("expert_gating_func")? {
            0 | 1 => Gating::Softmax,
            2 => Gating::Sigmoid,
            other => {
                let expected = "only 1 (softmax) and 2 (sigmoid) are supported";
                return Err(keys.wrong("expert_gating_func", other, expected));
            }
        };
        let groups = (keys.count("expert_group_count")?, keys.count("expert_group_used_count")?);
        let groups = (groups.0 > 1).then_some(groups);
        if let Some((all, chosen)) = groups {
            let fits = count % all == 0 && count / all >= 2 && (1..=all).contains(&chosen);
            if !fits || count / all * chosen < used {
                let expected = format!(
                    "{chosen} of so many groups of the {count} experts should hold the {used} of a token"
                );
                return Err(keys.wrong("expert_group_count", all, expected));
            }
        }
        let n_ff = match keys.uniform("expert_feed_forward_length")? {
            Some(n) => n,
            None => keys.required("feed_forward_length")?,
        };
        Ok(Some(Experts {
            count,
            used,
            n_ff,
            n_ff_shared: 0,
            gating,
            normed: keys.flag("expert_weights_norm")?,
            scale: match keys.positive_or_none("expert_weights_scale")? {
                0.0 => 1.0,
                scale => scale,
            },
            groups,
        }))
    }

    /// The weights of a block's experts.
    pub(super) fn weights(&self, hp: &Hparams) -> Vec<Spec> {
        let (all, n_ff, n) = (self.count, self.n_ff, hp.n_embd);
        let mut specs = vec![
            Spec::matrix("ffn_gate_inp.weight", all, n),
            Spec::vector("exp_probs_b.bias", all).optional(),
            Spec::stack("ffn_gate_exps.weight", all, n_ff, n),
            Spec::stack("ffn_up_exps.weight", all, n_ff, n),
            Spec::stack("ffn_down_exps.weight", all, n, n_ff),
        ];
        if self.n_ff_shared > 0 {
            specs.extend([
                Spec::matrix("ffn_gate_shexp.weight", self.n_ff_shared, n),
                Spec::matrix("ffn_up_shexp.weight", self.n_ff_shared, n),
                Spec::matrix("ffn_down_shexp.weight", n, self.n_ff_shared),
            ]);
        }
        specs
    }
}

impl LayerBuilder<'_> {
    /// The feed-forward network: the block's experts where it has some, else the gated network;
    /// `act` is a unary op.
    ///
    /// # Errors
    /// When the weights do not fit.
    pub fn ffn(&mut self, x: ValueId, act: Op) -> Result<ValueId, ArchError> {
        match self.hparams.experts {
            Some(experts) if self.block.experts => self.experts(&experts, x, act),
            _ => self.gated_ffn(x, act),
        }
    }

    fn experts(&mut self, experts: &Experts, x: ValueId, act: Op) -> Result<ValueId, ArchError> {
        let (ids, weights) = self.route(experts, x)?;
        let count = experts.count;
        let (tokens, one) = (self.row_count(x), Dim::new(1));
        let n = Dim::new(self.hparams.n_embd);
        let row = self.reshape(x, [tokens.clone(), one.clone(), n], "ffn_row")?;
        let gate = self.expert_product(row, "ffn_gate_exps.weight", ids, count, "exps_gate")?;
        let up = self.expert_product(row, "ffn_up_exps.weight", ids, count, "exps_up")?;
        let gate = self.op(act, &[gate], Attrs::new(), "exps_act")?;
        let gated = self.op(Op::Mul, &[gate, up], Attrs::new(), "exps_gated")?;
        let out = self.expert_product(gated, "ffn_down_exps.weight", ids, count, "exps_down")?;
        let weights = self.reshape(weights, [tokens, Dim::new(experts.used), one], "exps_share")?;
        let out = self.op(Op::Mul, &[out, weights], Attrs::new(), "exps_weighted")?;
        let out = self.op(Op::ReduceSum, &[out], axes(1), "exps_out")?;
        if experts.n_ff_shared == 0 {
            return Ok(out);
        }
        let shared = self.shared_expert(x, act)?;
        self.op(Op::Add, &[out, shared], Attrs::new(), "ffn_out")
    }

    /// The network that every token goes through, weighted where the block has a weight for that.
    fn shared_expert(&mut self, x: ValueId, act: Op) -> Result<ValueId, ArchError> {
        let gate = self.linear(x, "ffn_gate_shexp.weight", "", "shexp_gate")?;
        let up = self.linear(x, "ffn_up_shexp.weight", "", "shexp_up")?;
        let gate = self.op(act, &[gate], Attrs::new(), "shexp_act")?;
        let gated = self.op(Op::Mul, &[gate, up], Attrs::new(), "shexp_gated")?;
        let out = self.linear(gated, "ffn_down_shexp.weight", "", "shexp_out")?;
        if !self.has(SHARED_GATE) {
            return Ok(out);
        }
        let share = self.linear(x, SHARED_GATE, "", "shexp_score")?;
        let share = self.op(Op::Sigmoid, &[share], Attrs::new(), "shexp_share")?;
        self.op(Op::Mul, &[out, share], Attrs::new(), "shexp_weighted")
    }

    /// The experts of each token and their weights, both `[tokens, used]`.
    fn route(&mut self, experts: &Experts, x: ValueId) -> Result<(ValueId, ValueId), ArchError> {
        let scores = self.linear(x, "ffn_gate_inp.weight", "", "router")?;
        let probs = match experts.gating {
            Gating::Softmax => {
                self.op(Op::Softmax, &[scores], Attrs::new().with("axis", -1i64), "router_probs")?
            }
            Gating::Sigmoid => self.op(Op::Sigmoid, &[scores], Attrs::new(), "router_probs")?,
        };
        let mut choice = probs;
        if self.has("exp_probs_b.bias") {
            let bias = self.weight("exp_probs_b.bias")?;
            let bias = blocks::as_f32(&mut self.f, bias);
            let bias = self.built(bias)?;
            choice = self.op(Op::Add, &[probs, bias], Attrs::new(), "router_biased")?;
        }
        if let Some((all, chosen)) = experts.groups {
            choice = self.best_groups(experts, choice, all, chosen)?;
        }
        let (mut weights, ids) = self.top_k(choice, experts.used, "exps_best")?;
        if choice != probs {
            weights = self.picked(experts, probs, ids)?;
        }
        if experts.normed {
            let sum = Attrs::new().with("axes", vec![1i64]).with("keepdims", true);
            let sum = self.op(Op::ReduceSum, &[weights], sum, "exps_sum")?;
            let least = blocks::number(&mut self.f, LEAST_SUM);
            let least = self.built(least)?;
            let sum = self.op(Op::Max, &[sum, least], Attrs::new(), "exps_sum_least")?;
            weights = self.op(Op::Div, &[weights, sum], Attrs::new(), "exps_normed")?;
        }
        let weights = blocks::scaled(&mut self.f, weights, experts.scale);
        Ok((ids, self.built(weights)?))
    }

    fn top_k(&mut self, x: ValueId, k: u64, name: &str) -> Result<(ValueId, ValueId), ArchError> {
        let attrs = Attrs::new().with("k", k as i64);
        let found = self.f.op_multi(Op::TopK, &[x], attrs, &[]);
        let found = self.built(found)?;
        self.f.name(found[0], name);
        self.f.name(found[1], &format!("{name}_ids"));
        Ok((found[0], found[1]))
    }

    /// The scores, but those of experts outside a token's best groups the least number. A group is
    /// as good as its two best experts together.
    fn best_groups(
        &mut self,
        experts: &Experts,
        scores: ValueId,
        all: u64,
        chosen: u64,
    ) -> Result<ValueId, ArchError> {
        let tokens = self.row_count(scores);
        let each = experts.count / all;
        let dims = [tokens.clone(), Dim::new(all), Dim::new(each)];
        let grouped = self.reshape(scores, dims, "router_groups")?;
        let (two, _) = self.top_k(grouped, 2, "group_best")?;
        let sums = self.op(Op::ReduceSum, &[two], axes(2), "group_scores")?;
        let (_, ids) = self.top_k(sums, chosen, "groups")?;
        // Whether a group is among the chosen.
        let numbers = TensorType::new(DType::I32, [Dim::new(all), Dim::new(1)]);
        let numbers = self.f.op_to(Op::Iota, &[], Attrs::new().with("axis", 0i64), numbers);
        let numbers = self.named(numbers, "group_numbers")?;
        let ids =
            self.reshape(ids, [tokens.clone(), Dim::new(1), Dim::new(chosen)], "group_ids")?;
        let hits = self.op(Op::Eq, &[ids, numbers], Attrs::new(), "group_hits")?;
        let ty = self.f.ty(hits).with_dtype(DType::F32);
        let hits = self.f.op_to(Op::Cast, &[hits], Attrs::new(), ty);
        let hits = self.named(hits, "group_hits_f32")?;
        let most = Attrs::new().with("axes", vec![2i64]).with("keepdims", true);
        let hit = self.op(Op::ReduceMax, &[hits], most, "group_hit")?;
        let half = blocks::number(&mut self.f, 0.5);
        let half = self.built(half)?;
        let hit = self.op(Op::Gt, &[hit, half], Attrs::new(), "group_chosen")?;
        let none = blocks::number(&mut self.f, f64::from(f32::MIN));
        let none = self.built(none)?;
        let left = self.op(Op::Select, &[hit, grouped, none], Attrs::new(), "group_left")?;
        self.reshape(left, [tokens, Dim::new(experts.count)], "router_left")
    }

    /// `probs[t, ids[t, i]]`.
    fn picked(
        &mut self,
        experts: &Experts,
        probs: ValueId,
        ids: ValueId,
    ) -> Result<ValueId, ArchError> {
        let tokens = self.row_count(probs);
        let rows = TensorType::new(DType::I32, [tokens.clone(), Dim::new(1)]);
        let rows = self.f.op_to(Op::Iota, &[], Attrs::new().with("axis", 0i64), rows);
        let rows = self.named(rows, "router_rows")?;
        let width = self.f.op_to(
            Op::Splat,
            &[],
            Attrs::new().with("value", experts.count as f64),
            TensorType::scalar(DType::I32),
        );
        let width = self.built(width)?;
        let first = self.op(Op::Mul, &[rows, width], Attrs::new(), "router_firsts")?;
        let places = self.op(Op::Add, &[ids, first], Attrs::new(), "exps_places")?;
        let all = &tokens * &Dim::new(experts.count);
        let flat = self.reshape(probs, [all], "router_flat")?;
        self.op(Op::Gather, &[flat, places], Attrs::new().with("axis", 0i64), "exps_probs")
    }
}

/// The weight of the score of the shared expert.
pub(super) const SHARED_GATE: &str = "ffn_gate_inp_shexp.weight";

fn axes(axis: i64) -> Attrs {
    Attrs::new().with("axes", vec![axis])
}
