//! Rotary position embedding.
//!
//! Pairs of a head's leading `n_dims` elements are rotated by an angle that grows with the token's
//! position and falls with the pair's index (Su et al. 2021). YaRN (Peng et al. 2023) mixes scaled
//! and unscaled angles over a ramp of the pairs and stretches the magnitude; corner cases follow
//! ggml, whose files the models come in.

use super::InferCtx;
use super::norm::float;
use crate::attr::Attrs;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// The operand's type.
pub fn infer_rope(ctx: &InferCtx) -> Types {
    let (x, pos) = (ctx.operands[0], ctx.operands[1]);
    float(x, "operand")?;
    if x.rank() != 3 {
        return Err(format!("expected [tokens, heads, head_dim], found {x}"));
    }
    let explicit = pos.rank() == 1 && pos.shape.0[0] == x.shape.0[0];
    if pos.dtype != DType::I32 || !(pos.rank() == 0 || explicit) {
        return Err(format!("expected an i32 scalar or one i32 position per token, found {pos}"));
    }
    let n = ctx.attrs.int("n_dims", 0);
    let head_dim = x.shape.0[2].as_const().ok_or("head_dim must be a number")?;
    if n < 2 || n % 2 != 0 || n as u64 > head_dim {
        return Err(format!("n_dims = {n} must be even and at most head_dim = {head_dim}"));
    }
    if !matches!(ctx.attrs.str("mode"), Some("norm" | "neox")) {
        return Err("mode must be \"norm\" or \"neox\"".to_owned());
    }
    if let Some(factors) = ctx.operands.get(2) {
        let fits = factors.rank() == 1 && factors.shape.0[0].is(n as u64 / 2);
        if factors.dtype != DType::F32 || !fits {
            return Err(format!("expected tensor<{}xf32> as factors, found {factors}", n / 2));
        }
    }
    Ok(vec![x.clone()])
}

/// The angle by which each pair turns from one position to the next, and the magnitude of the
/// rotated part. `factors` divide the frequencies and may be empty. The attributes are those of
/// the op.
pub fn frequencies(attrs: &Attrs, factors: &[f64]) -> (Vec<f64>, f64) {
    let n_dims = attrs.int("n_dims", 0).max(0);
    let theta = attrs.float("theta", 1.0);
    let freq_scale = attrs.float("freq_scale", 1.0);
    let ext_factor = attrs.float("ext_factor", 0.0);
    let mut magnitude = attrs.float("attn_factor", 1.0);
    let mut ramp = (0.0, 0.0);
    if ext_factor != 0.0 {
        magnitude *= 1.0 + 0.1 * libm::log(1.0 / freq_scale);
        // The pair that turns `beta` times within the original context.
        let context = attrs.int("n_ctx_orig", 0) as f64;
        let pair = |beta: f64| {
            let turns = context / (beta * std::f64::consts::TAU);
            n_dims as f64 * libm::log(turns) / (2.0 * libm::log(theta))
        };
        let first = pair(attrs.float("beta_fast", 32.0)).floor();
        let last = pair(attrs.float("beta_slow", 1.0)).ceil();
        ramp = (first.max(0.0), last.min(n_dims as f64 - 1.0));
    }
    let frequency = |i: i64| {
        let factor = usize::try_from(i).ok().and_then(|i| factors.get(i)).unwrap_or(&1.0);
        let exponent = -2.0 * i as f64 / n_dims as f64;
        let plain = libm::pow(theta, exponent) / factor;
        let scaled = freq_scale * plain;
        if ext_factor == 0.0 {
            return scaled;
        }
        let along = (i as f64 - ramp.0) / (ramp.1 - ramp.0).max(0.001);
        let mix = (1.0 - along.clamp(0.0, 1.0)) * ext_factor;
        scaled * (1.0 - mix) + plain * mix
    };
    ((0..n_dims / 2).map(frequency).collect(), magnitude)
}

/// Cosine and sine of every pair's angle, magnitude included, at one position.
///
/// Public because kernels build their tables with it; the arguments are those of [`frequencies`].
pub fn rotations(attrs: &Attrs, factors: &[f64], position: i64) -> Vec<(f64, f64)> {
    let (frequencies, magnitude) = frequencies(attrs, factors);
    let angles = frequencies.into_iter().map(|f| position as f64 * f);
    angles.map(|a| (libm::cos(a) * magnitude, libm::sin(a) * magnitude)).collect()
}

/// Rotated heads; elements from `n_dims` on are kept.
pub fn eval_rope(ctx: &EvalCtx) -> Evaluated {
    let (x, positions) = (ctx.operands[0], ctx.operands[1]);
    let factors = ctx.operands.get(2).map_or(Ok(Vec::new()), |f| f.to_f64_vec())?;
    let [tokens, heads, head_dim] = *x.shape() else {
        return Err(EvalError(format!("expected [tokens, heads, head_dim], found {}", x.ty())));
    };
    let given = positions.to_i64_vec()?;
    let scalar = positions.shape().is_empty();
    let half = (ctx.attrs.int("n_dims", 0) / 2) as usize;
    let neox = ctx.attrs.str("mode") == Some("neox");
    let mut values = x.to_f64_vec()?;
    let size = (heads * head_dim).max(1);
    for (t, token) in values.chunks_exact_mut(size).enumerate().take(tokens) {
        let position = if scalar { given[0] + t as i64 } else { given[t] };
        let table = rotations(ctx.attrs, &factors, position);
        for head in token.chunks_exact_mut(head_dim) {
            for (i, (cos, sin)) in table.iter().enumerate() {
                let (a, b) = if neox { (i, i + half) } else { (2 * i, 2 * i + 1) };
                let (p, q) = (head[a], head[b]);
                head[a] = p * cos - q * sin;
                head[b] = p * sin + q * cos;
            }
        }
    }
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)?])
}
