//! The block formats as the products see them: where scales and codes lie in the packed bytes of
//! 16 rows (see [`crate::kernels::packed`]) and how they are unpacked.
//!
//! Every format is `scale · (code − offset) − minimum`, with scale and minimum per 32 elements
//! or per 16, and codes of at most 8 bits.

use super::lanes::Lanes;

/// Scales and minima of one packed position: entry `i` is that of the `i`-th run of 16 or 32
/// elements.
pub(crate) struct Scales<S: Lanes> {
    pub scale: [S::F; 16],
    pub min: [S::F; 16],
}

/// One block format. Pointers point to the packed blocks of 16 rows at one position, `BYTES` long.
pub(crate) trait Format {
    /// Blocks of 32 elements that share a header.
    const BLOCKS: usize;
    /// Packed bytes of a position.
    const BYTES: usize;
    /// Whether scales are per 16 elements instead of per 32.
    const HALVES: bool = false;
    /// Whether there are minima.
    const MIN: bool = false;
    /// The code's offset as a power of two, or 0 for none.
    const OFFSET_LOG2: u32 = 0;
    /// Whether codes need all 8 bits (then the offset is 128).
    const WIDE: bool = false;

    /// Unpacks scales and minima.
    ///
    /// # Safety
    /// `p` is valid for `BYTES` bytes; the machine has the instruction set of `S`.
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>);

    /// Unpacks the codes of block `b < BLOCKS`: vector `g` holds elements `4·g` to `4·g + 3`.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8];

    /// Blocks whose codes share bytes; 1 when none do.
    const SPAN: usize = 1;

    /// Unpacks vector `g` of the `SPAN` blocks from `SPAN · s` on, the bytes read once. Entries
    /// from `SPAN` on mean nothing.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    #[inline(always)]
    unsafe fn span<S: Lanes>(p: *const u8, s: usize, g: usize) -> [S::C; MAX_SPAN] {
        // SAFETY: the caller's promise.
        unsafe { [Self::codes::<S>(p, s)[g]; MAX_SPAN] }
    }
}

/// Most blocks that share bytes.
pub(crate) const MAX_SPAN: usize = 4;

/// Builds the eight code vectors of a block from an expression in the vector's number.
macro_rules! vectors {
    ($g:ident => $e:expr) => {{
        macro_rules! at {
            ($n:literal) => {{
                let $g: usize = $n;
                $e
            }};
        }
        [at!(0), at!(1), at!(2), at!(3), at!(4), at!(5), at!(6), at!(7)]
    }};
}

/// Sixteen bytes, one per row.
#[inline(always)]
unsafe fn bytes(p: *const u8, i: usize) -> [u8; 16] {
    // SAFETY: the callers stay within the packed position.
    unsafe { p.add(16 * i).cast::<[u8; 16]>().read_unaligned() }
}

#[inline(always)]
fn map(a: [u8; 16], f: impl Fn(u8) -> u8) -> [u8; 16] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn map2(a: [u8; 16], b: [u8; 16], f: impl Fn(u8, u8) -> u8) -> [u8; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Where vector `g` of the codes of span `s` lies in formats with a plane of extra bits: the eight
/// vectors of extra bits stand alternating with the first eight of the codes.
const fn code_beside(s: usize, g: usize) -> usize {
    match s {
        0 => 128 * g + 64,
        _ => 1024 + 512 * (s - 1) + 64 * g,
    }
}

/// Minus one, for turning stored minima that are added into ones that are subtracted.
const MINUS_ONE: f32 = -1.0;

/// The formats with one header per 32 elements and 4 or 5 bits: scale, optional minimum (to be
/// added), optional plane of fifth bits, nibbles.
pub(crate) struct Nibbles<const MIN: bool, const FIFTH: bool>;

impl<const MIN: bool, const FIFTH: bool> Format for Nibbles<MIN, FIFTH> {
    const BLOCKS: usize = 1;
    const BYTES: usize = 32 + 32 * (MIN as usize) + 64 * (FIFTH as usize) + 256;
    const MIN: bool = MIN;
    const OFFSET_LOG2: u32 = if MIN { 0 } else { 3 + FIFTH as u32 };

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            out.scale[0] = S::load_f16(p);
            if MIN {
                out.min[0] = S::mul(S::load_f16(p.add(32)), S::splat(&MINUS_ONE));
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, _: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(32 + 32 * (MIN as usize));
            if FIFTH {
                let (fifth, q) = (S::load_c(p), p.add(64));
                vectors!(g => S::or(
                    S::shr_and(S::load_c(q.add(64 * (g % 4))), 4 * (g / 4) as u32, 0x0f),
                    S::shr_and_shl::<4>(fifth, g as u32, 1),
                ))
            } else {
                vectors!(g => {
                    S::shr_and(S::load_c(p.add(64 * (g % 4))), 4 * (g / 4) as u32, 0x0f)
                })
            }
        }
    }
}

