//! Reading blocks of quantised rows in [planes](crate::planes), as text.
//!
//! A [`Codec`] writes what is read from memory apart from what is computed with it, so that a
//! kernel can place all loads of a step first. Names end in a suffix that the kernel chooses.

use aether_ir::DType;

use crate::planes::plane_offsets;

/// What a block's numbers are made of: `d * scale * (code - offset) + minimum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One factor for 32 elements.
    One,
    /// One factor and one addend for 32 elements.
    OneAndMinimum,
    /// An integer scale for each 16 elements.
    Two,
    /// An integer scale and an integer minimum for each 16 elements.
    TwoAndMinima,
}

/// A type's blocks of 32 elements in rows of one length.
#[derive(Clone, Debug)]
pub struct Codec {
    pub dtype: DType,
    /// Vectors of 16 bytes in a row.
    pub row: usize,
    /// Blocks of 32 elements in a row.
    pub blocks: usize,
    /// Vectors of 16 bytes before each plane.
    planes: Vec<usize>,
}

/// A value that is read: its name without suffix, its type, the expression.
pub type Load = (&'static str, &'static str, String);

/// The sum of products of sixteen pairs of 8-bit numbers.
pub const DOT16: &str = "fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}
";

impl Codec {
    /// The codec of rows of `k` elements, when the type has planes and `k` is whole blocks.
    pub fn new(dtype: DType, k: usize) -> Option<Codec> {
        let row = dtype.planes_row_bytes(k)? / 16;
        let planes = plane_offsets(dtype, k).into_iter().map(|at| at / 16).collect();
        Some(Codec { dtype, row, blocks: k / 32, planes })
    }

    pub fn scales(&self) -> Scales {
        match self.dtype {
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => Scales::OneAndMinimum,
            DType::Q3K | DType::Q6K => Scales::Two,
            DType::Q2K => Scales::TwoAndMinima,
            _ => Scales::One,
        }
    }

    /// What is taken from a code.
    pub fn offset(&self) -> i32 {
        match self.dtype {
            DType::Q4_0 => 8,
            DType::Q5_0 => 16,
            DType::Q3K => 4,
            DType::Q6K => 32,
            _ => 0,
        }
    }

    /// What is read of block `b` of the row that begins at vector `r` of binding `w`.
    pub fn loads(&self, w: &str, r: &str, b: &str) -> Vec<Load> {
        let vector = |plane: usize, index: &str| {
            format!("{w}[{r} + {}u + {index}]", self.planes[plane]).replace(" + 0u", "")
        };
        // Words of 4 bytes of a plane that has one, two or a half for each block.
        let word = |plane: usize, index: &str| {
            format!("{}[({index}) % 4u]", vector(plane, &format!("({index}) / 4u")))
        };
        let super_block = format!("{b} / 8u");
        let codes = || ("c", "vec4<u32>", vector(0, b));
        let bits = |plane| ("h", "u32", word(plane, b));
        let pairs = |plane| {
            [
                ("p", "u32", word(plane, &format!("2u * {b}"))),
                ("q", "u32", word(plane, &format!("2u * {b} + 1u"))),
            ]
        };
        let half = |plane| ("u", "u32", word(plane, &format!("{b} / 2u")));
        let whole = |plane| ("u", "u32", word(plane, b));
        // Two bytes of the sixteen of a super-block.
        let bytes = |plane| ("g", "u32", format!("{}[{b} % 8u / 2u]", vector(plane, &super_block)));
        let super_half = |plane| ("u", "u32", word(plane, &format!("{b} / 16u")));
        let super_whole = |plane| ("u", "u32", word(plane, &super_block));
        let scales_k = |plane| ("s", "vec4<u32>", vector(plane, &super_block));
        match self.dtype {
            DType::Q4_0 => vec![codes(), half(1)],
            DType::Q4_1 => vec![codes(), whole(1)],
            DType::Q5_0 => vec![codes(), bits(1), half(2)],
            DType::Q5_1 => vec![codes(), bits(1), whole(2)],
            DType::Q8_0 => vec![codes(), ("e", "vec4<u32>", vector(1, b)), half(2)],
            DType::Q2K => [&pairs(0)[..], &[bytes(1), super_whole(2)]].concat(),
            DType::Q3K => [&pairs(0)[..], &[bits(1), bytes(2), super_half(3)]].concat(),
            DType::Q4K => vec![codes(), scales_k(1)],
            DType::Q5K => vec![codes(), bits(1), scales_k(2)],
            _ => [&[codes()], &pairs(1)[..], &[bytes(2), super_half(3)]].concat(),
        }
    }

