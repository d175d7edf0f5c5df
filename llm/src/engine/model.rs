//! A model file, made ready to run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aether_ir::{ConstData, DType, Module};
use aether_runtime::gpu::Gpu;
use aether_runtime::{Arena, Backing, Executable, Files, Isa, Options, Placement, Pool};

use super::EngineError;
use super::forms::{Form, Forms, Picking};
use super::interface::Interface;
use crate::arch::{self, Adapter, Bounds, Hparams, MAIN, ModelIr};
use crate::gguf::{Gguf, GgufError, Part};
use crate::tokenizer::Tokenizer;

/// The greatest context that is used without being asked for.
pub const DEFAULT_CONTEXT: usize = 4096;

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Tokens that the caches hold; 0 for the trained context, at most [`DEFAULT_CONTEXT`].
    pub context: usize,
    /// Most tokens that go through the model at once.
    pub batch: usize,
    /// Most rows of logits that come out at once.
    pub rows: usize,
    /// Sequences that have caches and go through the model together ([`Slots`](super::Slots)); 0
    /// for the form of one sequence ([`Context`](super::Context)).
    pub slots: usize,
    /// Element types of the caches of keys and of values; f16 is what models are measured with, q8_0
    /// takes half of its memory and q4_0 a good quarter.
    pub cache_types: (DType, DType),
    /// Workers; 0 for as many as the machine offers.
    pub threads: usize,
    /// Instruction set of the kernels; the best of this machine when `None`.
    pub isa: Option<Isa>,
    /// The passes, as text; the default ones when `None`.
    pub pipeline: Option<String>,
    /// Verify after every pass and prove the memory plan.
    pub verify: bool,
    /// Whether values that do not live at the same time share memory.
    pub arena: Arena,
    /// Runs this module, an edited one of the same file, in place of the one that the file gives.
    /// Constants in a file of the model's name are taken from the model.
    pub ir: Option<Module>,
    /// The GPU to run on; the CPU when `None`.
    pub gpu: Option<Arc<Gpu>>,
    /// What of the model runs on the GPU; its layers are calls.
    pub placement: Placement,
    /// Where the best tokens are found for samplers that need no others.
    pub picking: Picking,
    /// Read the file while loading only, and keep copies of the weights that are used as they are
    /// in it: then the file may be cut, overwritten or deleted while the model runs. A map shares
    /// these with other processes, and can be dropped from memory.
    pub detached: bool,
    /// LoRA adapters, whose products are added to those of the weights.
    pub adapters: Vec<Arc<Adapter>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            context: 0,
            batch: 512,
            rows: 32,
            slots: 0,
            cache_types: (DType::F16, DType::F16),
            threads: 0,
            isa: None,
            pipeline: None,
            verify: cfg!(debug_assertions),
            arena: Arena::default(),
            ir: None,
            gpu: None,
            placement: Placement::Whole,
            picking: Picking::Auto,
            detached: false,
            adapters: Vec::new(),
        }
    }
}

/// What all sequences of a model share.
pub struct Model {
    gguf: Gguf,
    tokenizer: Tokenizer,
    hparams: Hparams,
    module: Module,
    pub(super) interface: Interface,
    pub(super) forms: Forms,
    pool: Arc<Pool>,
    load_time: Duration,
    adapters: Vec<Arc<Adapter>>,
}

impl Model {
    /// Maps a file, builds its module and compiles it.
    ///
    /// # Errors
    /// When the file cannot be believed, its architecture or tokenizer is not supported, something
    /// is missing in it, or `options.ir` does not fit.
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Arc<Model>, EngineError> {
        let start = Instant::now();
        Model::ready(opened(path, options)?, Backing::File, options, start, None)
    }

