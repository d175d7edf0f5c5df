//! A program on a GPU: its pipelines, its weights.

use std::collections::HashMap;
use std::sync::Arc;

use aether_codegen_wgsl::GpuProgram;
use aether_codegen_wgsl::program::Buffer;
use aether_ir::{ConstSource, Module};

use super::device::{GpuTensor, Pipeline};
use super::memory::Layout;
use super::registry::Content;
use super::staging::Stagings;
use super::stream::{self, Demand, Segment, TooSmall};
use super::weights::{HostWeight, Weight, Weights};
use super::{Gpu, GpuError};
use crate::RuntimeError;

/// A constant of a program.
pub(crate) enum Constant {
    /// On the device in every run.
    Resident(Weight),
    /// Brought for its segment in every run.
    Streamed(Arc<HostWeight>),
}

/// How weights pass through the device that do not stay.
#[derive(Clone)]
pub(crate) struct Stream {
    pub pool: Arc<GpuTensor>,
    pub stagings: Arc<Stagings>,
}

/// A program, ready for sessions.
pub struct GpuExecutable {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) program: GpuProgram,
    /// By shader.
    pub(crate) pipelines: Vec<Arc<Pipeline>>,
    /// By constant of the program.
    pub(crate) constants: Vec<Constant>,
    /// The steps, cut where other weights are brought; one segment when all stay.
    segments: Vec<Segment>,
    pub(crate) stream: Option<Stream>,
    constant_bytes: u64,
    streamed_bytes: u64,
}

impl GpuExecutable {
    /// Makes the pipelines and uploads the constants that are not there yet. Where the limit leaves
    /// no room for all, some pass through in every run.
    ///
    /// # Errors
    /// When a constant is missing, the GPU refuses a shader or has no memory left, or the limit is
    /// too small for what one step reads.
    pub fn load(
        gpu: Arc<Gpu>,
        program: GpuProgram,
        module: &Module,
        source: &dyn ConstSource,
        weights: &Weights,
    ) -> Result<GpuExecutable, RuntimeError> {
        let draft = Draft::new(&gpu, program, module, source, weights)?;
        let plan = plan(&gpu, std::slice::from_ref(&draft))?;
        let shared = Shared::of(&gpu, std::slice::from_ref(&draft), &plan)?;
        Ok(draft.finish(gpu, &plan, &shared))
    }

