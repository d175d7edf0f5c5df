//! `aether serve`, which is `aether-server`: language models over HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aether_llm::engine::{LoadOptions, Model, Service, ServiceElsewhere, ServiceOptions};
use aether_llm::sample::SamplerOptions;
use aether_llm::server::{App, ListenOptions, Origins, Rates, ServerOptions, serve};
use aether_runtime::Placement;
use anyhow::{Context as _, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cache_type::CacheArgs;
use crate::device::DeviceArgs;
use crate::output;
use crate::source::{LoraArgs, ModelArg, read_file};
use crate::speculate::SpeculateArgs;

/// Serve a model over HTTP, with OpenAI's API
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Address to listen on; may be given several times
    #[arg(long, default_value = "127.0.0.1", value_delimiter = ',')]
    pub host: Vec<IpAddr>,
    /// Port to listen on; 0 for any free one, which is printed
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Requests that are answered at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_concurrency: u16,
    /// Further requests that may wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub queue: usize,
    /// Tokens of context of each request; 0 for what the model was trained with, at most 4096
    #[arg(short, long, value_name = "CTX", default_value_t = 0)]
    pub context: usize,
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_tokens: usize,
    /// New tokens of an answer when the request does not say; as many as there may be when absent
    #[arg(long, value_name = "N")]
    pub default_tokens: Option<usize>,
    /// Most tokens that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub batch: u32,
    /// Go on when the context is full, without its older half, in place of ending the answer
    #[arg(long)]
    pub context_shift: bool,
    /// Tokens of prompts that go through the model beside requests that are being continued
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prefill_chunk: usize,
    /// A key that requests must show; may be given several times
    #[arg(
        long,
        value_name = "KEY",
        env = "AETHER_API_KEY",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub api_key: Vec<String>,
    /// A file with a key on each line
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Requests per minute of each key, or of all when there are no keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
    /// Tokens of prompts and answers per minute of each key, or of all when there are no keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub token_rate_limit: Option<u32>,
    /// Seconds that an answer may take; 0 for no limit
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Seconds that running requests get when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    pub max_body: usize,
    /// Most connections at a time
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_connections: usize,
    /// Origins whose pages may call, between commas: `*` for any, `localhost` for this machine's
    #[arg(long, value_name = "ORIGINS", default_value = "")]
    pub cors: String,
    /// The name under which the model is listed, and further ones; its file's name when absent
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub alias: Vec<String>,
    /// Words about the model, for its listing
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    pub tags: Vec<String>,
    /// A Jinja chat template in place of the model's, as text or by name (chatml, gemma, llama3,
    /// command-r)
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "chat_template_file")]
    pub chat_template: Option<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE")]
    pub chat_template_file: Option<PathBuf>,
    /// Whether chat templates that know it are told to let the model think first
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Reasoning::Auto)]
    pub reasoning: Reasoning,
    /// A file with a grammar (GBNF) that answers match when the request says nothing of their form
    #[arg(long, value_name = "FILE")]
    pub grammar_file: Option<PathBuf>,
    /// Tell the prompt and the settings in every answer (`__verbose`)
    #[arg(long)]
    pub verbose: bool,
    /// Do not offer /slots
    #[arg(long)]
    pub no_slots: bool,
    /// Do not offer /metrics
    #[arg(long)]
    pub no_metrics: bool,
    /// Do not offer the chat page at /
    #[arg(long)]
    pub no_ui: bool,
    /// Read weights from the mapped file while serving, not from copies: less memory for weights
    /// that are used as they are in it, but who cuts or overwrites the file ends the server
    #[arg(long)]
    pub mmap: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Compute on the CPU only; the same as --device cpu
    #[arg(
        long,
        help_heading = "Device",
        conflicts_with_all = ["device", "gpu", "gpu_layers", "gpu_memory"]
    )]
    pub cpu_only: bool,
    /// Worker threads; 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Default temperature
    #[arg(long = "temp", value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    /// Seed of requests that name none; another every time when absent
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
}

/// Whether a model should think first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Reasoning {
    On,
    Off,
    /// As the template has it.
    Auto,
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_file(path)?).with_context(|| format!("{} is not UTF-8", path.display()))
}

