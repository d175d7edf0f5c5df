//! Chats as prompts: the model's own Jinja template, with bounds.
//!
//! A model file brings its template (`tokenizer.chat_template`), written for Hugging Face's
//! `transformers`: Jinja with `trim_blocks` and `lstrip_blocks`, Python's methods of strings, lists
//! and dicts, `tojson` as `json.dumps` writes, `raise_exception` and `strftime_now`. minijinja runs
//! it, under limits of steps, memory and time, for it comes out of a file that nobody vouches for
//! ([`limits`], decision 18). A model without a template gets [`CHATML`], or [`GEMMA`] when its
//! vocabulary has Gemma's turns.

mod filters;
mod limits;
mod message;
mod operations;
mod rewrite;
mod tools;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::machinery::{
    CodeGenerator, Instructions, Vm, WhitespaceConfig, make_string_output, parse,
};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde_json::Map;

use crate::engine::Model;
use crate::gguf::Optional;
use crate::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};

pub use message::Message;
pub use tools::{Tool, ToolCall, ToolForm};

/// The default template: ChatML (OpenAI 2023), which most models of unknown origin understand.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + \
    message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
    '<|im_start|>assistant\\n' }}{% endif %}";

/// The default for vocabularies with `<start_of_turn>`. The system's text goes before the user's.
pub const GEMMA: &str = "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in \
    messages %}{% if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}{% \
    else %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + \
    '\\n' + ns.system + message.content + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif \
    %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// Llama 3's form (Meta 2024).
pub const LLAMA3: &str = "{% for message in messages %}{{ '<|start_header_id|>' + \
    message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}{% \
    if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// Command R's form (Cohere 2024).
pub const COMMAND_R: &str = "{% for message in messages %}{{ \
    '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if message.role == 'assistant' else \
    message.role | upper) + '_TOKEN|>' + message.content | trim + '<|END_OF_TURN_TOKEN|>' }}{% \
    endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% \
    endif %}";

/// Templates with a name.
const NAMED: [(&str, &str); 4] =
    [("chatml", CHATML), ("gemma", GEMMA), ("llama3", LLAMA3), ("command-r", COMMAND_R)];

/// Most instructions of a rendering.
const FUEL: u64 = 20_000_000;
/// Most bytes of a template.
const MOST_SOURCE: usize = 1 << 20;
const NAME: &str = "chat";
/// The stack of a rendering: macros call themselves up to a depth that minijinja bounds.
const STACK: usize = 32 << 20;
/// As transformers sets it.
const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// A chat cannot be made a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("the chat template cannot be read: {0}")]
    Template(String),
    #[error("the chat template refuses these messages: {0}")]
    Render(String),
    #[error("the chat template is longer than {MOST_SOURCE} bytes")]
    TooLong,
    /// What is wrong with the messages, and where.
    #[error("{at}: {problem}")]
    Message { at: String, problem: String },
}

/// What is rendered beside the messages.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's turn.
    pub generation_prompt: bool,
    /// The functions that may be called, in OpenAI's form.
    pub tools: Vec<serde_json::Value>,
    /// Further variables.
    pub extra: Map<String, serde_json::Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        RenderOptions { generation_prompt: true, tools: Vec::new(), extra: Map::new() }
    }
}

/// Seconds since 1970 as a date, in `strftime`'s form; directives that are not known are left out.
pub(crate) fn utc_date(format: &str, seconds: u64) -> String {
    filters::strftime(format, seconds).unwrap_or_default()
}

