//! Rows of weights to f16 in workgroup memory.

use std::fmt::Write as _;

use aether_ir::DType;

use crate::templates::blocks::{Codec, Scales};

/// What is read of a weight's row for 32 elements, and how it becomes f16.
pub enum Row {
    Blocks(Codec),
    Plain(DType, usize),
}

impl Row {
    pub fn vectors(&self) -> usize {
        match self {
            Row::Blocks(codec) => codec.row,
            Row::Plain(_, vectors) => *vectors,
        }
    }

    /// Names, types and expressions.
    pub fn loads(&self, w: &str, r: &str, b: &str) -> Vec<(String, &'static str, String)> {
        match self {
            Row::Blocks(codec) => codec
                .loads(w, r, b)
                .into_iter()
                .map(|(name, ty, e)| (name.to_owned(), ty, e))
                .collect(),
            Row::Plain(..) => (0..4)
                .map(|i| (format!("v{i}"), "vec4<u32>", format!("{w}[{r} + 4u * {b} + {i}u]")))
                .collect(),
        }
    }

    /// Statements that store 32 numbers at vector `at` of the tile `wt`.
    pub fn unpack(&self, b: &str, s: &str, at: &str) -> String {
        match self {
            Row::Plain(dtype, _) => {
                let mut t = String::new();
                for i in 0..4 {
                    for (half, [x, y]) in [["x", "y"], ["z", "w"]].iter().enumerate() {
                        let v = format!("v{i}{s}");
                        let pair = |c: &str| match dtype {
                            DType::F16 => format!("unpack2x16float({v}.{c})"),
                            _ => format!(
                                "vec2(bitcast<f32>({v}.{c} << 16u), bitcast<f32>({v}.{c} & 0xffff0000u))"
                            ),
                        };
                        let _ = writeln!(
                            t,
                            "put_w({at} + {}u, vec4<f16>(vec2<f16>({}), vec2<f16>({})));",
                            2 * i + half,
                            pair(x),
                            pair(y)
                        );
                    }
                }
                t
            }
            Row::Blocks(codec) => unpack_blocks(codec, b, s, at),
        }
    }
}

fn unpack_blocks(codec: &Codec, b: &str, s: &str, at: &str) -> String {
    let mut t = codec.codes(s) + &codec.scale_text(b, s);
    let signed = codec.dtype == DType::Q8_0;
    let offset = 1024 + codec.offset() + if signed { 128 } else { 0 };
    let _ = writeln!(t, "let bias{s} = vec4<f16>({offset}.0h);");
    for (half, name) in ["lo", "hi"].iter().enumerate() {
        let (factor, minimum) = match codec.scales() {
            Scales::One => (format!("d{s}"), None),
            Scales::OneAndMinimum => (format!("d{s}"), Some(format!("m{s}"))),
            Scales::Two => (format!("d{s} * f32(g{half}{s})"), None),
            Scales::TwoAndMinima => {
                (format!("d{s} * f32(g{half}{s})"), Some(format!("-(dm{s} * f32(n{half}{s}))")))
            }
        };
        let _ = writeln!(t, "let f{half}{s} = vec4<f16>(f16({factor}));");
        if let Some(m) = &minimum {
            let _ = writeln!(t, "let a{half}{s} = vec4<f16>(f16({m}));");
        }
        for (i, c) in ["x", "y", "z", "w"].iter().enumerate() {
            let word = if signed {
                format!("({name}{s}.{c} ^ 0x80808080u)")
            } else {
                format!("{name}{s}.{c}")
            };
            let pair = |shift: &str| {
                format!("vec2<f16>(unpack2x16float((({word}{shift}) & 0x00ff00ffu) | 0x64006400u))")
            };
            let codes = format!("(vec4<f16>({}, {}) - bias{s})", pair(""), pair(" >> 8u"));
            let value = match minimum {
                Some(_) => format!("fma({codes}, f{half}{s}, a{half}{s})"),
                None => format!("{codes} * f{half}{s}"),
            };
            let _ = writeln!(t, "put_w({at} + {}u, {value});", 4 * half + i);
        }
    }
    t
}