/// `q8_0` and `q8_1` (whose stored sum is dropped), and `q8_k`, whose scale is an `f32`.
pub(crate) struct Bytes<const SINGLE: bool>;

impl<const SINGLE: bool> Format for Bytes<SINGLE> {
    const BLOCKS: usize = if SINGLE { 8 } else { 1 };
    const BYTES: usize = if SINGLE { 64 + 16 * 256 } else { 32 + 16 * 32 };
    const OFFSET_LOG2: u32 = 7;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            if SINGLE {
                out.scale = [S::load_f(p.cast()); 16];
            } else {
                out.scale[0] = S::load_f16(p);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(if SINGLE { 64 + 512 * b } else { 32 });
            vectors!(g => S::widen(S::load_c(p.add(64 * g))))
        }
    }
}

/// `q2_k`: 16 runs of 16 elements, each with a 4-bit scale and minimum.
pub(crate) struct Q2K;

impl Format for Q2K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 16 * 84;
    const HALVES: bool = true;
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            let d = S::load_f16(p);
            // The sums that minima are multiplied with come times 32.
            let dmin = S::mul(S::load_f16(p.add(32)), S::splat(&(1.0 / 32.0)));
            for i in 0..16 {
                let v = bytes(p.add(64), i);
                out.scale[i] = S::mul(S::from_u8(map(v, |v| v & 15)), d);
                out.min[i] = S::mul(S::from_u8(map(v, |v| v >> 4)), dmin);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let q = p.add(64 + 256 + 512 * (b / 4));
            vectors!(g => S::shr_and(S::load_c(q.add(64 * g)), 2 * (b % 4) as u32, 3))
        }
    }

    const SPAN: usize = 4;

    #[inline(always)]
    unsafe fn span<S: Lanes>(p: *const u8, s: usize, g: usize) -> [S::C; MAX_SPAN] {
        // SAFETY: within the position.
        unsafe {
            let q = S::load_c(p.add(64 + 256 + 512 * s + 64 * g));
            std::array::from_fn(|i| S::shr_and(q, 2 * i as u32, 3))
        }
    }
}

/// `q3_k`: 16 runs of 16 elements, each with a signed 6-bit scale; the third bits are apart.
pub(crate) struct Q3K;

