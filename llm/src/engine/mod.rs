//! The engine: a model file made ready to run, its caches, and generation.
//!
//! [`Model`] is what all uses of a file share: module, executable, tokenizer. [`Context`] is one
//! sequence of tokens with its key and value caches, [`Slots`] are many that go through the model
//! together. [`generate`] continues a prompt; a [`Service`] continues many at once, for many who
//! ask. Both can let a [`Proposer`] guess ahead ([`Context::speculate`], [`Service::speculating`]).
//!
//! ```no_run
//! use aether_llm::engine::{Context, GenOptions, LoadOptions, Model, generate};
//! use aether_llm::tokenizer::EncodeOptions;
//!
//! let model = Model::load("model.gguf", &LoadOptions::default())?;
//! let prompt = model.tokenizer().encode(b"The capital of France is", EncodeOptions::PROMPT)?;
//! let mut context = Context::new(&model)?;
//! let out = generate(&mut context, &prompt, &GenOptions::default(), &mut |_| {
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{}", String::from_utf8_lossy(&model.tokenizer().decode(&out.tokens, false)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod context;
mod error;
mod forms;
mod generate;
mod interface;
mod model;
mod programs;
mod request;
mod scheduler;
mod sequence;
mod service;
mod slots;
mod speculate;
mod text;

pub use context::Context;
pub use error::EngineError;
pub use forms::Picking;
pub use generate::{Elsewhere, GenOptions, GenOutput, StopReason, Timings, generate, generate_or};
pub use model::{DEFAULT_CONTEXT, LoadOptions, Model};
pub use request::{Done, Event, Failure, Finish, Logprobs, Request, Usage};
pub use scheduler::{Elsewhere as ServiceElsewhere, SlotState, SlotWork};
pub use service::{Service, ServiceOptions, Stats, SubmitError};
pub use slots::{Piece, Slots};
pub use speculate::{DRAFT_P_MIN, DRAFT_TOKENS, Drafted, MOST_DRAFT_TOKENS, Proposer, Speculation};
