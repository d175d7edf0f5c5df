//! What a loop reads: operands spread over its space, constants, counts.

use aether_ir::fusion::Fusion;
use aether_ir::{DType, Dim, TensorType};

use super::super::Count;
use crate::kernels::isa::Isa;
use crate::kernels::tiles::{self, Class, mem};
use crate::program::{Loc, RunCtx};
use crate::size::{Size, SymbolTable};

/// Where the elements come from.
#[derive(Clone, Debug)]
enum Source {
    Memory(Loc),
    /// One element, in the first bytes.
    Constant([u8; 8]),
    /// The index along an axis of this length, with so many elements of the space inside of it.
    Index {
        length: Count,
        inside: Count,
    },
}

/// How the elements go with those of the space.
#[derive(Clone, Debug)]
enum Spread {
    /// One each.
    Each,
    /// The same one for all.
    One,
    /// Axes of the space, neighbours of one kind taken together, outermost first: the length, and
    /// whether the operand has it.
    Axes(Vec<(Count, bool)>),
}

/// An operand of a loop.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    source: Source,
    spread: Spread,
    dtype: DType,
}

impl Stream {
    /// A value in memory, which broadcasts to the space.
    pub fn memory(loc: Loc, ty: &TensorType, fusion: &Fusion, symbols: &SymbolTable) -> Stream {
        let space = &fusion.space.0;
        let skipped = space.len() - ty.rank();
        let mut axes: Vec<(Count, bool)> = Vec::new();
        for (i, dim) in space.iter().enumerate().filter(|(_, d)| !d.is(1)) {
            let own = i.checked_sub(skipped).is_some_and(|i| !ty.shape.0[i].is(1));
            let size = Size::new(dim, symbols);
            match axes.last_mut().filter(|(_, last)| *last == own) {
                Some((Count(sizes), _)) => sizes.push(size),
                None => axes.push((Count(vec![size]), own)),
            }
        }
        let spread = match axes.as_slice() {
            [(_, true)] => Spread::Each,
            [] | [(_, false)] => Spread::One,
            _ => Spread::Axes(axes),
        };
        Stream { source: Source::Memory(loc), spread, dtype: ty.dtype }
    }

    /// One element everywhere.
    pub fn constant(dtype: DType, element: &[u8]) -> Stream {
        let mut bytes = [0; 8];
        bytes[..element.len()].copy_from_slice(element);
        Stream { source: Source::Constant(bytes), spread: Spread::One, dtype }
    }

    /// The index along an axis of a value of this type.
    pub fn index(ty: &TensorType, axis: usize, fusion: &Fusion, symbols: &SymbolTable) -> Stream {
        let space = &fusion.space.0;
        let at = axis + space.len() - ty.rank();
        let count = |dims: &[Dim]| Count(dims.iter().map(|d| Size::new(d, symbols)).collect());
        let source = Source::Index {
            // An axis of length 1 counts no further than 0, however long the space is there.
            length: count(&ty.shape.0[axis..=axis]),
            inside: count(&space[at + 1..]),
        };
        Stream { source, spread: Spread::Each, dtype: ty.dtype }
    }

    /// The class of its tiles.
    pub fn class(&self) -> Class {
        Class::of(self.dtype).unwrap_or(Class::F32)
    }

    /// Whether its tile is the same all over, so that it is filled once.
    pub fn is_one(&self) -> bool {
        matches!(self.spread, Spread::One)
    }

    /// Whether its tiles are read where they lie in memory.
    pub fn is_in_place(&self) -> bool {
        matches!((&self.source, &self.spread), (Source::Memory(_), Spread::Each))
            && tiles::is_native(self.dtype)
    }

    /// The tile of the elements `flat..flat + n` of the space: `room` filled with them, or where
    /// they are.
    ///
    /// # Safety
    /// The elements lie within the space; `room` has `n` lanes unless [`Stream::is_in_place`].
    pub unsafe fn tile(
        &self,
        isa: Isa,
        ctx: &RunCtx,
        flat: usize,
        n: usize,
        room: *mut u8,
    ) -> *mut u8 {
        let size = self.dtype.block_bytes();
        // SAFETY: operands have the elements of the space that their shapes say, and the caller
        // keeps to those; lanes of the room are written one after another.
        unsafe {
            let base = match &self.source {
                Source::Constant(bytes) => bytes.as_ptr().cast_mut(),
                Source::Memory(loc) => ctx.ptr(*loc),
                Source::Index { length, inside } => {
                    let (length, inside) = (length.get(ctx.symbols), inside.get(ctx.symbols));
                    self.count(flat, n, (length.max(1), inside.max(1)), room);
                    return room;
                }
            };
            match &self.spread {
                Spread::Each if tiles::is_native(self.dtype) => base.add(flat * size),
                Spread::Each => {
                    mem::load(isa, self.dtype, base.add(flat * size), room, n);
                    room
                }
                Spread::One => {
                    mem::load(isa, self.dtype, base, room, n.min(1));
                    mem::spread(self.class(), room, room, n);
                    room
                }
                Spread::Axes(axes) => self.runs(isa, ctx, axes, base, (flat, n), room),
            }
        }
    }

    /// A tile in runs along the innermost axis.
    unsafe fn runs(
        &self,
        isa: Isa,
        ctx: &RunCtx,
        axes: &[(Count, bool)],
        base: *mut u8,
        (flat, n): (usize, usize),
        room: *mut u8,
    ) -> *mut u8 {
        let Some(((inner, own), outer)) = axes.split_last() else { return room };
        let inner = inner.get(ctx.symbols).max(1);
        let (size, lane) = (self.dtype.block_bytes(), self.class().bytes());
        let mut done = 0;
        while done < n {
            let (mut row, within) = ((flat + done) / inner, (flat + done) % inner);
            let len = (inner - within).min(n - done);
            let (mut offset, mut stride) = if *own { (within, inner) } else { (0, 1) };
            for (count, own) in outer.iter().rev() {
                let length = count.get(ctx.symbols).max(1);
                if *own {
                    offset += row % length * stride;
                    stride *= length;
                }
                row /= length;
            }
            // SAFETY: as for `tile`.
            unsafe {
                let from = base.add(offset * size);
                if *own && len == n && tiles::is_native(self.dtype) {
                    return from;
                }
                let to = room.add(done * lane);
                if *own {
                    mem::load(isa, self.dtype, from, to, len);
                } else {
                    mem::load(isa, self.dtype, from, to, 1);
                    mem::spread(self.class(), to, to, len);
                }
            }
            done += len;
        }
        room
    }

    /// Indices along an axis of `length`, `inside` elements of the space each.
    unsafe fn count(&self, flat: usize, n: usize, (length, inside): (usize, usize), room: *mut u8) {
        for i in 0..n {
            let v = ((flat + i) / inside % length) as i64;
            // SAFETY: the caller's room has `n` lanes.
            unsafe {
                let to = room.add(i * self.class().bytes());
                mem::cast(DType::I64, self.dtype, (&raw const v).cast(), to, 1);
            }
        }
    }
}