impl Format for Q3K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 16 * 110;
    const HALVES: bool = true;
    const OFFSET_LOG2: u32 = 2;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            let (d, p) = (S::load_f16(p), p.add(32));
            for i in 0..16 {
                let (low, high) = (bytes(p, i % 8), bytes(p, 8 + i % 4));
                let scale = map2(low, high, |l, h| {
                    let code = ((l >> (4 * (i / 8))) & 15) | (((h >> (2 * (i / 4))) & 3) << 4);
                    code.wrapping_sub(32)
                });
                out.scale[i] = S::mul(S::from_i8(scale), d);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(32 + 16 * 12);
            vectors!(g => S::or(
                S::shr_and(S::load_c(p.add(code_beside(b / 4, g))), 2 * (b % 4) as u32, 3),
                S::shr_and_shl::<2>(S::load_c(p.add(128 * g)), b as u32, 1),
            ))
        }
    }

    const SPAN: usize = 4;

    #[inline(always)]
    unsafe fn span<S: Lanes>(p: *const u8, s: usize, g: usize) -> [S::C; MAX_SPAN] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(32 + 16 * 12);
            let third = S::load_c(p.add(128 * g));
            let q = S::load_c(p.add(code_beside(s, g)));
            std::array::from_fn(|i| {
                S::or(
                    S::shr_and(q, 2 * i as u32, 3),
                    S::shr_and_shl::<2>(third, (4 * s + i) as u32, 1),
                )
            })
        }
    }
}

/// `q4_k` and, with a plane of fifth bits, `q5_k`: 8 runs of 32 elements, each with a 6-bit
/// scale and minimum.
pub(crate) struct NibblesK<const FIFTH: bool>;

impl<const FIFTH: bool> Format for NibblesK<FIFTH> {
    const BLOCKS: usize = 8;
    const BYTES: usize = 16 * (144 + 32 * (FIFTH as usize));
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            let (d, dmin) = (S::load_f16(p), S::load_f16(p.add(32)));
            let p = p.add(64);
            for i in 0..4 {
                let (s, m, both) = (bytes(p, i), bytes(p, 4 + i), bytes(p, 8 + i));
                out.scale[i] = S::mul(S::from_u8(map(s, |s| s & 63)), d);
                out.min[i] = S::mul(S::from_u8(map(m, |m| m & 63)), dmin);
                let high = map2(s, both, |s, both| (both & 15) | ((s >> 6) << 4));
                out.scale[4 + i] = S::mul(S::from_u8(high), d);
                let high = map2(m, both, |m, both| (both >> 4) | ((m >> 6) << 4));
                out.min[4 + i] = S::mul(S::from_u8(high), dmin);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(64 + 16 * 12);
            let n = 4 * (b % 2) as u32;
            if FIFTH {
                vectors!(g => S::or(
                    S::shr_and(S::load_c(p.add(code_beside(b / 2, g))), n, 0x0f),
                    S::shr_and_shl::<4>(S::load_c(p.add(128 * g)), b as u32, 1),
                ))
            } else {
                vectors!(g => S::shr_and(S::load_c(p.add(512 * (b / 2) + 64 * g)), n, 0x0f))
            }
        }
    }

    const SPAN: usize = 2;

    #[inline(always)]
    unsafe fn span<S: Lanes>(p: *const u8, s: usize, g: usize) -> [S::C; MAX_SPAN] {
        // SAFETY: within the position.
        unsafe {
            let p = p.add(64 + 16 * 12);
            let nibbles = |q| [S::shr_and(q, 0, 0x0f), S::shr_and(q, 4, 0x0f)];
            let [low, high] = if FIFTH {
                let (fifth, bit) = (S::load_c(p.add(128 * g)), 2 * s as u32);
                let [low, high] = nibbles(S::load_c(p.add(code_beside(s, g))));
                [
                    S::or(low, S::shr_and_shl::<4>(fifth, bit, 1)),
                    S::or(high, S::shr_and_shl::<4>(fifth, bit + 1, 1)),
                ]
            } else {
                nibbles(S::load_c(p.add(512 * s + 64 * g)))
            };
            [low, high, low, high]
        }
    }
}

/// `q6_k`: 16 runs of 16 elements, each with a signed 8-bit scale; 4 low and 2 high bits.
pub(crate) struct Q6K;

