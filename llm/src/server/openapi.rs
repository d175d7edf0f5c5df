//! `/openapi.json`, the description of the API (OpenAPI 3.1), and `/docs`, a page that shows it.
//!
//! The fields stand in tables here; a test sends each of them to its endpoint, so that none is
//! described that is not understood.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::json_response;

/// A field of a body: its name, the type of its value, and what it says.
type Field = (&'static str, Kind, &'static str);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Number,
    Integer,
    Flag,
    Object,
    List,
    Any,
}

impl Kind {
    fn schema(self) -> Value {
        match self {
            Kind::Text => json!({ "type": "string" }),
            Kind::Number => json!({ "type": "number" }),
            Kind::Integer => json!({ "type": "integer" }),
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Object => json!({ "type": "object" }),
            Kind::List => json!({ "type": "array", "items": {} }),
            Kind::Any => json!({}),
        }
    }
}

use Kind::{Any, Flag, Integer, List, Number, Object, Text};

/// How tokens are chosen, in every call for text.
const SAMPLING: [Field; 28] = [
    ("temperature", Number, "0 takes the most probable token"),
    ("dynatemp_range", Number, "how far the temperature moves with the entropy"),
    ("dynatemp_exponent", Number, "how it moves"),
    ("top_k", Integer, "so many of the most probable tokens stay; 0 for all"),
    ("top_p", Number, "the most probable tokens with this probability together stay"),
    ("min_p", Number, "tokens at least this share as probable as the most probable stay"),
    ("typical_p", Number, "tokens near the entropy with this probability together stay"),
    ("top_n_sigma", Number, "logits within so many deviations of the greatest stay"),
    ("xtc_probability", Number, "how often the top choices are left out"),
    ("xtc_threshold", Number, "from which probability a token is a top choice"),
    ("repeat_penalty", Number, "divides the logits of recent tokens"),
    ("repeat_last_n", Integer, "how many tokens are recent; -1 for all"),
    ("frequency_penalty", Number, "taken off for every time that a token is recent"),
    ("presence_penalty", Number, "taken off when a token is recent"),
    ("dry_multiplier", Number, "against repeated stretches; 0 for off"),
    ("dry_base", Number, "how the penalty grows with the stretch"),
    ("dry_allowed_length", Integer, "stretches up to it cost nothing"),
    ("dry_penalty_last_n", Integer, "how far back they are looked for"),
    ("dry_sequence_breakers", List, "texts that end a stretch"),
    ("mirostat", Integer, "0, or the version 1 or 2"),
    ("mirostat_tau", Number, "the surprise aimed for"),
    ("mirostat_eta", Number, "how fast it is reached"),
    ("logit_bias", Any, "token ids or texts with what is added to their logits; false forbids"),
    ("seed", Integer, "of the random choices; the same seed gives the same answer"),
    ("grammar", Text, "a GBNF grammar that the text matches"),
    ("json_schema", Object, "a JSON Schema that the text matches"),
    ("response_format", Object, "text, json_object or json_schema"),
    ("stop", Any, "a text, or several, that end the answer"),
];

/// What OpenAI's and llama.cpp's calls for text share beside.
const COMMON: [Field; 16] = [
    ("model", Text, "any name: the model that is served answers"),
    ("user", Text, "says who asks; changes nothing"),
    ("stream", Flag, "the answer comes as server-sent events"),
    ("stream_options", Object, "include_usage: a last event with the usage"),
    ("n", Integer, "how many answers"),
    ("max_tokens", Integer, "most new tokens; -1 for as many as there may be"),
    ("max_completion_tokens", Integer, "the same"),
    ("n_predict", Integer, "the same"),
    ("ignore_eos", Flag, "tokens that end a text cannot come"),
    ("cache_prompt", Flag, "false computes the prompt anew"),
    ("id_slot", Integer, "the slot to use; -1 for any"),
    ("return_progress", Flag, "events say how far the prompt is"),
    (
        "timings_per_token",
        Flag,
        "every event has timings; draft_n and draft_n_accepted among them when tokens were drafted",
    ),
    ("verbose", Flag, "the answer tells its prompt and settings"),
    ("n_cmpl", Integer, "how many answers"),
    (
        "speculative.n_max",
        Integer,
        "most tokens drafted at once, where the server drafts; 0 for none",
    ),
];

/// What a chat template is given.
const TEMPLATE: [Field; 5] = [
    ("messages", List, "role and content of each"),
    ("tools", List, "functions that may be called"),
    ("chat_template_kwargs", Object, "variables of the chat template"),
    ("add_generation_prompt", Flag, "the prompt ends with the beginning of an answer"),
    ("continue_final_message", Flag, "the last message, the assistant's, is gone on with"),
];