/// A chat template, ready to be used.
#[derive(Debug)]
pub struct Template {
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    /// A template by its name: `chatml`, `gemma`, `llama3` or `command-r`.
    pub fn named(name: &str) -> Option<&'static str> {
        NAMED.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
    }

    /// The template of a model, or the one that is given in place of it, as text or by its name.
    ///
    /// # Errors
    /// When it is no Jinja.
    pub fn for_model(model: &Model, given: Option<&str>) -> Result<Template, ChatError> {
        let tokenizer = model.tokenizer();
        let of_file = model.gguf().get_str("tokenizer.chat_template").optional();
        let source = match (given, of_file) {
            (Some(given), _) => Template::named(given).unwrap_or(given).to_owned(),
            (None, Ok(Some(source))) => source.to_owned(),
            (None, _) if tokenizer.special_token("<start_of_turn>").is_some() => GEMMA.to_owned(),
            (None, _) => CHATML.to_owned(),
        };
        let ids = tokenizer.special_ids();
        let text = |id: Option<u32>| {
            let bytes = id.map_or(&[][..], |id| tokenizer.token_bytes(id, true));
            String::from_utf8_lossy(bytes).into_owned()
        };
        Template::new(source, text(ids.bos), text(ids.eos))
    }

    /// A template with the texts of the tokens that begin and end a text.
    ///
    /// # Errors
    /// When it is no Jinja.
    pub fn new(source: String, bos: String, eos: String) -> Result<Template, ChatError> {
        if source.len() > MOST_SOURCE {
            return Err(ChatError::TooLong);
        }
        let template = Template { source, bos, eos };
        template.in_thread(|| template.compiled(|_, _| Ok(())).map_err(ChatError::Template))?;
        Ok(template)
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How calls of functions are written.
    pub fn tool_form(&self) -> ToolForm {
        ToolForm::of(&self.source)
    }

    /// As [`Template::render`], with functions that may be called: as the template tells of them,
    /// or in a system message when it does not know any.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_with_tools(
        &self,
        messages: &[Message],
        tools: &[Tool],
        mut options: RenderOptions,
    ) -> Result<String, ChatError> {
        if !tools.is_empty() && !self.source.contains("tools") {
            return self.render(&ToolForm::instruct(messages, tools), &options);
        }
        options.tools = tools.iter().map(|tool| tool.json.clone()).collect();
        self.render(messages, &options)
    }

    /// The prompt of a chat.
    ///
    /// # Errors
    /// When the template refuses the messages, or the limits are reached.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, ChatError> {
        let tools = match options.tools.is_empty() {
            true => Value::UNDEFINED,
            false => Value::from_serialize(&options.tools),
        };
        let messages: Vec<&Map<String, serde_json::Value>> =
            messages.iter().map(Message::fields).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let base = context! {
            messages => Value::from_serialize(&messages),
            add_generation_prompt => options.generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            tools,
            // Some templates ask for the day; without it they name one of their making.
            date_string => utc_date("%d %b %Y", now),
            datetime => utc_date("%b %d %Y %H:%M:%S GMT", now),
        };
        let all = context! { ..base, ..Value::from_serialize(&options.extra) };
        self.in_thread(|| {
            limits::begin();
            self.compiled(|environment, code| code.run(environment, all)).map_err(ChatError::Render)
        })
    }

    /// Runs on a thread of its own: a deep template has the stack that it needs, the meter starts
    /// afresh.
    fn in_thread<R: Send>(
        &self,
        run: impl FnOnce() -> Result<R, ChatError> + Send,
    ) -> Result<R, ChatError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(NAME.to_owned()).stack_size(STACK);
            let running = thread
                .spawn_scoped(scope, run)
                .map_err(|e| ChatError::Render(format!("no thread for it: {e}")))?;
            running.join().unwrap_or_else(|_| Err(ChatError::Render("it panicked".to_owned())))
        })
    }

    /// The template as code. It refers to its text, so it is made anew each time: within a
    /// millisecond.
    fn compiled<R>(
        &self,
        then: impl FnOnce(&Environment<'_>, Code<'_>) -> Result<R, minijinja::Error>,
    ) -> Result<R, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        operations::install(&mut environment);
        environment.add_function("raise_exception", filters::raise_exception);
        environment.add_function("strftime_now", filters::strftime_now);
        let described = |e: minijinja::Error| filters::describe(&e);
        rewrite::check_depth(&self.source, WHITESPACE).map_err(described)?;
        let tree = parse(&self.source, NAME, Default::default(), WHITESPACE).map_err(described)?;
        let tree = rewrite::rewrite(&tree).map_err(described)?;
        let mut generator = CodeGenerator::new(NAME, &self.source);
        generator.compile_stmt(&tree);
        let (instructions, blocks) = generator.finish();
        then(&environment, Code { instructions, blocks }).map_err(described)
    }

    /// The tokens of what was rendered; BOS is not added to a text that begins with it.
    ///
    /// # Errors
    /// When the text is too long.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let add_special = self.bos.is_empty() || !text.starts_with(&self.bos);
        tokenizer.encode(text.as_bytes(), EncodeOptions { add_special, parse_special: true })
    }
}

