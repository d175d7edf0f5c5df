//! Pieces of WGSL: elements in words, numbers, functions.
//!
//! Every buffer is an array of 32-bit words. Elements of 4 bytes are a word each, smaller ones
//! share words, of 8 bytes take two.

use aether_ir::DType;

/// The WGSL type in which elements of a type are computed; `None` where WGSL has none.
pub fn value_type(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 | DType::F16 | DType::Bf16 => Some("f32"),
        DType::I8 | DType::I16 | DType::I32 => Some("i32"),
        DType::U8 | DType::U32 => Some("u32"),
        DType::Bool => Some("bool"),
        _ => None,
    }
}

/// Elements per word; 1 for types of a word and more.
pub fn per_word(dtype: DType) -> usize {
    (4 / dtype.block_bytes()).max(1)
}

/// The bits of element `index` of a buffer, in the low end of a word. For elements of at most 4
/// bytes; `index` is evaluated twice.
pub fn load_bits(buffer: &str, index: &str, dtype: DType) -> String {
    match dtype.block_bytes() {
        1 => format!("(({buffer}[({index}) >> 2u] >> ((({index}) & 3u) * 8u)) & 255u)"),
        2 => format!("(({buffer}[({index}) >> 1u] >> ((({index}) & 1u) * 16u)) & 65535u)"),
        _ => format!("{buffer}[{index}]"),
    }
}

/// The value whose bits are `bits`.
pub fn from_bits(bits: &str, dtype: DType) -> String {
    match dtype {
        DType::F32 => format!("bitcast<f32>({bits})"),
        DType::F16 => format!("unpack2x16float({bits}).x"),
        DType::Bf16 => format!("bitcast<f32>({bits} << 16u)"),
        DType::I8 => format!("((bitcast<i32>({bits} << 24u)) >> 24u)"),
        DType::I16 => format!("((bitcast<i32>({bits} << 16u)) >> 16u)"),
        DType::I32 => format!("bitcast<i32>({bits})"),
        DType::Bool => format!("({bits} != 0u)"),
        _ => bits.to_owned(),
    }
}

/// Element `index` of a buffer.
pub fn load(buffer: &str, index: &str, dtype: DType) -> String {
    from_bits(&load_bits(buffer, index, dtype), dtype)
}

/// The bits of a value, in the low end of a word.
pub fn to_bits(value: &str, dtype: DType) -> String {
    match dtype {
        DType::F32 => format!("bitcast<u32>({value})"),
        DType::F16 => format!("(pack2x16float(vec2<f32>({value}, 0.0)) & 65535u)"),
        DType::Bf16 => format!("bf16_bits({value})"),
        DType::I8 => format!("(bitcast<u32>({value}) & 255u)"),
        DType::I16 => format!("(bitcast<u32>({value}) & 65535u)"),
        DType::I32 => format!("bitcast<u32>({value})"),
        DType::U8 => format!("({value} & 255u)"),
        DType::Bool => format!("select(0u, 1u, {value})"),
        _ => value.to_owned(),
    }
}

/// A value as it is after being stored in an element of this type.
pub fn rounded(value: &str, dtype: DType) -> String {
    match dtype {
        DType::F32 | DType::I32 | DType::U32 | DType::Bool => value.to_owned(),
        _ => from_bits(&to_bits(value, dtype), dtype),
    }
}

/// A number as a literal of the type in which elements of `dtype` are computed.
pub fn number(value: f64, dtype: DType) -> String {
    match value_type(dtype) {
        Some("bool") => format!("{}", value != 0.0),
        Some("i32") => match value as i64 as i32 {
            i32::MIN => "(-2147483647i - 1i)".to_owned(),
            n => format!("{n}i"),
        },
        Some("u32") => format!("{}u", value as u32),
        _ => float(value as f32),
    }
}

/// An `f32`, bit for bit.
pub fn float(value: f32) -> String {
    // Literals must be finite, and subnormal ones may be flushed by the compiler.
    if value.is_finite() && (value == 0.0 || value.is_normal()) && value.to_bits() != 1 << 31 {
        format!("f32({value:e}f)")
    } else {
        // A constant expression may not be infinite or no number either: the bits go through a
        // variable of the module.
        format!("bitcast<f32>({}u | zero_bits)", value.to_bits())
    }
}