const CHAT: [Field; 4] = [
    ("logprobs", Flag, "with every token its log-probability"),
    ("top_logprobs", Integer, "and those of the most probable tokens"),
    ("tool_choice", Any, "none, auto, required, or a function"),
    ("parallel_tool_calls", Flag, "false: at most one call in an answer"),
];

const COMPLETIONS: [Field; 4] = [
    ("suffix", Text, "what comes after the answer, for models that can fill in"),
    ("echo", Flag, "the prompt comes back before the answer"),
    ("logprobs", Integer, "log-probabilities of so many tokens at each place"),
    ("best_of", Integer, "as n"),
];

const NATIVE: [Field; 4] = [
    ("n_probs", Integer, "probabilities of so many tokens at each place"),
    ("post_sampling_probs", Flag, "those after the sampler's cuts"),
    ("return_tokens", Flag, "the answer's token ids"),
    ("response_fields", List, "paths of the fields that are wanted"),
];

const PROMPT: [Field; 1] = [("prompt", Any, "a text, token ids, both mixed, or several of these")];
const INFILL: [Field; 4] = [
    ("input_prefix", Text, "what stands before the gap"),
    ("prompt", Text, "what stands between that and the gap"),
    ("input_suffix", Text, "what stands after the gap"),
    ("input_extra", List, "filename and text of other files"),
];
const EMBEDDINGS: [Field; 4] = [
    ("input", Any, "a text, token ids, or several of these"),
    ("model", Text, "any name"),
    ("user", Text, "says who asks"),
    ("encoding_format", Text, "float or base64"),
];
const RESPONSES: [Field; 11] = [
    ("input", Any, "a text, or messages"),
    ("instructions", Text, "a system message"),
    ("max_output_tokens", Integer, "most new tokens"),
    ("temperature", Number, "0 takes the most probable token"),
    ("top_p", Number, "the most probable tokens with this probability together stay"),
    ("stream", Flag, "the answer comes as server-sent events"),
    ("text", Object, "format: text, json_object or json_schema"),
    ("model", Text, "any name"),
    ("user", Text, "says who asks"),
    ("metadata", Object, "changes nothing"),
    ("store", Flag, "false only"),
];
const MESSAGES: [Field; 13] = [
    ("messages", List, "role and content of each"),
    ("max_tokens", Integer, "most new tokens"),
    ("system", Any, "a system message"),
    ("model", Text, "any name"),
    ("stream", Flag, "the answer comes as server-sent events"),
    ("temperature", Number, "0 takes the most probable token"),
    ("top_p", Number, "the most probable tokens with this probability together stay"),
    ("top_k", Integer, "so many of the most probable tokens stay"),
    ("stop_sequences", List, "texts that end the answer"),
    ("tools", List, "functions that may be called"),
    ("tool_choice", Object, "auto, any, none, or a tool"),
    ("thinking", Object, "type disabled tells templates that know it not to think"),
    ("metadata", Object, "changes nothing"),
];
const OLLAMA: [Field; 5] = [
    ("model", Text, "any name"),
    ("stream", Flag, "one JSON object a line, unless false"),
    ("format", Any, "json, or a JSON Schema"),
    ("options", Object, "num_predict, temperature, top_k, seed, stop, …"),
    ("keep_alive", Any, "the model stays loaded whatever it is"),
];
const OLLAMA_CHAT: [Field; 2] = [TEMPLATE[0], TEMPLATE[1]];
const OLLAMA_GENERATE: [Field; 3] = [
    ("prompt", Text, "what the user says"),
    ("system", Text, "a system message"),
    ("raw", Flag, "the prompt as it is, without the chat template"),
];
const TOKENIZE: [Field; 4] = [
    ("content", Text, "a text"),
    ("add_special", Flag, "with the tokens that begin a text"),
    ("parse_special", Flag, "control tokens are read as such"),
    ("with_pieces", Flag, "with the text of each token"),
];
const DETOKENIZE: [Field; 1] = [("tokens", List, "token ids")];

