//! Convolution over two spatial axes (or one, as two with a first of length 1) as a matrix
//! product: the weights of a group, `[c_out, c_in · kernel]`, times the patches of the image.
//!
//! The patches never stand in memory as a whole. A worker packs some columns of them (positions of
//! the result), straight from the image, into the panels of [`gemm`] in its own scratch, sized to
//! stay in its second-level cache, and multiplies all output channels with them. After Chellapilla,
//! Puri and Simard, "High performance convolutional neural networks for document processing" (2006).

use std::ops::Range;

use aether_ir::op::window::Window;

use super::gemm::{self, Weights};
use super::isa::Isa;

/// f32 elements of patches that a worker packs at a time: half a megabyte.
const PACKED: usize = 1 << 17;
/// Columns of the widest panel.
const WIDEST: usize = 64;

/// One group of a convolution of one image.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Channels that the group reads and makes.
    pub channels: (usize, usize),
    /// Rows and columns of the image and of the result.
    pub plane: (usize, usize),
    pub out: (usize, usize),
    pub rows: Window,
    pub columns: Window,
}

impl Conv {
    /// Depth of the product.
    pub fn depth(&self) -> usize {
        self.channels.0 * (self.rows.size * self.columns.size) as usize
    }

    /// Positions of the result.
    pub fn positions(&self) -> usize {
        self.out.0 * self.out.1
    }
}

/// Positions that a worker packs at a time for a product of depth `k`.
pub fn block(isa: Isa, k: usize) -> usize {
    let width = gemm::panel_width(isa);
    (PACKED / k.max(1) / width * width).clamp(width, 16 * width)
}

/// f32 elements of scratch that one worker needs.
pub fn scratch_len(isa: Isa, k: usize) -> usize {
    let n = block(isa, k);
    gemm::packed_len(isa, n, k) + gemm::scratch_len(isa, n)
}

/// Some neighbouring positions of one row of the result.
#[derive(Clone, Copy, Default)]
struct Segment {
    /// The first one's column in the panel.
    column: usize,
    row: usize,
    first: usize,
    len: usize,
}

/// The positions of a panel by rows of the result.
struct Segments {
    list: [Segment; WIDEST],
    len: usize,
}

impl Segments {
    fn new(width: usize, positions: Range<usize>) -> Segments {
        let mut s = Segments { list: [Segment::default(); WIDEST], len: 0 };
        let mut at = positions.start;
        while at < positions.end {
            let (row, first) = (at / width, at % width);
            let len = (width - first).min(positions.end - at);
            s.list[s.len] = Segment { column: at - positions.start, row, first, len };
            s.len += 1;
            at += len;
        }
        s
    }
}

/// Packs the patches at `positions` into panel `p` of so many columns.
///
/// # Safety
/// `image` covers the group's channels; `out` covers the panels.
unsafe fn pack(
    isa: Isa,
    c: &Conv,
    positions: &Range<usize>,
    p: usize,
    image: *const f32,
    out: *mut f32,
) {
    let (at, first, width) = gemm::panel_place(isa, positions.len(), c.depth(), p);
    let start = positions.start + first;
    let segments = Segments::new(c.out.1, start..positions.end.min(start + width));
    let filled = positions.end.min(start + width) - start;
    let plane = c.plane.0 * c.plane.1;
    let mut k = 0;
    for channel in 0..c.channels.0 {
        for ky in 0..c.rows.size {
            for kx in 0..c.columns.size {
                // SAFETY: row `k` of the panel lies within `out`; what is read lies within the
                // channel's plane.
                unsafe {
                    let to = out.add(at + k * width);
                    for s in &segments.list[..segments.len] {
                        let to = to.add(s.column);
                        let y = s.row as i64 * c.rows.stride - c.rows.lo + ky * c.rows.dilation;
                        let row = y / c.rows.lhs_dilation;
                        if y < 0 || y % c.rows.lhs_dilation != 0 || row >= c.plane.0 as i64 {
                            std::ptr::write_bytes(to, 0, s.len);
                            continue;
                        }
                        let line = image.add(channel * plane + row as usize * c.plane.1);
                        let x = s.first as i64 * c.columns.stride - c.columns.lo
                            + kx * c.columns.dilation;
                        copy(&c.columns, c.plane.1 as i64, x, line, to, s.len as i64);
                    }
                    std::ptr::write_bytes(to.add(filled), 0, width - filled);
                }
                k += 1;
            }
        }
    }
}

/// `to[i]` = element `x + i · stride` of a padded, spread line, for `len` of them.
#[inline(always)]
unsafe fn copy(w: &Window, n: i64, x: i64, line: *const f32, to: *mut f32, len: i64) {
    // SAFETY: the caller's promise; only elements `0..n` of the line are read.
    unsafe {
        if w.lhs_dilation != 1 {
            for i in 0..len {
                let at = x + i * w.stride;
                let inside = at >= 0 && at % w.lhs_dilation == 0 && at / w.lhs_dilation < n;
                *to.add(i as usize) =
                    if inside { *line.add((at / w.lhs_dilation) as usize) } else { 0.0 };
            }
            return;
        }
        let (first, last) = if w.stride == 1 {
            ((-x).clamp(0, len), (n - x).clamp(0, len))
        } else {
            let up = |v: i64| (v + w.stride - 1).div_euclid(w.stride).clamp(0, len);
            (up(-x), up(n - x))
        };
        let last = last.max(first);
        std::ptr::write_bytes(to, 0, first as usize);
        if w.stride == 1 {
            let from = line.wrapping_offset((x + first) as isize);
            std::ptr::copy_nonoverlapping(from, to.add(first as usize), (last - first) as usize);
        } else {
            for i in first..last {
                *to.add(i as usize) = *line.wrapping_offset((x + i * w.stride) as isize);
            }
        }
        std::ptr::write_bytes(to.add(last as usize), 0, (len - last) as usize);
    }
}

/// The output channels `channels` at `positions` (no more than [`block`] of them) of one group:
/// `weights` is `[c_out, depth]` row-major, `image` the group's first channel, `out` its first
/// channel of the result.
///
/// # Safety
/// The pointers cover the group; nobody else writes these places of the result.
///
/// # Panics
/// When `weights` or the scratch ([`scratch_len`]) is too short.
pub unsafe fn conv(
    isa: Isa,
    c: &Conv,
    weights: &[f32],
    (channels, positions): (Range<usize>, Range<usize>),
    image: *const f32,
    out: *mut f32,
    scratch: &mut [f32],
) {
    let (k, n) = (c.depth(), positions.len());
    let (packed, own) = scratch.split_at_mut(gemm::packed_len(isa, n, k));
    // SAFETY: the panels are this worker's own; the rest is the caller's promise.
    unsafe {
        for p in 0..gemm::panels(isa, n) {
            pack(isa, c, &positions, p, image, packed.as_mut_ptr());
        }
        let weights = Weights { data: weights, rows: c.channels.1, k };
        let to = (out.add(positions.start), c.positions());
        gemm::matmul(isa, weights, channels, (packed, n), to, own);
    }
}