    /// As [`Model::load`], with the workers of a model that never runs at the same time, such as the
    /// one that this drafts for. `options.threads` says nothing then.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_beside(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        other: &Model,
    ) -> Result<Arc<Model>, EngineError> {
        let start = Instant::now();
        let options = LoadOptions { threads: other.pool.threads(), ..options.clone() };
        let gguf = opened(path, &options)?;
        Model::ready(gguf, Backing::File, &options, start, Some(other.pool.clone()))
    }

    /// As [`Model::load`], for a file that is in memory.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_memory(gguf: Gguf, options: &LoadOptions) -> Result<Arc<Model>, EngineError> {
        Model::ready(gguf, Backing::Memory, options, Instant::now(), None)
    }

    /// The module that the file gives, under the bounds of `options`; nothing is compiled.
    ///
    /// # Errors
    /// As [`arch::build`].
    pub fn build_ir(gguf: &Gguf, options: &LoadOptions) -> Result<ModelIr, EngineError> {
        let context = match options.context {
            0 => arch::trained_context(gguf)?.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT),
            n => n,
        };
        if i32::try_from(context).is_err() {
            return Err(EngineError::ContextSize(context));
        }
        let batch = options.batch.clamp(1, context.max(1));
        let slots = (options.slots > 0).then_some(options.slots);
        let bounds = Bounds {
            context: context.max(1),
            batch,
            rows: options.rows.max(1),
            slots,
            cache_types: options.cache_types,
        };
        let file = gguf.path().to_string_lossy();
        let built = arch::build(gguf, &file, &bounds, &options.adapters)?;
        if context as u64 > built.hparams.n_ctx_train {
            tracing::warn!(
                context,
                trained = built.hparams.n_ctx_train,
                "the context is longer than the model was trained with"
            );
        }
        Ok(built)
    }

    fn ready(
        gguf: Gguf,
        backing: Backing,
        options: &LoadOptions,
        start: Instant,
        pool: Option<Arc<Pool>>,
    ) -> Result<Arc<Model>, EngineError> {
        let ModelIr { module, hparams } = Model::build_ir(&gguf, options)?;
        let module = options.ir.clone().unwrap_or(module);
        let interface = Interface::of(&module)?;
        let files = Files::new();
        register(&files, &gguf, backing, &module)?;
        for adapter in &options.adapters {
            // Pages of its map are never given back: it may be in memory alone.
            register(&files, adapter.gguf(), Backing::Memory, &module)?;
        }
        let compile = Options {
            entry: MAIN.to_owned(),
            threads: options.threads,
            isa: options.isa,
            pipeline: options.pipeline.clone(),
            verify: options.verify,
            arena: options.arena,
            gpu: options.gpu.clone(),
            placement: options.placement.clone(),
        };
        // Both read the file from end to end and neither needs the other.
        let (tokenizer, forms) = std::thread::scope(|scope| {
            let tokenizer = std::thread::Builder::new()
                .name("aether-tokenizer".to_owned())
                .spawn_scoped(scope, || Tokenizer::from_gguf(&gguf));
            let forms = Forms::new(module.clone(), &interface, files, compile, options.picking);
            let tokenizer = match tokenizer.map(|thread| thread.join()) {
                Ok(Ok(tokenizer)) => tokenizer,
                // No thread could be had, or it died: here and now then.
                _ => Tokenizer::from_gguf(&gguf),
            };
            (tokenizer, forms)
        });
        let forms = forms?;
        let path = gguf.path().to_owned();
        let tokenizer = tokenizer.map_err(|source| EngineError::Tokenizer { path, source })?;
        let executable = forms.whole();
        let aliases = executable.result_aliases();
        if let Some(i) =
            (0..interface.caches.len()).find(|&i| aliases[1 + i] != Some(interface.fixed() + i))
        {
            return Err(EngineError::Interface(format!(
                "cache {i} should be donated on its way to the result"
            )));
        }
        let pool = match pool.filter(|pool| pool.threads() == executable.threads()) {
            Some(pool) => pool,
            None => {
                let pool = Pool::new(executable.threads());
                Arc::new(pool.map_err(aether_runtime::RuntimeError::from)?)
            }
        };
        let load_time = start.elapsed();
        let adapters = options.adapters.clone();
        Ok(Arc::new(Model {
            gguf,
            tokenizer,
            hparams,
            module,
            interface,
            forms,
            pool,
            load_time,
            adapters,
        }))
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Sizes and constants of the model.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// The module before the passes: what can be printed, edited and run again.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The module's text.
    pub fn module_text(&self) -> String {
        aether_ir::text::print_module(&self.module)
    }

    /// What runs.
    pub fn executable(&self) -> &Arc<Executable> {
        self.forms.whole()
    }

    /// What runs for one token, or one of each slot, where that is other code than for more.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub fn few(&self) -> Result<Option<Arc<Executable>>, EngineError> {
        self.forms.get(Form { few: Some(self.forms.few()), ..Form::WHOLE })
    }

    /// The workers, which all contexts share.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Tokens that a context holds.
    pub fn context_len(&self) -> usize {
        self.interface.context
    }

    /// Sequences that have caches of their own; `None` in the form of one sequence.
    pub fn slots(&self) -> Option<usize> {
        self.interface.slots
    }

    /// Tokens that go through the model at once.
    pub fn batch_len(&self) -> usize {
        self.interface.batch
    }

    /// Rows of logits that come out at once.
    pub fn max_rows(&self) -> usize {
        self.interface.rows
    }

    /// Logits per row; the tokenizer may know fewer tokens.
    pub fn vocab_len(&self) -> usize {
        self.interface.vocab
    }

    /// Bytes of the caches, of all slots, when they are full.
    pub fn cache_bytes(&self) -> usize {
        self.interface.caches.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The LoRA adapters that are part of it.
    pub fn adapters(&self) -> &[Arc<Adapter>] {
        &self.adapters
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }
}

fn opened(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Gguf, GgufError> {
    match options.detached {
        true => Gguf::open_detached(path),
        false => Gguf::open(path),
    }
}

/// Serves the module's constants from the files of a model or an adapter.
fn register(
    files: &Files,
    gguf: &Gguf,
    backing: Backing,
    module: &Module,
) -> Result<(), EngineError> {
    let register = |part: &Part, path: String| match part.file() {
        None => {
            files.register(path, part.map().clone(), backing);
            Ok(())
        }
        Some(file) => {
            file.try_clone().and_then(|file| files.register_copied(path, file)).map_err(|source| {
                GgufError::Io { path: part.path().to_owned(), doing: "read", source }
            })
        }
    };
    for part in gguf.parts() {
        let own = part.path().to_string_lossy().into_owned();
        for constant in module.consts.values() {
            if let ConstData::File { path, .. } = &constant.data {
                let same_name = Path::new(path).file_name() == part.path().file_name();
                if *path != own && same_name {
                    register(part, path.clone())?;
                }
            }
        }
        register(part, own)?;
    }
    Ok(())
}