/// Calls with a body: path, what it is, fields.
const POSTS: [(&str, &str, &[&[Field]]); 16] = [
    (
        "/v1/chat/completions",
        "The next message of a chat (OpenAI)",
        &[&TEMPLATE, &CHAT, &COMMON, &SAMPLING],
    ),
    (
        "/v1/chat/completions/input_tokens",
        "How many tokens the prompt of such a call has",
        &[&TEMPLATE, &CHAT, &COMMON, &SAMPLING],
    ),
    (
        "/v1/completions",
        "The continuation of a text (OpenAI)",
        &[&PROMPT, &COMPLETIONS, &COMMON, &SAMPLING],
    ),
    ("/v1/embeddings", "The last token's state, scaled to length 1 (OpenAI)", &[&EMBEDDINGS]),
    ("/v1/responses", "The next message of a chat, in the newer form (OpenAI)", &[&RESPONSES]),
    ("/v1/messages", "The next message of a chat (Anthropic)", &[&MESSAGES]),
    ("/v1/messages/count_tokens", "How many tokens the prompt of such a call has", &[&MESSAGES]),
    (
        "/completion",
        "The continuation of a text (llama.cpp)",
        &[&PROMPT, &NATIVE, &COMMON, &SAMPLING],
    ),
    (
        "/infill",
        "What stands between two texts (llama.cpp)",
        &[&INFILL, &NATIVE, &COMMON, &SAMPLING],
    ),
    ("/api/chat", "The next message of a chat (Ollama)", &[&OLLAMA_CHAT, &OLLAMA]),
    ("/api/generate", "The answer to a prompt (Ollama)", &[&OLLAMA_GENERATE, &OLLAMA]),
    ("/tokenize", "A text as tokens", &[&TOKENIZE]),
    ("/detokenize", "Tokens as a text", &[&DETOKENIZE]),
    ("/apply-template", "The prompt that messages become", &[&TEMPLATE]),
    ("/completions", "As /completion", &[&PROMPT, &NATIVE, &COMMON, &SAMPLING]),
    ("/responses", "As /v1/responses", &[&RESPONSES]),
];

/// Calls without a body, and whether they need a key.
const GETS: [(&str, &str, bool); 10] = [
    ("/v1/models", "The model", true),
    ("/api/tags", "The model (Ollama)", true),
    ("/api/version", "The version (Ollama)", true),
    ("/props", "How the server is set up (llama.cpp)", true),
    ("/slots", "What each slot is doing (llama.cpp)", true),
    ("/lora-adapters", "The LoRA adapters and their scales (llama.cpp)", true),
    ("/health", "The process lives and the model can be run", false),
    ("/ready", "A request would be taken now", false),
    ("/metrics", "Counts and times, for Prometheus", false),
    ("/openapi.json", "This description", false),
];

fn answer(summary: &str, keyed: bool) -> Map<String, Value> {
    let refused = json!({ "$ref": "#/components/responses/Error" });
    let mut operation = Map::new();
    operation.insert("summary".to_owned(), summary.into());
    operation.insert(
        "responses".to_owned(),
        json!({ "200": { "description": "What was asked for" }, "default": refused }),
    );
    if !keyed {
        operation.insert("security".to_owned(), json!([]));
    }
    operation
}

fn description() -> Value {
    let mut paths = Map::new();
    for (path, summary, fields) in POSTS {
        let properties: Map<String, Value> = fields
            .iter()
            .flat_map(|list| list.iter())
            .map(|(name, kind, says)| {
                let mut schema = kind.schema();
                schema["description"] = (*says).into();
                ((*name).to_owned(), schema)
            })
            .collect();
        let body = json!({
            "type": "object", "properties": properties, "additionalProperties": false,
        });
        let mut operation = answer(summary, true);
        let content = json!({ "application/json": { "schema": body } });
        operation.insert("requestBody".to_owned(), json!({ "required": true, "content": content }));
        paths.insert(path.to_owned(), json!({ "post": operation }));
    }
    for (path, summary, keyed) in GETS {
        paths.insert(path.to_owned(), json!({ "get": answer(summary, keyed) }));
    }
    let error = json!({
        "type": "object",
        "properties": { "error": {
            "type": "object",
            "properties": {
                "message": { "type": "string" },
                "type": { "type": "string" },
                "param": { "type": ["string", "null"] },
                "code": { "type": ["string", "null"] },
            },
        }},
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Aether",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A field that is not listed is refused by name.",
        },
        "paths": paths,
        "security": [{ "key": [] }],
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "responses": { "Error": {
                "description": "What is wrong, in OpenAI's form",
                "content": { "application/json": { "schema": error } },
            }},
        },
    })
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    json_response(StatusCode::OK, &description())
}

/// `GET /docs`: the same as a page.
pub(super) async fn docs() -> Response {
    let mut html = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Aether: the \
         API</title><style>body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem \
         auto;padding:0 1rem;color-scheme:light dark}code{font-family:ui-monospace,monospace}\
         td{vertical-align:top;padding:0 1rem 0 0}</style></head><body><h1>The API</h1><p>As data: \
         <a href=\"openapi.json\">openapi.json</a>. A field that is not listed is refused by \
         name.</p>\n",
    );
    for (path, summary, fields) in POSTS {
        html += &format!("<h2><code>POST {path}</code></h2><p>{summary}</p><table>\n");
        for (name, _, says) in fields.iter().flat_map(|list| list.iter()) {
            html += &format!("<tr><td><code>{name}</code></td><td>{says}</td></tr>\n");
        }
        html += "</table>\n";
    }
    for (path, summary, _) in GETS {
        html += &format!("<h2><code>GET {path}</code></h2><p>{summary}</p>\n");
    }
    html += "</body></html>\n";
    let mut response = Body::from(html).into_response();
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
