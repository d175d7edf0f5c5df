//! Constants: mapped as they are, or computed once when the module is loaded.

use std::ops::Range;
use std::sync::Arc;

use aether_ir::load::{LoadError, evaluate, read_at_run};
use aether_ir::plan::FuncPlan;
use aether_ir::{Const, DType, Func, Inst, Layout, Module, Op, Tensor, ValueId};

use super::{Cache, CompileError, CompileOptions};
use crate::kernels::packed;
use crate::program::{AlignedBytes, ConstPtr, Keep, Loc};

/// Constants up to this size (norms, biases) are copied instead of read where they are mapped:
/// the system maps up to 2 MiB of a file for one access, which for vectors that lie between
/// matrices amounts to half the file.
const COPIED: usize = 64 << 10;

/// Bytes of a matrix that are packed at a time.
const SLICE: usize = 4 << 20;

/// A constant's bytes and what keeps them alive.
pub struct ConstBytes {
    /// Memory that holds the bytes, for instance a mapped file.
    pub memory: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Where in it they are.
    pub range: Range<usize>,
}

impl ConstBytes {
    fn get(&self) -> Option<&[u8]> {
        (*self.memory).as_ref().get(self.range.clone())
    }
}

/// Where constants come from.
pub trait ConstSource {
    /// The bytes of a constant.
    ///
    /// # Errors
    /// When they cannot be had; the message says why.
    fn bytes(&self, name: &str, constant: &Const) -> Result<ConstBytes, String>;

    /// Called when the program has its own copy of the bytes and will not read these again.
    fn release(&self, _bytes: &ConstBytes) {}
}

/// Serves constants written in the module; files are refused.
pub struct DenseOnly;

impl ConstSource for DenseOnly {
    fn bytes(&self, _name: &str, constant: &Const) -> Result<ConstBytes, String> {
        match &constant.data {
            aether_ir::ConstData::Dense(bytes) => {
                let memory: Arc<Arc<[u8]>> = Arc::new(bytes.clone());
                Ok(ConstBytes { range: 0..bytes.len(), memory })
            }
            aether_ir::ConstData::File { path, .. } => {
                Err(format!("\"{path}\" is a file, and files are not available here"))
            }
        }
    }
}

pub(super) struct Loader<'a> {
    module: &'a Module,
    source: &'a dyn ConstSource,
    opts: CompileOptions,
    raw: Cache<Arc<str>, Arc<ConstBytes>>,
    placed: Cache<Arc<str>, Loc>,
    packed: Cache<(Arc<str>, Layout), Loc>,
    keep: Vec<Keep>,
    copied: u64,
}

impl<'a> Loader<'a> {
    pub fn new(module: &'a Module, source: &'a dyn ConstSource, opts: CompileOptions) -> Self {
        Loader {
            module,
            source,
            opts,
            raw: Cache::new(),
            placed: Cache::new(),
            packed: Cache::new(),
            keep: Vec::new(),
            copied: 0,
        }
    }

    pub fn finish(self) -> (Vec<Keep>, u64) {
        (self.keep, self.copied)
    }

    /// Gives every load-time value of a function that is read at run time its address.
    pub fn resolve(
        &mut self,
        func: &Func,
        plan: &FuncPlan,
        locs: &mut [Option<Loc>],
    ) -> Result<(), CompileError> {
        let definitions = func.definitions();
        for v in read_at_run(func, plan) {
            locs[v.index()] = Some(self.value(func, &definitions, v)?);
        }
        Ok(())
    }

    fn value(
        &mut self,
        func: &Func,
        definitions: &[Option<usize>],
        value: ValueId,
    ) -> Result<Loc, CompileError> {
        let inst = definitions[value.index()].map(|i| &func.body[i]);
        match inst {
            Some(inst) if inst.op == Op::Constant => {
                self.placed(&inst.symbol.clone().unwrap_or_else(|| Arc::from("")))
            }
            Some(inst) if inst.op == Op::Pack => self.pack(func, definitions, inst),
            _ => {
                let tensor = self.evaluate(func, definitions, value)?;
                Ok(self.keep_tensor(&tensor))
            }
        }
    }

    /// The bytes of a constant, checked against its type.
    fn raw(&mut self, name: &Arc<str>) -> Result<Arc<ConstBytes>, CompileError> {
        if let Some(found) = self.raw.get(name) {
            return Ok(found.clone());
        }
        let error = |message| CompileError::Constant { name: name.clone(), message };
        let constant =
            self.module.consts.get(name).ok_or_else(|| error("is not declared".to_owned()))?;
        let bytes = Arc::new(self.source.bytes(name, constant).map_err(error)?);
        let data = bytes.get().ok_or_else(|| error("lies outside its file".to_owned()))?;
        let expected = constant.ty.bytes(|_| None);
        if expected != Some(data.len() as u64) {
            return Err(error(format!(
                "has {} bytes where its type {} needs {}",
                data.len(),
                constant.ty,
                expected.map_or_else(|| "numbers".to_owned(), |n| n.to_string())
            )));
        }
        self.raw.insert(name.clone(), bytes.clone());
        Ok(bytes)
    }