/// Functions that generated expressions may call, and the zero that keeps bits from being folded.
pub const FUNCTIONS: &str = "\
var<private> zero_bits: u32 = 0u;
fn is_nan(v: f32) -> bool { return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u; }
fn bf16_bits(v: f32) -> u32 {
    let b = bitcast<u32>(v);
    if is_nan(v) { return (b >> 16u) | 64u; }
    return (b + 0x7fffu + ((b >> 16u) & 1u)) >> 16u;
}
fn max_nan(a: f32, b: f32) -> f32 {
    if is_nan(a) { return a; }
    if is_nan(b) { return b; }
    return select(b, a, a > b);
}
fn min_nan(a: f32, b: f32) -> f32 {
    if is_nan(a) { return a; }
    if is_nan(b) { return b; }
    return select(b, a, a < b);
}
fn sign_nan(v: f32) -> f32 {
    if is_nan(v) { return v; }
    return select(select(0.0, -1.0, v < 0.0), 1.0, v > 0.0);
}
fn relu_nan(v: f32) -> f32 { if is_nan(v) { return v; } return select(0.0, v, v > 0.0); }
fn tanh_all(v: f32) -> f32 {
    if is_nan(v) { return v; }
    let x = clamp(v, -15.0, 15.0);
    if abs(x) < 0.05 { let s = x * x; return x * (1.0 - s * (0.33333334 - s * 0.13333334)); }
    let e = exp(2.0 * x);
    return (e - 1.0) / (e + 1.0);
}
fn sigmoid(v: f32) -> f32 { return 1.0 / (1.0 + exp(-v)); }
fn erf(v: f32) -> f32 {
    if is_nan(v) { return v; }
    let x = abs(v);
    if x < 0.5 {
        // Maclaurin series to the 11th power.
        let s = x * x;
        let p = 1.0 + s * (-0.33333334 + s * (0.1 + s * (-0.023809524 + s * (0.0046296297 + s * -0.00075757573))));
        return v * 1.1283792 * p;
    }
    // Abramowitz and Stegun, 7.1.26.
    let t = 1.0 / (1.0 + 0.3275911 * x);
    let p = t * (0.2548296 + t * (-0.28449672 + t * (1.4214138 + t * (-1.4531521 + t * 1.0614054))));
    let r = 1.0 - p * exp(-min(x * x, 80.0));
    return select(r, -r, v < 0.0);
}
// Far down all three are 0; minus infinity times 0 would be no number.
fn gelu(v: f32) -> f32 { if v < -40.0 { return -0.0; } return 0.5 * v * (1.0 + erf(v * 0.70710677)); }
fn gelu_tanh(v: f32) -> f32 {
    if v < -40.0 { return -0.0; }
    return 0.5 * v * (1.0 + tanh_all(0.7978846 * (v + 0.044715 * v * v * v)));
}
fn silu(v: f32) -> f32 { if v < -100.0 { return -0.0; } return v / (1.0 + exp(-v)); }
// Sine and cosine of an angle within half a turn and a little more, by polynomials around the
// nearest quarter: Vulkan lets the hardware's be off by 2^-11.
fn sin_cos(v: f32) -> vec2<f32> {
    let q = round(v * 0.63661975);
    // A quarter in three parts (Cody and Waite), for drivers whose fma rounds twice.
    let r = ((v - q * 1.5703125) - q * 4.837513e-4) - q * 7.54979e-8;
    let s = r * r;
    let sine = r + r * s * (-0.16666667 + s * (0.008333332 + s * (-0.00019840874 + s * 2.7181216e-6)));
    let cosine = 1.0 - 0.5 * s + s * s * (0.041666646 + s * (-0.0013888397 + s * 0.00002443315));
    let turn = i32(q) & 3;
    if turn == 0 { return vec2<f32>(sine, cosine); }
    if turn == 1 { return vec2<f32>(cosine, -sine); }
    if turn == 2 { return vec2<f32>(-sine, -cosine); }
    return vec2<f32>(-cosine, sine);
}
// The angle within half a turn.
fn turn(v: f32) -> f32 {
    let n = round(v * 0.15915494);
    return ((v - n * 6.28125) - n * 1.9350052e-3) - n * 3.019916e-7;
}
fn sin_all(v: f32) -> f32 { return sin_cos(turn(v)).x; }
fn cos_all(v: f32) -> f32 { return sin_cos(turn(v)).y; }
fn pow_all(a: f32, b: f32) -> f32 {
    if b == 0.0 || a == 1.0 { return 1.0; }
    if is_nan(a) { return a; }
    if is_nan(b) { return b; }
    let whole = b == floor(b);
    let odd = whole && abs(b) < 16777216.0 && (abs(b) - 2.0 * floor(abs(b) * 0.5)) == 1.0;
    if b == 2.0 { return a * a; }
    if b == 1.0 { return a; }
    if b == 0.5 { return sqrt(a); }
    if b == -1.0 { return 1.0 / a; }
    if b == 3.0 { return a * a * a; }
    if a < 0.0 && !whole { return bitcast<f32>(0x7fc00000u | zero_bits); }
    let r = pow(abs(a), b);
    return select(r, -r, a < 0.0 && odd);
}
fn to_i32(v: f32) -> i32 {
    if is_nan(v) { return 0i; }
    if v >= 2147483648.0 { return 2147483647i; }
    return i32(trunc(max(v, -2147483648.0)));
}
fn to_u32(v: f32) -> u32 {
    if is_nan(v) { return 0u; }
    if v >= 4294967296.0 { return 4294967295u; }
    return u32(trunc(max(v, 0.0)));
}
";
