//! The op table: the only place that says what an operation is.
//!
//! A row names the op, its operands and attributes, its type rule ([`InferFn`]), its reference
//! meaning ([`EvalFn`]) and what it is for. Gradients (passes) and kernels (code generators) hang
//! on [`Op`]. Type rules and meanings stand next to each other in one file per family.

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod experts;
pub mod fused;
pub mod gather;
pub mod matmul;
pub mod norm;
pub mod prologue;
pub mod quantize;
pub mod random;
pub mod reduce;
pub mod rope;
pub mod shape;
pub mod slots;
pub mod sort;
pub mod window;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::attr::{AttrKind, AttrSpec, Attrs};
use crate::tensor::{EvalCtx, EvalError, Tensor};
use crate::types::TensorType;

/// What a type rule sees.
pub struct InferCtx<'a> {
    pub operands: &'a [&'a TensorType],
    pub attrs: &'a Attrs,
    /// Result types as written. Ops such as `reshape` and `cast` take their target from here;
    /// it is empty when the builder asks for an op that does not need it.
    pub declared: &'a [TensorType],
}

impl InferCtx<'_> {
    /// The declared type of the only result.
    pub fn target(&self) -> Result<&TensorType, String> {
        self.declared.first().ok_or_else(|| "the result type must be written".to_owned())
    }
}

/// A type rule: result types, or what was expected.
pub type InferFn = fn(&InferCtx) -> Result<Vec<TensorType>, String>;

/// A reference meaning: the results for concrete operands.
pub type EvalFn = fn(&EvalCtx) -> Result<Vec<Tensor>, EvalError>;

/// How many operands an op takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arity {
    pub min: usize,
    pub max: usize,
}

/// A row of the op table.
pub struct OpInfo {
    pub op: Op,
    pub name: &'static str,
    pub arity: Arity,
    pub attrs: &'static [AttrSpec],
    pub infer: InferFn,
    /// `None` for the structural ops that the interpreter itself carries out.
    pub eval: Option<EvalFn>,
    pub doc: &'static str,
}

const fn req(name: &'static str, kind: AttrKind, doc: &'static str) -> AttrSpec {
    AttrSpec { name, kind, required: true, doc }
}

const fn opt(name: &'static str, kind: AttrKind, doc: &'static str) -> AttrSpec {
    AttrSpec { name, kind, required: false, doc }
}

const AXIS: AttrSpec = req("axis", AttrKind::Int, "the axis, counted from the end when negative");
const AXES: AttrSpec = req("axes", AttrKind::Ints, "the axes that are reduced");
const KEEPDIMS: AttrSpec =
    opt("keepdims", AttrKind::Bool, "keep reduced axes with length 1 (default false)");
const EPS: AttrSpec = req("eps", AttrKind::Float, "added to the mean square or variance");
const STRIDE: AttrSpec =
    opt("stride", AttrKind::Ints, "steps between windows, one per spatial axis (default 1)");
const PADDING: AttrSpec = opt(
    "padding",
    AttrKind::Ints,
    "elements added before and behind each spatial axis, [lo, hi, lo, hi, …]; negative ones crop (default 0)",
);
const DILATION: AttrSpec =
    opt("dilation", AttrKind::Ints, "steps between elements of the window (default 1)");
const LHS_DILATION: AttrSpec = opt(
    "lhs_dilation",
    AttrKind::Ints,
    "steps between elements of the operand, zeros between them (default 1)",
);
const WINDOW: AttrSpec =
    req("window", AttrKind::Ints, "sizes of the window over as many trailing axes");
const TRANSPOSE_B: AttrSpec =
    opt("transpose_b", AttrKind::Bool, "the right operand is stored as [n, k] (default false)");
const ACT: AttrSpec = req("act", AttrKind::Str, "`silu`, `gelu` or `gelu_tanh`");

const ANY_ACT: AttrSpec =
    req("act", AttrKind::Str, "`relu`, `silu`, `gelu`, `gelu_tanh`, `sigmoid` or `tanh`");

const ROPE_MODE: AttrSpec =
    req("mode", AttrKind::Str, "`norm` rotates neighbours (2i, 2i+1), `neox` halves (i, i+n/2)");