/// What minijinja's machine runs.
struct Code<'source> {
    instructions: Instructions<'source>,
    blocks: BTreeMap<&'source str, Instructions<'source>>,
}

impl Code<'_> {
    fn run(
        self,
        environment: &Environment<'_>,
        variables: Value,
    ) -> Result<String, minijinja::Error> {
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let machine = Vm::new(environment);
        machine.eval(&self.instructions, variables, &self.blocks, &mut out, AutoEscape::None)?;
        drop(out);
        if text.len() > limits::MOST_TEXT { Err(limits::too_long()) } else { Ok(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, ChatError> {
        let template = Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?;
        template.render(&Message::parse_list(messages)?, &RenderOptions::default())
    }

    fn chat() -> serde_json::Value {
        json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Hi" }, { "type": "text", "text": "!" }] },
            { "role": "assistant", "content": "Hello." },
            { "role": "user", "content": "Bye" },
        ])
    }

    #[test]
    fn defaults_are_well_formed() {
        let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n\
                    <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n\
                    <|im_start|>assistant\n";
        assert_eq!(render(CHATML, chat()).unwrap(), want);
        let want = "<s><start_of_turn>user\nBe brief.\n\nHi!<end_of_turn>\n<start_of_turn>model\n\
                    Hello.<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n\
                    <start_of_turn>model\n";
        assert_eq!(render(GEMMA, chat()).unwrap(), want);
        let turns =
            json!([{ "role": "system", "content": "A" }, { "role": "user", "content": "B " }]);
        let want = "<|start_header_id|>system<|end_header_id|>\n\nA<|eot_id|>\
                    <|start_header_id|>user<|end_header_id|>\n\nB<|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\n";
        assert_eq!(render(Template::named("llama3").unwrap(), turns.clone()).unwrap(), want);
        let want = "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>A<|END_OF_TURN_TOKEN|>\
                    <|START_OF_TURN_TOKEN|><|USER_TOKEN|>B<|END_OF_TURN_TOKEN|>\
                    <|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>";
        assert_eq!(render(Template::named("command-r").unwrap(), turns).unwrap(), want);
    }

    #[test]
    fn python_is_understood() {
        let table = [
            ("{{ messages[0].content.upper().strip('.') }}", "BE BRIEF"),
            ("{{ messages[0]['content'].split(' ')[-1] }}", "brief."),
            ("{% if messages[0].role.startswith('sys') %}\nyes\n{% endif %}\n", "yes\n"),
            (
                "  {%- for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=system;content=Be brief.;",
            ),
            ("{{ messages[:1] | tojson }}", r#"[{"role": "system", "content": "Be brief."}]"#),
            ("{{ {'a': '<é>'} | tojson }}", r#"{"a": "<é>"}"#),
            ("{{ {'a': [1, 2.5]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2.5\n  ]\n}"),
            (
                "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "system",
            ),
            ("{{ bos_token }}{{ eos_token }}{{ tools is defined }}", "<s></s>False"),
            ("{{ strftime_now('%Y') | length }}", "4"),
        ];
        for (source, want) in table {
            assert_eq!(render(source, chat()).unwrap(), want, "{source}");
        }
    }

    #[test]
    fn templates_have_limits() {
        let table = [
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ""),
            ("{{ raise_exception('no such roles') }}", "no such roles"),
            ("{{ range(1000000000) }}", ""),
            ("{{ messages[0].content.nothing() }}", "nothing"),
        ];
        for (source, message) in table {
            let error = render(source, chat()).unwrap_err();
            assert!(matches!(error, ChatError::Render(_)), "{source}: {error}");
            assert!(error.to_string().contains(message), "{source}: {error}");
        }
        for source in ["{% if %}", "{% include 'other' %}", "{{ f(*x) }}"] {
            assert!(matches!(render(source, chat()), Err(ChatError::Template(_))), "{source}");
        }
        let nested = "{% if x %}".repeat(100_000);
        assert!(matches!(render(&nested, chat()), Err(ChatError::Template(_))));
        let brackets = format!("{{{{ {} }}}}", "(".repeat(100_000));
        assert!(matches!(render(&brackets, chat()), Err(ChatError::Template(_))));
        assert!(matches!(render(&"x".repeat(MOST_SOURCE + 1), chat()), Err(ChatError::TooLong)));
    }
}