impl ServeArgs {
    fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = read_text(path)?;
            keys.extend(text.lines().map(|line| line.trim().to_owned()));
        }
        keys.retain(|key| !key.is_empty());
        let wanted = !self.api_key.is_empty() || self.api_key_file.is_some();
        if wanted && keys.is_empty() {
            bail!("API keys are wanted, but all of them are empty");
        }
        Ok(keys)
    }

    fn options(&self, path: PathBuf) -> anyhow::Result<ServerOptions> {
        let chat_template = match (&self.chat_template, &self.chat_template_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(read_text(path)?),
            (None, None) => None,
        };
        let grammar = self.grammar_file.as_deref().map(read_text).transpose()?;
        if let Some(text) = &grammar {
            aether_llm::grammar::to_lark(text).context("--grammar-file")?;
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut names = self.alias.iter().cloned().chain(stem);
        Ok(ServerOptions {
            model_name: names.next().unwrap_or_else(|| "model".to_owned()),
            aliases: self.alias.iter().skip(1).cloned().collect(),
            tags: self.tags.clone(),
            default_tokens: self.default_tokens,
            seed: self.seed,
            thinking: match self.reasoning {
                Reasoning::On => Some(true),
                Reasoning::Off => Some(false),
                Reasoning::Auto => None,
            },
            grammar,
            context_shift: self.context_shift,
            verbose: self.verbose,
            slots_endpoint: !self.no_slots,
            metrics_endpoint: !self.no_metrics,
            page: !self.no_ui,
            origins: Origins::parse(&self.cors),
            api_keys: self.keys()?,
            rates: Rates { requests: self.rate_limit, tokens: self.token_rate_limit },
            max_tokens: self.max_tokens,
            max_body: self.max_body,
            request_time: (self.timeout > 0).then(|| Duration::from_secs(self.timeout)),
            sampler: SamplerOptions { temperature: self.temperature, ..SamplerOptions::default() },
            chat_template,
            model_path: path,
            ..ServerOptions::default()
        })
    }
}

/// Serves until the process is told to end.
///
/// # Errors
/// When the model cannot be loaded or the port cannot be had, and when the GPU is lost under
/// `--device gpu`.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let path = args.model.path()?;
    let options = args.options(path.clone())?;
    let slots = usize::from(args.max_concurrency);
    let load = LoadOptions {
        context: args.context,
        slots,
        // Room for prompts' log-probabilities beside the rows of every request.
        rows: slots * args.speculate.rows()?.unwrap_or(1) + 32,
        batch: args.batch as usize,
        threads: args.threads,
        gpu: args.device.open()?,
        placement: args.device.placement(),
        detached: !args.mmap,
        adapters: args.lora.open(!args.mmap)?,
        cache_types: args.cache.types(),
        ..LoadOptions::default()
    };
    let model = Model::load(&path, &load)?;
    let service = ServiceOptions { queue: args.queue, chunk: args.prefill_chunk };
    let speculation = args.speculate.load(&model)?;
    let falls_back = args.device.falls_back();
    let on_cpu: ServiceElsewhere = Box::new(move |lost| {
        if !falls_back {
            return None;
        }
        tracing::warn!(error = %lost, "going on with the CPU");
        let load = LoadOptions { gpu: None, placement: Placement::Whole, ..load.clone() };
        Some(Model::load(&path, &load))
    });
    let service = Service::start_or(model, service, speculation.as_ref(), on_cpu)?;
    let app = App::new(service, options)?;
    // The engine has threads of its own: one is enough for the rest.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .context("cannot start the runtime of the server")?;
    let outcome = runtime.block_on(listen(args, app));
    // Whoever still writes to a client that does not read is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn listen(args: &ServeArgs, app: Arc<App>) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for host in &args.host {
        let address = SocketAddr::new(*host, args.port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr().context("the listener has no address")?;
        listeners.push((listener, address));
    }
    let (tell, told) = watch::channel(false);
    let mut count = 0;
    ctrlc::set_handler(move || {
        count += 1;
        if count > 1 {
            // The second signal does not wait.
            std::process::exit(130);
        }
        // Without a listener the process ends already.
        let _ = tell.send(true);
    })
    .context("cannot listen for signals")?;
    let options = ListenOptions {
        connections: args.max_connections,
        grace: Duration::from_secs(args.grace),
        ..ListenOptions::default()
    };
    let mut tasks = Vec::new();
    for (listener, address) in listeners {
        output::note(&format!("{} on http://{address}", app.options.model_name));
        let (app, mut told) = (app.clone(), told.clone());
        tasks.push(tokio::spawn(async move {
            let of_app = app.clone();
            let end = async {
                // A sender that is gone means the same.
                let told = async { drop(told.wait_for(|end| *end).await) };
                tokio::select! {
                    () = told => {}
                    _ = of_app.service.until_lost() => {}
                }
            };
            serve(app, listener, options, end).await;
        }));
    }
    for task in tasks {
        task.await.context("a listener ended early")?;
    }
    if let Some(why) = app.service.lost() {
        bail!("{why}");
    }
    Ok(())
}