const ROPE_THETA: AttrSpec = req("theta", AttrKind::Float, "base of the frequencies");
const ROPE_N_DIMS: AttrSpec =
    req("n_dims", AttrKind::Int, "leading dimensions of each head that are rotated");
const ROPE_FREQ_SCALE: AttrSpec =
    opt("freq_scale", AttrKind::Float, "positions are multiplied by it (default 1)");
const ROPE_EXT_FACTOR: AttrSpec =
    opt("ext_factor", AttrKind::Float, "share of YaRN's extrapolation (default 0)");
const ROPE_ATTN_FACTOR: AttrSpec =
    opt("attn_factor", AttrKind::Float, "magnitude of the rotated part (default 1)");
const ROPE_BETA_FAST: AttrSpec = opt("beta_fast", AttrKind::Float, "YaRN (default 32)");
const ROPE_BETA_SLOW: AttrSpec = opt("beta_slow", AttrKind::Float, "YaRN (default 1)");
const ROPE_N_CTX_ORIG: AttrSpec =
    opt("n_ctx_orig", AttrKind::Int, "context the model was trained with, for YaRN (default 0)");

macro_rules! op_table {
    ($($variant:ident $name:literal $min:literal..=$max:expr, [$($attr:expr),*], $infer:expr, $eval:expr, $doc:literal;)*) => {
        /// An operation; [`Op::info`] has its row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op { $(#[doc = $doc] $variant,)* }

        static TABLE: &[OpInfo] = &[$(OpInfo {
            op: Op::$variant,
            name: $name,
            arity: Arity { min: $min, max: $max },
            attrs: &[$($attr),*],
            infer: $infer,
            eval: $eval,
            doc: $doc,
        },)*];
    };
}

/// Most operands a variadic op takes.
pub const MAX_OPERANDS: usize = 64;

use elementwise as ew;