    /// As [`GpuExecutable::load`] for programs that run one after another, over and over: they share
    /// the limit by one plan, so that none evicts what another keeps. When it has no room for the
    /// memory of all their runs at once, each has a plan of its own, and they take turns.
    ///
    /// # Errors
    /// As [`GpuExecutable::load`], with the place of the program.
    pub(crate) fn load_all(
        gpu: &Arc<Gpu>,
        programs: Vec<(GpuProgram, &Module)>,
        source: &dyn ConstSource,
        weights: &Weights,
    ) -> Result<Vec<GpuExecutable>, (usize, RuntimeError)> {
        let mut drafts = Vec::with_capacity(programs.len());
        for (at, (program, module)) in programs.into_iter().enumerate() {
            drafts.push(Draft::new(gpu, program, module, source, weights).map_err(|e| (at, e))?);
        }
        let together = plan(gpu, &drafts);
        if let Ok(plan) = together {
            let shared = Shared::of(gpu, &drafts, &plan).map_err(|e| (0, e.into()))?;
            let each = drafts.into_iter().map(|draft| draft.finish(gpu.clone(), &plan, &shared));
            return Ok(each.collect());
        }
        tracing::info!(parts = drafts.len(), "parts take turns in the GPU's memory");
        let mut all = Vec::with_capacity(drafts.len());
        for (at, draft) in drafts.into_iter().enumerate() {
            let own = std::slice::from_ref(&draft);
            let plan = plan(gpu, own).map_err(|e| (at, e.into()))?;
            let shared = Shared::of(gpu, own, &plan).map_err(|e| (at, e.into()))?;
            all.push(draft.finish(gpu.clone(), &plan, &shared));
        }
        Ok(all)
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// What runs.
    pub fn program(&self) -> &GpuProgram {
        &self.program
    }

    /// Bytes of the constants.
    pub fn constant_bytes(&self) -> u64 {
        self.constant_bytes
    }

    /// Bytes of constants that every run brings to the device anew; 0 when all stay there.
    pub fn streamed_bytes(&self) -> u64 {
        self.streamed_bytes
    }

    /// Bytes that a session of it takes on the device, beside the constants.
    pub fn session_bytes(&self) -> u64 {
        Layout::of(&self.program).bytes()
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// A program whose weights are known, but not where they will be.
struct Draft {
    program: GpuProgram,
    pipelines: Vec<Arc<Pipeline>>,
    /// By constant.
    weights: Vec<Weight>,
    /// By step, the constants that it reads, each once.
    reads: Vec<Vec<usize>>,
    /// Bytes of a session.
    session: u64,
}

impl Draft {
    fn new(
        gpu: &Gpu,
        program: GpuProgram,
        module: &Module,
        source: &dyn ConstSource,
        weights: &Weights,
    ) -> Result<Draft, RuntimeError> {
        let pipelines =
            program.shaders.iter().map(|s| gpu.pipeline(s)).collect::<Result<Vec<_>, _>>()?;
        gpu.save_pipelines();
        let found = program.constants.iter().map(|c| weights.get(gpu, c, module, source));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let reads = program.steps.iter().map(|step| {
            let constants = step.bindings.iter().filter_map(|b| match b.buffer {
                Buffer::Constant(i) => Some(i),
                _ => None,
            });
            let mut constants: Vec<usize> = constants.collect();
            constants.sort_unstable();
            constants.dedup();
            constants
        });
        let reads = reads.collect();
        let session = Layout::of(&program).bytes();
        Ok(Draft { pipelines, weights: found, reads, session, program })
    }

    /// The steps, cut where other weights are brought.
    fn segments(&self, plan: &Split) -> Vec<Segment> {
        if plan.pool == 0 {
            return vec![Segment { steps: 0..self.program.steps.len(), uploads: Vec::new() }];
        }
        let demand = |w: &Weight| Demand { bytes: w.tensor.bytes(), kept: false };
        let demands: Vec<Demand> = self.weights.iter().map(demand).collect();
        let stays: Vec<bool> = self.weights.iter().map(|w| plan.stays(w)).collect();
        stream::segments(&self.reads, &demands, &stays, plan.pool)
    }

    /// Puts the weights where the plan has them.
    fn finish(self, gpu: Arc<Gpu>, plan: &Split, shared: &Shared) -> GpuExecutable {
        let segments = self.segments(plan);
        let Draft { program, pipelines, weights, .. } = self;
        let constant_bytes = program.constants.iter().map(|c| c.bytes).sum();
        let streamed_bytes = segments.iter().flat_map(|s| &s.uploads).map(|u| u.bytes).sum::<u64>();
        let constants = weights.into_iter().map(|weight| match plan.stays(&weight) {
            true => Constant::Resident(weight),
            false => Constant::Streamed(weight.host),
        });
        let constants = constants.collect();
        let stream = shared.stream.clone().filter(|_| streamed_bytes > 0);
        if stream.is_some() {
            tracing::info!(
                weights = constant_bytes,
                streamed = streamed_bytes,
                segments = segments.len(),
                pool = plan.pool,
                "weights exceed the GPU's memory limit: some pass through in every step"
            );
        }
        GpuExecutable {
            gpu,
            program,
            pipelines,
            constants,
            segments,
            stream,
            constant_bytes,
            streamed_bytes,
        }
    }
}

/// What of the weights of some programs stays.
struct Split {
    /// The weights that stay.
    kept: Vec<Arc<GpuTensor>>,
    /// Bytes of the pool.
    pool: u64,
}

impl Split {
    fn stays(&self, weight: &Weight) -> bool {
        self.kept.iter().any(|kept| Arc::ptr_eq(kept, &weight.tensor))
    }
}

/// What some programs have in common: how weights pass through.
struct Shared {
    stream: Option<Stream>,
}

impl Shared {
    /// Brings what stays to the device.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn of(gpu: &Arc<Gpu>, drafts: &[Draft], split: &Split) -> Result<Shared, GpuError> {
        drop(gpu.pin(&split.kept)?);
        gpu.wait(gpu.queue.submit([]))?;
        let segments = drafts.iter().flat_map(|draft| draft.segments(split));
        let most = segments.map(|segment| segment.bytes()).max().unwrap_or(0);
        let stream = (most > 0).then(|| Stream {
            pool: gpu.registry().tensor("the weights that pass", split.pool, Content::Scratch),
            stagings: Stagings::new(most),
        });
        Ok(Shared { stream })
    }
}

/// What stays and what passes through under the device's limit, when all these are to have their
/// memory at once.
fn plan(gpu: &Gpu, drafts: &[Draft]) -> Result<Split, GpuError> {
    // Programs share weights; here each is there once.
    let mut all: Vec<&Arc<GpuTensor>> = Vec::new();
    let mut steps: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<*const GpuTensor, usize> = HashMap::new();
    for draft in drafts {
        let places: Vec<usize> = draft
            .weights
            .iter()
            .map(|weight| {
                *known.entry(Arc::as_ptr(&weight.tensor)).or_insert_with(|| {
                    all.push(&weight.tensor);
                    all.len() - 1
                })
            })
            .collect();
        steps.extend(draft.reads.iter().map(|reads| reads.iter().map(|&i| places[i]).collect()));
    }
    let demands: Vec<Demand> =
        all.iter().map(|t| Demand { bytes: t.bytes(), kept: t.is_resident() }).collect();
    let session = drafts.iter().fold(0u64, |sum, draft| sum.saturating_add(draft.session));
    let limit = gpu.registry().limit();
    let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(session));
    let largest = gpu.device.limits().max_buffer_size;
    let plan = stream::plan(&steps, &demands, room, largest);
    let plan = plan.map_err(|TooSmall { step, bytes, needed }| {
        let mut of_all = drafts.iter().flat_map(|d| (0..d.reads.len()).map(move |step| (d, step)));
        let what = of_all.nth(step).map_or_else(String::new, |(draft, step)| {
            let constants = &draft.program.constants;
            let names: Vec<&str> = draft.reads[step].iter().map(|&i| constants[i].name()).collect();
            format!("`{}` with {}", draft.program.steps[step].label, names.join(", "))
        });
        let (needed, limit) = (needed.saturating_add(session), limit.unwrap_or(u64::MAX));
        GpuError::Limit { what, bytes, needed, limit }
    })?;
    let kept = all.iter().zip(&plan.resident).filter(|(_, stays)| **stays);
    Ok(Split { kept: kept.map(|(t, _)| (*t).clone()).collect(), pool: plan.pool })
}

impl From<GpuError> for RuntimeError {
    fn from(e: GpuError) -> Self {
        RuntimeError::Gpu(e)
    }
}