impl Q6K {
    /// Where the code bytes of vector `g` of a half lie: 64 bytes with the high bits of its four
    /// blocks, 64 with the low nibbles of blocks 0 and 2, 64 with those of blocks 1 and 3.
    #[inline(always)]
    unsafe fn vector(p: *const u8, half: usize, g: usize) -> *const u8 {
        // SAFETY: the callers stay within the packed position.
        unsafe { p.add(32 + 256 + 192 * (8 * half + g)) }
    }
}

impl Format for Q6K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 16 * 210;
    const HALVES: bool = true;
    const OFFSET_LOG2: u32 = 5;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(p: *const u8, out: &mut Scales<S>) {
        // SAFETY: within the position.
        unsafe {
            let d = S::load_f16(p);
            for i in 0..16 {
                out.scale[i] = S::mul(S::from_i8(bytes(p.add(32), i)), d);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes<S: Lanes>(p: *const u8, b: usize) -> [S::C; 8] {
        // SAFETY: within the position.
        unsafe {
            let (p, b) = (Q6K::vector(p, b / 4, 0), b % 4);
            vectors!(g => S::or(
                S::shr_and(
                    S::load_c(p.add(192 * g + 64 + 64 * (b % 2))),
                    4 * (b / 2) as u32,
                    0x0f,
                ),
                S::shr_and_shl::<4>(S::load_c(p.add(192 * g)), 2 * b as u32, 3),
            ))
        }
    }

    const SPAN: usize = 4;

    #[inline(always)]
    unsafe fn span<S: Lanes>(p: *const u8, s: usize, g: usize) -> [S::C; MAX_SPAN] {
        // SAFETY: within the position.
        unsafe {
            let p = Q6K::vector(p, s, g);
            let high = S::load_c(p);
            let low = [S::load_c(p.add(64)), S::load_c(p.add(128))];
            std::array::from_fn(|i| {
                S::or(
                    S::shr_and(low[i % 2], 4 * (i / 2) as u32, 0x0f),
                    S::shr_and_shl::<4>(high, 2 * i as u32, 3),
                )
            })
        }
    }
}

/// Calls `$visit!(Format)` with the format of `$dtype`, or gives `$otherwise`.
macro_rules! with_format {
    ($dtype:expr, $visit:ident, $otherwise:expr) => {
        match $dtype {
            aether_ir::DType::Q4_0 => $visit!($crate::kernels::qmatmul::format::Q4_0),
            aether_ir::DType::Q4_1 => $visit!($crate::kernels::qmatmul::format::Q4_1),
            aether_ir::DType::Q5_0 => $visit!($crate::kernels::qmatmul::format::Q5_0),
            aether_ir::DType::Q5_1 => $visit!($crate::kernels::qmatmul::format::Q5_1),
            aether_ir::DType::Q8_0 | aether_ir::DType::Q8_1 => {
                $visit!($crate::kernels::qmatmul::format::Q8_0)
            }
            aether_ir::DType::Q2K => $visit!($crate::kernels::qmatmul::format::Q2K),
            aether_ir::DType::Q3K => $visit!($crate::kernels::qmatmul::format::Q3K),
            aether_ir::DType::Q4K => $visit!($crate::kernels::qmatmul::format::Q4K),
            aether_ir::DType::Q5K => $visit!($crate::kernels::qmatmul::format::Q5K),
            aether_ir::DType::Q6K => $visit!($crate::kernels::qmatmul::format::Q6K),
            aether_ir::DType::Q8K => $visit!($crate::kernels::qmatmul::format::Q8K),
            _ => $otherwise,
        }
    };
}
pub(crate) use with_format;

pub(crate) type Q4_0 = Nibbles<false, false>;
pub(crate) type Q4_1 = Nibbles<true, false>;
pub(crate) type Q5_0 = Nibbles<false, true>;
pub(crate) type Q5_1 = Nibbles<true, true>;
pub(crate) type Q8_0 = Bytes<false>;
pub(crate) type Q8K = Bytes<true>;
pub(crate) type Q4K = NibblesK<false>;
pub(crate) type Q5K = NibblesK<true>;