    /// `lo` and `hi`, the codes of the block's halves packed in four words each, from what
    /// [`Codec::loads`] names with suffix `s`.
    pub fn codes(&self, s: &str) -> String {
        let nibbles = |lo: &str, hi: &str| {
            format!(
                "let lo{s} = (c{s} & vec4(0x0f0f0f0fu)){lo};
let hi{s} = ((c{s} >> vec4(4u)) & vec4(0x0f0f0f0fu)){hi};
"
            )
        };
        let bit = |shifts: &str, at: u32| {
            format!(" | (((vec4(h{s}) >> {shifts}) & vec4(0x01010101u)) << vec4({at}u))")
        };
        let pair =
            |word: &str| format!("((vec4({word}{s}) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u))");
        let (low, high) = ("vec4(0u, 1u, 2u, 3u)", "vec4(4u, 5u, 6u, 7u)");
        match self.dtype {
            DType::Q4_0 | DType::Q4_1 | DType::Q4K => nibbles("", ""),
            DType::Q5_0 | DType::Q5_1 | DType::Q5K => nibbles(&bit(low, 4), &bit(high, 4)),
            DType::Q8_0 => format!("let lo{s} = c{s};\nlet hi{s} = e{s};\n"),
            DType::Q2K => format!("let lo{s} = {};\nlet hi{s} = {};\n", pair("p"), pair("q")),
            DType::Q3K => {
                let (lo, hi) = (pair("p") + &bit(low, 2), pair("q") + &bit(high, 2));
                format!("let lo{s} = {lo};\nlet hi{s} = {hi};\n")
            }
            _ => {
                let high = |word| format!(" | ({} << vec4(4u))", pair(word));
                nibbles(&high("p"), &high("q"))
            }
        }
    }

    /// The scales: `d`; with a minimum `m` (added); with two scales `g0`, `g1` (integers); with
    /// two minima `dm`, `n0`, `n1` (`dm * n` is subtracted).
    pub fn scale_text(&self, b: &str, s: &str) -> String {
        let d = |shift: &str| format!("let d{s} = unpack2x16float(u{s} >> {shift}).x;\n");
        match self.dtype {
            DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => d(&format!("(16u * ({b} % 2u))")),
            DType::Q4_1 | DType::Q5_1 => format!(
                "let dm{s} = unpack2x16float(u{s});\nlet d{s} = dm{s}.x;\nlet m{s} = dm{s}.y;\n"
            ),
            DType::Q4K | DType::Q5K => format!(
                "let dm{s} = unpack2x16float(s{s}.x);
let j{s} = 4u * ({b} % 8u);
let hh{s} = s{s}.w >> j{s};
let d{s} = dm{s}.x * f32(((s{s}.y >> j{s}) & 15u) | ((hh{s} & 3u) << 4u));
let m{s} = -(dm{s}.y * f32(((s{s}.z >> j{s}) & 15u) | ((hh{s} & 12u) << 2u)));
"
            ),
            DType::Q2K => format!(
                "let gg{s} = g{s} >> (16u * ({b} % 2u));
let dd{s} = unpack2x16float(u{s});
let d{s} = dd{s}.x;
let dm{s} = dd{s}.y;
let g0{s} = i32(gg{s} & 15u);
let g1{s} = i32((gg{s} >> 8u) & 15u);
let n0{s} = i32((gg{s} >> 4u) & 15u);
let n1{s} = i32((gg{s} >> 12u) & 15u);
"
            ),
            _ => {
                d(&format!("(16u * ({b} / 8u % 2u))"))
                    + &format!(
                        "let gg{s} = i32(g{s} >> (16u * ({b} % 2u)));
let g0{s} = (gg{s} << 24u) >> 24u;
let g1{s} = (gg{s} << 16u) >> 24u;
"
                    )
            }
        }
    }

    /// The dot product of the block with 32 numbers of 8 bits, without their scale: their halves
    /// `x0`, `x1` as four words each and the halves' sums `s0`, `s1`.
    pub fn dot(&self, s: &str, [x0, x1]: [&str; 2], [s0, s1]: [&str; 2]) -> String {
        let less = |sum: &str| match self.offset() {
            0 => String::new(),
            n => format!(" - {n} * {sum}"),
        };
        let (lo, hi) = (format!("dot16(lo{s}, {x0})"), format!("dot16(hi{s}, {x1})"));
        let both = format!("({s0} + {s1})");
        match self.scales() {
            Scales::One => format!("d{s} * f32({lo} + {hi}{})", less(&both)),
            Scales::OneAndMinimum => {
                format!("(d{s} * f32({lo} + {hi}) + m{s} * f32{both})")
            }
            Scales::Two => {
                let (a, b) = (less(s0), less(s1));
                format!("d{s} * f32(g0{s} * ({lo}{a}) + g1{s} * ({hi}{b}))")
            }
            Scales::TwoAndMinima => format!(
                "(d{s} * f32(g0{s} * {lo} + g1{s} * {hi}) - dm{s} * f32(n0{s} * {s0} + n1{s} * {s1}))"
            ),
        }
    }

    /// The values of the four elements of word `i` (0..4) of half `half` as a `vec4<f32>`.
    pub fn values(&self, s: &str, half: usize, i: &str) -> String {
        let name = ["lo", "hi"][half];
        let codes = match self.dtype {
            DType::Q8_0 => format!("vec4<f32>(unpack4xI8({name}{s}[{i}]))"),
            _ => format!("vec4<f32>(unpack4xU8({name}{s}[{i}]))"),
        };
        let codes = match self.offset() {
            0 => codes,
            n => format!("({codes} - vec4({n}.0))"),
        };
        match self.scales() {
            Scales::One => format!("d{s} * {codes}"),
            Scales::OneAndMinimum => format!("d{s} * {codes} + vec4(m{s})"),
            Scales::Two => format!("(d{s} * f32(g{half}{s})) * {codes}"),
            Scales::TwoAndMinima => {
                format!("(d{s} * f32(g{half}{s})) * {codes} - vec4(dm{s} * f32(n{half}{s}))")
            }
        }
    }
}
