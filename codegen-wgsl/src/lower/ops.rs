//! Elementwise ops as WGSL expressions.

use aether_ir::{DType, Inst, Op};

use super::text::{number, rounded, value_type};

/// The element that an elementwise op gives, from those of its operands. `None` when WGSL cannot
/// compute it.
///
/// Functions named here are in [`super::text::FUNCTIONS`]; [`Op::Div`] of integers calls `div_i32`
/// or `div_u32`, which [`DIVISION`] defines.
pub fn element(inst: &Inst, args: &[String], from: DType, to: DType) -> Option<String> {
    let kind = value_type(from)?;
    value_type(to)?;
    let float = kind == "f32";
    let signed = kind == "i32";
    let [a, b, c] = [0, 1, 2].map(|i| args.get(i).map_or("", String::as_str));
    let text = match inst.op {
        Op::Neg if kind == "u32" => format!("(0u - {a})"),
        Op::Neg if signed => format!("(0i - {a})"),
        Op::Neg => format!("(-{a})"),
        Op::Abs if kind == "u32" => a.to_owned(),
        Op::Abs => format!("abs({a})"),
        Op::Sign if float => format!("sign_nan({a})"),
        Op::Sign if signed => format!("sign({a})"),
        Op::Sign => format!("min({a}, 1u)"),
        Op::Exp => format!("exp({a})"),
        Op::Log => format!("log({a})"),
        Op::Sqrt => format!("sqrt({a})"),
        Op::Rsqrt => format!("inverseSqrt({a})"),
        Op::Sin => format!("sin_all({a})"),
        Op::Cos => format!("cos_all({a})"),
        Op::Tanh => format!("tanh_all({a})"),
        Op::Sigmoid => format!("sigmoid({a})"),
        Op::Relu if float => format!("relu_nan({a})"),
        Op::Relu if signed => format!("max({a}, 0i)"),
        Op::Relu => a.to_owned(),
        Op::Gelu => format!("gelu({a})"),
        Op::GeluTanh => format!("gelu_tanh({a})"),
        Op::Silu => format!("silu({a})"),
        Op::Erf => format!("erf({a})"),
        Op::Floor => format!("floor({a})"),
        Op::Ceil => format!("ceil({a})"),
        Op::Round => format!("round({a})"),
        Op::Not => format!("(!{a})"),
        Op::Add => format!("({a} + {b})"),
        Op::Sub => format!("({a} - {b})"),
        Op::Mul => format!("({a} * {b})"),
        Op::Div if float => format!("({a} / {b})"),
        Op::Div => format!("div_{kind}({a}, {b})"),
        Op::Pow => format!("pow_all({a}, {b})"),
        Op::Max if float => format!("max_nan({a}, {b})"),
        Op::Min if float => format!("min_nan({a}, {b})"),
        Op::Max => format!("max({a}, {b})"),
        Op::Min => format!("min({a}, {b})"),
        Op::Eq => format!("({a} == {b})"),
        // Not equal is true of NaN, which WGSL's own operator may say is false.
        Op::Ne => format!("(!({a} == {b}))"),
        Op::Lt | Op::Le | Op::Gt | Op::Ge if kind == "bool" => {
            let sign = match inst.op {
                Op::Lt => "<",
                Op::Le => "<=",
                Op::Gt => ">",
                _ => ">=",
            };
            format!("(u32({a}) {sign} u32({b}))")
        }
        Op::Lt => format!("({a} < {b})"),
        Op::Le => format!("({a} <= {b})"),
        Op::Gt => format!("({a} > {b})"),
        Op::Ge => format!("({a} >= {b})"),
        Op::And => format!("({a} && {b})"),
        Op::Or => format!("({a} || {b})"),
        Op::Select => format!("select({c}, {b}, {a})"),
        Op::Broadcast => a.to_owned(),
        Op::Cast => return cast(a, from, to),
        _ => return None,
    };
    Some(rounded(&text, to))
}

/// Functions of integer division; they need `fail`.
pub const DIVISION: &str = "\
fn div_i32(a: i32, b: i32) -> i32 {
    if b == 0 { fail(1u, 0u); return 0; }
    if b == -1 { return 0 - a; }
    return a / b;
}
fn div_u32(a: u32, b: u32) -> u32 { if b == 0u { fail(1u, 0u); return 0u; } return a / b; }
";

/// Whether an op calls what [`DIVISION`] defines.
pub fn divides(inst: &Inst, dtype: DType) -> bool {
    inst.op == Op::Div && dtype.is_int()
}

fn cast(a: &str, from: DType, to: DType) -> Option<String> {
    let text = match (value_type(from)?, value_type(to)?) {
        (x, y) if x == y && x != "f32" => a.to_owned(),
        ("bool", y) => format!("select({0}(0), {0}(1), {a})", y),
        (x, "bool") => format!("({a} != {x}(0))"),
        ("f32", "f32") => a.to_owned(),
        ("f32", "i32") if to == DType::I32 => format!("to_i32({a})"),
        ("f32", "i32") => {
            let high = if to == DType::I8 { "127" } else { "32767" };
            format!("clamp(to_i32({a}), -{high} - 1, {high})")
        }
        ("f32", "u32") if to == DType::U8 => format!("min(to_u32({a}), 255u)"),
        ("f32", "u32") => format!("to_u32({a})"),
        (_, "i32") => format!("bitcast<i32>({a})"),
        (_, "u32") => format!("bitcast<u32>({a})"),
        (_, _) => format!("f32({a})"),
    };
    Some(rounded(&text, to))
}

/// The least and the greatest number of an integer type.
fn range(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::U8 => (0.0, u8::MAX.into()),
        _ => (0.0, u32::MAX.into()),
    }
}

/// Start, step and end of a reduction.
pub struct Reduction {
    /// The accumulator before the first element.
    pub start: String,
    dtype: DType,
    op: Op,
}

impl Reduction {
    /// The reduction of an op over elements of a type.
    pub fn of(op: Op, dtype: DType) -> Option<Reduction> {
        let kind = value_type(dtype)?;
        let infinity = |sign: f64| number(sign * f64::INFINITY, DType::F32);
        let start = match (op, kind) {
            (_, "bool") => return None,
            (Op::ReduceSum | Op::ReduceMean, _) => format!("{kind}(0)"),
            (Op::ReduceProd, _) => format!("{kind}(1)"),
            (Op::ReduceMax, "f32") => infinity(-1.0),
            (Op::ReduceMin, "f32") => infinity(1.0),
            (Op::ReduceMax, _) => number(range(dtype).0, dtype),
            (Op::ReduceMin, _) => number(range(dtype).1, dtype),
            _ => return None,
        };
        Some(Reduction { start, dtype, op })
    }

    /// Two accumulators, or an accumulator and an element, into one.
    pub fn join(&self, a: &str, b: &str) -> String {
        let float = value_type(self.dtype) == Some("f32");
        match self.op {
            Op::ReduceProd => format!("({a} * {b})"),
            Op::ReduceMax if float => format!("max_nan({a}, {b})"),
            Op::ReduceMin if float => format!("min_nan({a}, {b})"),
            Op::ReduceMax => format!("max({a}, {b})"),
            Op::ReduceMin => format!("min({a}, {b})"),
            _ => format!("({a} + {b})"),
        }
    }

    /// The result from the accumulator and the number of elements.
    pub fn end(&self, sum: &str, count: &str) -> String {
        let text = match self.op {
            Op::ReduceMean => format!("({sum} / f32({count}))"),
            _ => sum.to_owned(),
        };
        rounded(&text, self.dtype)
    }
}