op_table! {
    Constant "constant" 0..=0, [], shape::infer_declared, None, "A constant of the module, named by `@symbol`.";
    Call "call" 0..=4096, [opt("checkpoint", AttrKind::Bool, "a gradient recomputes the callee's values instead of keeping them (default false)")], shape::infer_declared, None, "Calls the function `@symbol`.";
    Fused "fused" 0..=MAX_OPERANDS, [], shape::infer_declared, None, "Calls the function `@symbol`, whose body is one loop over elements ([`crate::fusion`]): code generators make one kernel of it.";
    Splat "splat" 0..=0, [req("value", AttrKind::Float, "the value of every element")], shape::infer_declared, Some(shape::eval_splat), "A tensor filled with one value.";
    Iota "iota" 0..=0, [AXIS], shape::infer_iota, Some(shape::eval_iota), "Counts 0, 1, 2, … along an axis.";

    Neg "neg" 1..=1, [], ew::infer_unary, Some(ew::eval_neg), "Negation.";
    Abs "abs" 1..=1, [], ew::infer_unary, Some(ew::eval_abs), "Absolute value.";
    Sign "sign" 1..=1, [], ew::infer_unary, Some(ew::eval_sign), "-1, 0 or 1; NaN stays NaN.";
    Exp "exp" 1..=1, [], ew::infer_unary_float, Some(ew::eval_exp), "e to the power of x.";
    Log "log" 1..=1, [], ew::infer_unary_float, Some(ew::eval_log), "Natural logarithm.";
    Sqrt "sqrt" 1..=1, [], ew::infer_unary_float, Some(ew::eval_sqrt), "Square root.";
    Rsqrt "rsqrt" 1..=1, [], ew::infer_unary_float, Some(ew::eval_rsqrt), "One over the square root.";
    Sin "sin" 1..=1, [], ew::infer_unary_float, Some(ew::eval_sin), "Sine of radians.";
    Cos "cos" 1..=1, [], ew::infer_unary_float, Some(ew::eval_cos), "Cosine of radians.";
    Tanh "tanh" 1..=1, [], ew::infer_unary_float, Some(ew::eval_tanh), "Hyperbolic tangent.";
    Sigmoid "sigmoid" 1..=1, [], ew::infer_unary_float, Some(ew::eval_sigmoid), "1 / (1 + exp(-x)).";
    Relu "relu" 1..=1, [], ew::infer_unary, Some(ew::eval_relu), "max(x, 0).";
    Gelu "gelu" 1..=1, [], ew::infer_unary_float, Some(ew::eval_gelu), "x * Phi(x) with the error function (Hendrycks and Gimpel 2016).";
    GeluTanh "gelu_tanh" 1..=1, [], ew::infer_unary_float, Some(ew::eval_gelu_tanh), "The tanh approximation of gelu.";
    Silu "silu" 1..=1, [], ew::infer_unary_float, Some(ew::eval_silu), "x * sigmoid(x).";
    Erf "erf" 1..=1, [], ew::infer_unary_float, Some(ew::eval_erf), "The error function.";
    Floor "floor" 1..=1, [], ew::infer_unary_float, Some(ew::eval_floor), "Rounds down.";
    Ceil "ceil" 1..=1, [], ew::infer_unary_float, Some(ew::eval_ceil), "Rounds up.";
    Round "round" 1..=1, [], ew::infer_unary_float, Some(ew::eval_round), "Rounds to nearest, ties to even.";
    Not "not" 1..=1, [], ew::infer_not, Some(ew::eval_not), "Logical not of `bool`.";

    Add "add" 2..=2, [], ew::infer_binary, Some(ew::eval_add), "Sum, broadcast; integers wrap.";
    Sub "sub" 2..=2, [], ew::infer_binary, Some(ew::eval_sub), "Difference, broadcast; integers wrap.";
    Mul "mul" 2..=2, [], ew::infer_binary, Some(ew::eval_mul), "Product, broadcast; integers wrap.";
    Div "div" 2..=2, [], ew::infer_binary, Some(ew::eval_div), "Quotient, broadcast; integers truncate, and a zero divisor is an error.";
    Pow "pow" 2..=2, [], ew::infer_binary_float, Some(ew::eval_pow), "Power, broadcast.";
    Max "max" 2..=2, [], ew::infer_binary, Some(ew::eval_max), "Greater of two, broadcast; NaN wins.";
    Min "min" 2..=2, [], ew::infer_binary, Some(ew::eval_min), "Smaller of two, broadcast; NaN wins.";
    Eq "eq" 2..=2, [], ew::infer_compare, Some(ew::eval_eq), "Equal, broadcast, to `bool`.";
    Ne "ne" 2..=2, [], ew::infer_compare, Some(ew::eval_ne), "Not equal, broadcast, to `bool`.";
    Lt "lt" 2..=2, [], ew::infer_compare, Some(ew::eval_lt), "Less, broadcast, to `bool`.";
    Le "le" 2..=2, [], ew::infer_compare, Some(ew::eval_le), "Less or equal, broadcast, to `bool`.";
    Gt "gt" 2..=2, [], ew::infer_compare, Some(ew::eval_gt), "Greater, broadcast, to `bool`.";
    Ge "ge" 2..=2, [], ew::infer_compare, Some(ew::eval_ge), "Greater or equal, broadcast, to `bool`.";
    And "and" 2..=2, [], ew::infer_logical, Some(ew::eval_and), "Logical and of `bool`, broadcast.";
    Or "or" 2..=2, [], ew::infer_logical, Some(ew::eval_or), "Logical or of `bool`, broadcast.";
    Select "select" 3..=3, [], ew::infer_select, Some(ew::eval_select), "Where the first operand holds, the second, else the third; broadcast.";
    Cast "cast" 1..=1, [], ew::infer_cast, Some(ew::eval_cast), "To the element type of the result: floats to integers truncate and saturate, NaN to 0; integers wrap to narrower ones; `bool` is whether a number is not 0; from quantised types dequantises.";

    Reshape "reshape" 1..=1, [], shape::infer_reshape, Some(shape::eval_reshape), "The same elements in row-major order under the shape of the result.";
    Broadcast "broadcast" 1..=1, [], shape::infer_broadcast, Some(shape::eval_broadcast), "NumPy's broadcast to the shape of the result.";
    Transpose "transpose" 1..=1, [req("perm", AttrKind::Ints, "axis i of the result is axis perm[i] of the operand")], shape::infer_transpose, Some(shape::eval_transpose), "Permutes axes.";
    Slice "slice" 1..=1, [req("starts", AttrKind::Ints, "first index per axis"), req("limits", AttrKind::Ints, "index after the last per axis"), opt("steps", AttrKind::Ints, "stride per axis (default 1)")], shape::infer_slice, Some(shape::eval_slice), "A strided part. Axes of symbolic length are taken whole: start 0, limit -1, step 1.";
    Concat "concat" 1..=MAX_OPERANDS, [AXIS], shape::infer_concat, Some(shape::eval_concat), "Joins along an axis.";
    Gather "gather" 2..=2, [AXIS], gather::infer_gather, Some(gather::eval_gather), "Picks along an axis by i32 or i64 indices; rows of a quantised table come dequantised to f32. An index out of range is an error.";
    ScatterAdd "scatter_add" 3..=3, [AXIS], gather::infer_scatter_add, Some(gather::eval_scatter_add), "The first operand with the third added at the places along an axis that `gather` would pick by the i32 or i64 indices of the second. Repeated indices add up; one out of range is an error.";
    Pad "pad" 1..=1, [req("low", AttrKind::Ints, "elements added before each axis"), req("high", AttrKind::Ints, "elements added behind each axis"), opt("value", AttrKind::Float, "their value (default 0)")], shape::infer_pad, Some(shape::eval_pad), "Surrounds with one value.";
    Flip "flip" 1..=1, [req("axes", AttrKind::Ints, "the axes that are turned round")], shape::infer_flip, Some(shape::eval_flip), "The elements of some axes in reverse order.";
    RngBits "rng_bits" 1..=1, [], random::infer_rng_bits, Some(random::eval_rng_bits), "u32 random bits of the written shape, and the new state, by Threefry-2x32 (Salmon et al. 2011). The state is u32 [4]: key, and counter with the high word first.";
    Quantize "quantize" 1..=1, [], quantize::infer_quantize, Some(quantize::eval_quantize), "f32 to the block-quantised type of the result by ggml's reference rounding; `cast` dequantises.";
    StopGradient "stop_gradient" 1..=1, [], shape::infer_identity, Some(shape::eval_identity), "The operand, taken as a constant by differentiation.";
    Barrier "barrier" 1..=MAX_OPERANDS, [], shape::infer_identity, Some(shape::eval_identity), "The operands, through which no pass looks: what is computed from the results is not merged with what is computed from the operands.";
    Transfer "transfer" 1..=1, [req("to", AttrKind::Str, "`cpu` or `gpu`")], shape::infer_transfer, Some(shape::eval_identity), "The operand in the memory of a device; placement writes it where a value crosses.";

    ReduceSum "reduce_sum" 1..=1, [AXES, KEEPDIMS], reduce::infer_reduce, Some(reduce::eval_sum), "Sum over axes.";
    ReduceMean "reduce_mean" 1..=1, [AXES, KEEPDIMS], reduce::infer_reduce_float, Some(reduce::eval_mean), "Mean over axes.";
    ReduceProd "reduce_prod" 1..=1, [AXES, KEEPDIMS], reduce::infer_reduce, Some(reduce::eval_prod), "Product over axes.";
    ReduceMax "reduce_max" 1..=1, [AXES, KEEPDIMS], reduce::infer_reduce, Some(reduce::eval_max), "Greatest over axes; NaN wins.";
    ReduceMin "reduce_min" 1..=1, [AXES, KEEPDIMS], reduce::infer_reduce, Some(reduce::eval_min), "Smallest over axes; NaN wins.";
    Argmax "argmax" 1..=1, [AXIS], sort::infer_argmax, Some(sort::eval_argmax), "Index (i32) of the greatest along an axis; the first among equals; NaN is greatest.";
    TopK "top_k" 1..=1, [req("k", AttrKind::Int, "how many")], sort::infer_top_k, Some(sort::eval_top_k), "The k greatest along the last axis in falling order, and their i32 indices; equal ones by index.";
    Sort "sort" 1..=1, [AXIS, opt("descending", AttrKind::Bool, "from the greatest on (default false)")], sort::infer_sort, Some(sort::eval_sort), "The elements along an axis in order, and their i32 indices; equal ones by index; NaN is greatest.";
    Cumsum "cumsum" 1..=1, [AXIS, opt("exclusive", AttrKind::Bool, "an element does not count itself (default false)"), opt("reverse", AttrKind::Bool, "from the end on (default false)")], reduce::infer_cumsum, Some(reduce::eval_cumsum), "Running sum along an axis; integers wrap.";
    WindowSum "window_sum" 1..=1, [WINDOW, STRIDE, PADDING, DILATION, LHS_DILATION], window::infer_window_sum, Some(window::eval_window_sum), "Sum over sliding windows of the trailing axes; padding counts 0. Its transpose is a `window_sum` with stride and lhs_dilation exchanged.";
    WindowMax "window_max" 1..=1, [WINDOW, STRIDE, PADDING], window::infer_window_max, Some(window::eval_window_max), "Greatest of sliding windows of the trailing axes, and its i32 place in them, row-major; the first among equals; NaN is greatest. Padding is never picked and must be smaller than the window.";

    Matmul "matmul" 2..=2, [TRANSPOSE_B], matmul::infer_matmul, Some(matmul::eval_matmul), "Matrix product over the last two axes, leading axes broadcast. The right operand may be quantised with `transpose_b` (blocks lie along k); sums are f32 or f64.";
    ExpertMatmul "expert_matmul" 3..=3, [req("experts", AttrKind::Int, "how many matrices the second operand stacks")], experts::infer_expert_matmul, Some(experts::eval_expert_matmul), "Rows times the transposed matrix of an expert each: x [tokens, picks, k], or [tokens, 1, k] for the same row with every pick, the matrices of all experts one above the other [experts * n, k], and the i32 experts picked [tokens, picks], to [tokens, picks, n]. An expert out of range is an error.";
    Conv "conv" 2..=2, [STRIDE, PADDING, DILATION, LHS_DILATION, opt("groups", AttrKind::Int, "parts into which the channels fall (default 1)")], conv::infer_conv, Some(conv::eval_conv), "Convolution (cross-correlation) of x [n, c_in, spatial…] with w [c_out, c_in / groups, kernel…] to [n, c_out, spatial…].";

    Softmax "softmax" 1..=1, [AXIS], norm::infer_softmax, Some(norm::eval_softmax), "exp(x - max) over their sum, along an axis.";
    LogSoftmax "log_softmax" 1..=1, [AXIS], norm::infer_softmax, Some(norm::eval_log_softmax), "Logarithm of softmax, along an axis.";
    RmsNorm "rms_norm" 2..=2, [EPS], norm::infer_rms_norm, Some(norm::eval_rms_norm), "x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019).";
    LayerNorm "layer_norm" 3..=3, [EPS], norm::infer_layer_norm, Some(norm::eval_layer_norm), "(x - mean) / sqrt(var + eps) * weight + bias over the last axis (Ba et al. 2016).";
    Rope "rope" 2..=3, [
        ROPE_MODE, ROPE_THETA, ROPE_N_DIMS, ROPE_FREQ_SCALE, ROPE_EXT_FACTOR, ROPE_ATTN_FACTOR, ROPE_BETA_FAST, ROPE_BETA_SLOW, ROPE_N_CTX_ORIG
    ], rope::infer_rope, Some(rope::eval_rope), "Rotary position embedding (Su et al. 2021) of x [tokens, heads, head_dim] at i32 positions: a scalar is the first token's. An optional f32 [n_dims/2] divides the frequencies.";
    Attention "attention" 4..=5, [
        req("scale", AttrKind::Float, "factor of the scores"),
        opt("causal", AttrKind::Bool, "token i sees keys up to position past + i (default true)"),
        opt("window", AttrKind::Int, "keys at most window - 1 positions back are seen; 0 for all (default 0)"),
        opt("softcap", AttrKind::Float, "scores become cap * tanh(score / cap); 0 for none (default 0)")
    ], attention::infer_attention, Some(attention::eval_attention), "Scaled dot product attention of q [tokens, heads, d] over caches k [context, kv_heads, d] and v [context, kv_heads, dv]; the fourth operand is the i32 scalar `past`: keys 0..past+tokens are valid. Query head h reads kv head h / (heads / kv_heads). With five operands many sequences go together: the caches have an axis of slots in front, and the last two operands are the i32 position and slot of every token. The tokens of a slot stand together at positions that rise by one.";
    KvAppend "kv_append" 3..=4, [], attention::infer_kv_append, Some(attention::eval_kv_append), "The cache [context, kv_heads, d] with rows past..past+tokens replaced by the second operand [tokens, kv_heads, d], cast to the cache's type; the third operand is the i32 scalar `past`. With four operands the cache has an axis of slots in front, and the last two are the i32 position and slot of every token: row i goes to slot slots[i] at positions[i]. The tokens of a slot stand together at positions that rise by one.";

    Pack "pack" 1..=1, [], fused::infer_pack, Some(fused::eval_pack), "The same matrix in the packed layout of the result type.";
    MatmulAdd "matmul_add" 3..=3, [], fused::infer_matmul_add, Some(fused::eval_matmul_add), "x · wᵀ + r, with r of the product's shape or a row of it.";
    MatmulAct "matmul_act" 2..=3, [TRANSPOSE_B, ANY_ACT], fused::infer_matmul_act, Some(fused::eval_matmul_act), "act(x · w + r), with r of the product's shape, a row of it, or left out.";
    MatmulGated "matmul_gated" 3..=3, [ACT], fused::infer_matmul_gated, Some(fused::eval_matmul_gated), "act(x · w_gateᵀ) * (x · w_upᵀ).";
    MatmulMulti "matmul_multi" 3..=MAX_OPERANDS, [req("weights", AttrKind::Int, "number n of weights"), opt("biases", AttrKind::Ints, "for each bias operand the index of its weight")], fused::infer_matmul_multi, Some(fused::eval_matmul_multi), "Products of one x with n weights: operands x, w_0 … w_{n-1}, then biases; results x · w_iᵀ (+ bias_i).";
    NormMatmulMulti "norm_matmul_multi" 3..=MAX_OPERANDS, [EPS, req("weights", AttrKind::Int, "number n of weights"), opt("biases", AttrKind::Ints, "for each bias operand the index of its weight")], prologue::infer_norm_matmul_multi, Some(prologue::eval_norm_matmul_multi), "matmul_multi of rms_norm(x, w): operands x, w, then as matmul_multi.";
    NormMatmulGated "norm_matmul_gated" 4..=4, [EPS, ACT], prologue::infer_norm_matmul_gated, Some(prologue::eval_norm_matmul_gated), "matmul_gated of rms_norm(x, w): operands x, w, w_gate, w_up.";
    RopeAppend "rope_append" 6..=8, [
        ROPE_MODE, ROPE_THETA, ROPE_N_DIMS, ROPE_FREQ_SCALE, ROPE_EXT_FACTOR, ROPE_ATTN_FACTOR, ROPE_BETA_FAST, ROPE_BETA_SLOW, ROPE_N_CTX_ORIG
    ], prologue::infer_rope_append, Some(prologue::eval_rope_append), "rope of q and k, and kv_append of k and v: operands q, k, v, both caches, then as kv_append and rope say where tokens stand, and factors or none; results q turned and both caches.";
}

impl Op {
    /// Every op, in table order.
    pub fn all() -> impl Iterator<Item = Op> {
        TABLE.iter().map(|row| row.op)
    }

    /// The op's row.
    pub fn info(self) -> &'static OpInfo {
        &TABLE[self as usize]
    }

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Whether the op runs the function that its symbol names.
    pub fn is_call(self) -> bool {
        matches!(self, Op::Call | Op::Fused)
    }

    /// The op of that name.
    pub fn from_name(name: &str) -> Option<Op> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.op)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Op::from_name(s).ok_or_else(|| format!("unknown operation `{s}`"))
    }
}

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Op {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_with_unique_names_and_meanings() {
        let mut names = std::collections::BTreeSet::new();
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.op as usize, i);
            assert!(names.insert(row.name), "{} twice", row.name);
            assert!(!row.doc.is_empty() && row.doc.ends_with('.'), "{}", row.name);
            let structural = matches!(row.op, Op::Constant) || row.op.is_call();
            assert_eq!(row.eval.is_none(), structural, "{} lacks a meaning", row.name);
        }
    }
}
