//! For every op, how it is differentiated.
//!
//! The compiler asks for a row when an op is added to the op table; the gradient tests ask for an
//! instance of every row with a rule.

use aether_ir::Op;

use super::rules::{
    attention, elementwise as ew, fused, gather, matmul, norm, reduce, rope, shape, sort, window,
};
use super::vjp::Derivative;
use Derivative::{Composed, Refused, Rule, Structural, Unary, Zero};

/// The op's row.
pub(crate) fn derivative(op: Op) -> Derivative {
    match op {
        Op::Call | Op::Fused => Structural,
        Op::Constant | Op::Splat | Op::Iota => Zero,

        Op::Neg => Unary(ew::neg),
        Op::Abs => Unary(ew::abs),
        Op::Exp => Unary(ew::exp),
        Op::Log => Unary(ew::log),
        Op::Sqrt => Unary(ew::sqrt),
        Op::Rsqrt => Unary(ew::rsqrt),
        Op::Sin => Unary(ew::sin),
        Op::Cos => Unary(ew::cos),
        Op::Tanh => Unary(ew::tanh),
        Op::Sigmoid => Unary(ew::sigmoid),
        Op::Relu => Unary(ew::relu),
        Op::Gelu => Unary(ew::gelu),
        Op::GeluTanh => Unary(ew::gelu_tanh),
        Op::Silu => Unary(ew::silu),
        Op::Erf => Unary(ew::erf),
        Op::Sign | Op::Floor | Op::Ceil | Op::Round => Zero,

        Op::Add => Rule(ew::add),
        Op::Sub => Rule(ew::sub),
        Op::Mul => Rule(ew::mul),
        Op::Div => Rule(ew::div),
        Op::Pow => Rule(ew::pow),
        Op::Max => Rule(ew::max),
        Op::Min => Rule(ew::min),
        Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge | Op::And | Op::Or | Op::Not => Zero,
        Op::Select => Rule(ew::select),
        Op::Cast => Unary(ew::cast),

        Op::Reshape => Rule(shape::reshape),
        Op::Broadcast => Rule(shape::broadcast),
        Op::Transpose => Rule(shape::transpose),
        Op::Slice => Rule(shape::slice),
        Op::Concat => Rule(shape::concat),
        Op::Pad => Rule(shape::pad),
        Op::Flip => Rule(shape::flip),
        Op::StopGradient => Zero,
        Op::Barrier => Rule(shape::barrier),
        Op::Transfer => Rule(shape::transfer),
        Op::RngBits | Op::Quantize => Zero,
        Op::ScatterAdd => Rule(gather::scatter_add),
        Op::Gather => Rule(gather::gather),

        Op::ReduceSum => Rule(reduce::sum),
        Op::ReduceMean => Rule(reduce::mean),
        Op::ReduceProd => Composed(reduce::prod),
        Op::ReduceMax | Op::ReduceMin => Rule(reduce::extremum),
        Op::Argmax => Zero,
        Op::Sort => Rule(sort::sort),
        Op::Cumsum => Rule(reduce::cumsum),
        Op::WindowSum => Rule(window::window_sum),
        Op::WindowMax => Rule(window::window_max),
        Op::TopK => Rule(sort::top_k),

        Op::Matmul => Rule(matmul::matmul),
        Op::ExpertMatmul => Composed(matmul::expert_matmul),
        Op::Conv => Rule(window::conv),

        Op::Softmax => Rule(norm::softmax),
        Op::LogSoftmax => Rule(norm::log_softmax),
        Op::RmsNorm => Rule(norm::rms_norm),
        Op::LayerNorm => Rule(norm::layer_norm),
        Op::Rope => Rule(rope::rope),
        Op::Attention => Composed(attention::attention),
        Op::KvAppend => Rule(attention::kv_append),

        Op::Pack => Refused("packed layouts have no gradient: differentiate before `layout` runs"),
        Op::NormMatmulMulti | Op::NormMatmulGated | Op::RopeAppend => {
            Refused("made for one kernel: differentiate before `fuse` runs")
        }
        Op::MatmulAdd => Composed(fused::matmul_add),
        Op::MatmulAct => Composed(fused::matmul_act),
        Op::MatmulGated => Composed(fused::matmul_gated),
        Op::MatmulMulti => Composed(fused::matmul_multi),
    }
}

/// Whether the op has a gradient rule of its own.
pub fn is_differentiable(op: Op) -> bool {
    matches!(derivative(op), Unary(_) | Rule(_) | Composed(_))
}