    /// Where steps read a constant: in its file, or in a copy if it is small or not aligned there.
    fn placed(&mut self, name: &Arc<str>) -> Result<Loc, CompileError> {
        if let Some(found) = self.placed.get(name) {
            return Ok(*found);
        }
        let bytes = self.raw(name)?;
        let data = bytes.get().unwrap_or_default();
        let dtype = self.module.consts.get(name).map(|c| c.ty.dtype);
        let align = dtype.filter(|d| !d.is_quantized()).map_or(1, |d| d.block_bytes());
        let loc = if data.len() > COPIED && data.as_ptr().align_offset(align) == 0 {
            self.keep.push(Box::new(bytes.clone()));
            Loc::Const(ConstPtr(data.as_ptr()))
        } else {
            let mut copy = AlignedBytes::zeroed(data.len());
            copy.as_mut_slice().copy_from_slice(data);
            self.keep_bytes(copy)
        };
        self.placed.insert(name.clone(), loc);
        Ok(loc)
    }

    fn keep_bytes(&mut self, bytes: AlignedBytes) -> Loc {
        self.copied += bytes.len() as u64;
        let loc = Loc::Const(ConstPtr(bytes.as_slice().as_ptr()));
        self.keep.push(Box::new(bytes));
        loc
    }

    fn keep_tensor(&mut self, tensor: &Tensor) -> Loc {
        let mut copy = AlignedBytes::zeroed(tensor.bytes().len());
        copy.as_mut_slice().copy_from_slice(tensor.bytes());
        self.keep_bytes(copy)
    }

    fn pack(
        &mut self,
        func: &Func,
        definitions: &[Option<usize>],
        inst: &Inst,
    ) -> Result<Loc, CompileError> {
        let error = |message| CompileError::Op { func: func.name.clone(), op: Op::Pack, message };
        let target = func.ty(inst.results[0]);
        let source = inst.inputs().next().and_then(|v| definitions[v.index()]);
        let source = source.map(|i| &func.body[i]).filter(|i| i.op == Op::Constant);
        let Some(name) = source.and_then(|i| i.symbol.clone()) else {
            return Err(error("only constants can be packed".to_owned()));
        };
        if target.layout == Layout::RowMajor {
            return self.placed(&name);
        }
        if let Some(loc) = self.packed.get(&(name.clone(), target.layout)) {
            return Ok(*loc);
        }
        let dims = target
            .shape
            .as_const()
            .filter(|d| d.len() == 2)
            .ok_or_else(|| error(format!("{target} is no matrix of known size")))?;
        let (rows, cols) = (dims[0] as usize, dims[1] as usize);
        let raw = self.raw(&name)?;
        let data = raw.get().unwrap_or_default();
        let bytes =
            packed::packed_bytes(target.dtype, rows, cols).map_err(|e| error(e.to_string()))?;
        let mut out = AlignedBytes::zeroed(bytes);
        out.prefer_large_pages();
        // In slices, each given back when it is packed: a matrix need not be in memory twice.
        let groups = packed::groups(rows);
        let group_len = (bytes / groups.max(1)).max(1);
        let row_bytes = data.len() / rows.max(1);
        let per_slice = (SLICE / (packed::GROUP * row_bytes).max(1)).max(1);
        for (i, slice) in out.as_mut_slice().chunks_mut(per_slice * group_len).enumerate() {
            let first = i * per_slice;
            let end = groups.min(first + per_slice);
            let matrix = (target.dtype, rows, cols);
            pack_slice(matrix, data, first..end, slice, self.opts.threads).map_err(error)?;
            let done = first * packed::GROUP..(end * packed::GROUP).min(rows);
            let start = raw.range.start;
            self.source.release(&ConstBytes {
                memory: raw.memory.clone(),
                range: start + done.start * row_bytes..start + done.end * row_bytes,
            });
        }
        let loc = self.keep_bytes(out);
        // A copy of the file's bytes is not kept for who may ask for them again.
        self.raw.remove(&name);
        self.packed.insert((name, target.layout), loc);
        Ok(loc)
    }

    /// A load-time value by its reference meaning.
    fn evaluate(
        &mut self,
        func: &Func,
        definitions: &[Option<usize>],
        value: ValueId,
    ) -> Result<Tensor, CompileError> {
        let mut constant =
            |name: &Arc<str>| Ok(self.raw(name)?.get().unwrap_or_default().to_vec().into());
        evaluate(func, definitions, value, &mut constant).map_err(|e| match e {
            LoadError::Constant(e) => e,
            LoadError::Op { op, message } => {
                CompileError::Op { func: func.name.clone(), op, message }
            }
        })
    }
}

/// Packs some row groups of a matrix, by several threads.
fn pack_slice(
    (dtype, rows, cols): (DType, usize, usize),
    data: &[u8],
    groups: Range<usize>,
    out: &mut [u8],
    threads: usize,
) -> Result<(), String> {
    let group_len = out.len() / groups.len().max(1);
    let per_worker = groups.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts = out.chunks_mut((per_worker * group_len).max(1));
        let starts = groups.clone().step_by(per_worker);
        let workers: Vec<_> = starts
            .zip(parts)
            .map(|(start, part)| {
                let range = start..groups.end.min(start + per_worker);
                scope.spawn(move || packed::pack_rows(dtype, rows, cols, data, range, part))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(packed) => packed.map_err(|e| e.to_string()),
            Err(_) => Err("a packing thread panicked".to_owned()),
        })
    })
}
