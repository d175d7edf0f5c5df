//! What an answer must look like: `response_format`, `tools`, `tool_choice`; and taking calls of
//! functions out of text that comes piece by piece.

use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use super::wire;
use crate::chat::{Tool, ToolCall, ToolForm};
use crate::sample::Constraint;

/// What must come out of a chat.
pub(super) struct Output {
    /// The functions that may be called.
    pub tools: Vec<Tool>,
    /// How calls are written, when some may come.
    pub form: Option<ToolForm>,
    must: Must,
}

/// What the text of an answer must be.
pub(super) enum Must {
    Anything,
    Object,
    /// A JSON Schema, and the field that it came in.
    Schema(&'static str, Value),
    /// A grammar in llama.cpp's form.
    Grammar(String),
    /// A grammar in Lark's form.
    Call(String),
}

impl Must {
    /// Takes `response_format`, and llama.cpp's `json_schema` and `grammar`, of which one may be
    /// there.
    ///
    /// # Errors
    /// When one has a value that it cannot have, or there are several.
    pub fn take(fields: &mut Fields) -> Result<Must, ApiError> {
        let all = [
            ("response_format", format(fields)?),
            (
                "json_schema",
                fields.take("json_schema")?.map(|schema| Must::Schema("json_schema", schema)),
            ),
            (
                "grammar",
                fields.take("grammar")?.filter(|g: &String| !g.is_empty()).map(Must::Grammar),
            ),
        ];
        let mut found = Must::Anything;
        for (name, must) in all {
            match must {
                None => {}
                Some(must) if matches!(found, Must::Anything) => found = must,
                Some(_) => {
                    let message = format!("`{name}` is one way too many to say what must come out");
                    return Err(ApiError::field(name, message));
                }
            }
        }
        Ok(found)
    }

    /// The constraint of one answer.
    ///
    /// # Errors
    /// When the schema or grammar cannot be used.
    pub fn constraint(&self, app: &App) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let (name, made) = match (self, &app.options.grammar) {
            (Must::Anything, None) => return Ok(None),
            (Must::Anything, Some(text)) => ("grammar", app.grammars()?.gbnf(text)),
            (Must::Object, _) => ("response_format", app.grammars()?.json_object()),
            (Must::Schema(field, schema), _) => (*field, app.grammars()?.schema(schema.clone())),
            (Must::Grammar(text), _) => ("grammar", app.grammars()?.gbnf(text)),
            (Must::Call(grammar), _) => ("tools", app.grammars()?.lark(grammar)),
        };
        made.map(Some).map_err(|error| ApiError::field(name, format!("`{name}`: {error}")))
    }
}

/// Which functions are to be called.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

impl Output {
    /// Takes the fields.
    ///
    /// # Errors
    /// When one has a value that it cannot have, or is not supported.
    pub fn take(fields: &mut Fields, app: &App) -> Result<Output, ApiError> {
        let tools = match fields.take("tools")? {
            Some(list) => {
                Tool::parse_list(list).map_err(|e| ApiError::field("tools", e.to_string()))?
            }
            None => Vec::new(),
        };
        let choice = choice(fields)?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        let mut must = Must::take(fields)?;
        let form = app.template.tool_form();
        let wanted = |message: &str| ApiError::field("tool_choice", message);
        let called: Vec<&Tool> = match &choice {
            Choice::None | Choice::Auto => Vec::new(),
            Choice::Required => tools.iter().collect(),
            Choice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
        };
        if matches!(choice, Choice::Required | Choice::Named(_)) {
            if called.is_empty() {
                return Err(wanted("`tool_choice` names no function of `tools`"));
            }
            if !matches!(must, Must::Anything) {
                return Err(wanted("`tool_choice` does not go with `response_format`"));
            }
            must = Must::Call(form.grammar(&called));
        }
        let may_call = !tools.is_empty() && !matches!(choice, Choice::None);
        // A call that is required is one; who is free to call, or to answer in a given form, is not.
        if may_call && !parallel && matches!(must, Must::Anything) {
            must = Must::Call(form.grammar_of_one(&tools.iter().collect::<Vec<_>>()));
        }
        Ok(Output { tools, form: may_call.then_some(form), must })
    }

    /// The constraint of one answer.
    ///
    /// # Errors
    /// When the schema cannot be used.
    pub fn constraint(&self, app: &App) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        self.must.constraint(app)
    }
}

fn choice(fields: &mut Fields) -> Result<Choice, ApiError> {
    let wrong = || {
        let message = "`tool_choice` should be none, auto, required, or name a function";
        ApiError::field("tool_choice", message)
    };
    match fields.take::<Value>("tool_choice")? {
        None => Ok(Choice::Auto),
        Some(Value::String(text)) => match text.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Auto),
            "required" => Ok(Choice::Required),
            _ => Err(wrong()),
        },
        Some(value) => {
            let name = value.pointer("/function/name").and_then(Value::as_str);
            Ok(Choice::Named(name.ok_or_else(wrong)?.to_owned()))
        }
    }
}

fn format(fields: &mut Fields) -> Result<Option<Must>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind: String = format.need("type")?;
    let of_format = |schema| Must::Schema("response_format", schema);
    let must = match kind.as_str() {
        "text" => {
            format.finish()?;
            return Ok(None);
        }
        // llama.cpp takes a schema here.
        "json_object" => format.take("schema")?.map_or(Must::Object, of_format),
        "json_schema" => {
            let mut inner = format
                .object("json_schema")?
                .ok_or_else(|| ApiError::field("response_format.json_schema", "it is missing"))?;
            let _: Option<String> = inner.take("name")?;
            let _: Option<String> = inner.take("description")?;
            // Schemas are always kept to.
            let _: Option<bool> = inner.take("strict")?;
            let schema = inner.need("schema")?;
            inner.finish()?;
            of_format(schema)
        }
        other => {
            let message = format!("`response_format` of type `{other}` is not supported");
            return Err(ApiError::unsupported("response_format.type", message));
        }
    };
    format.finish()?;
    Ok(Some(must))
}

/// Calls in OpenAI's form.
pub(super) fn calls_json(calls: &[ToolCall]) -> Value {
    let one = |(index, call): (usize, &ToolCall)| {
        json!({
            "index": index,
            "id": wire::new_id("call_"),
            "type": "function",
            "function": { "name": call.name, "arguments": call.arguments },
        })
    };
    calls.iter().enumerate().map(one).collect()
}

/// Text of an answer on its way to the client: what may be a call waits until it is known.
pub(super) struct Outgoing {
    form: Option<ToolForm>,
    held: String,
    in_call: bool,
}

impl Outgoing {
    pub fn new(form: Option<ToolForm>) -> Outgoing {
        Outgoing { form, held: String::new(), in_call: false }
    }

    /// Takes text; what is certain to be no call.
    pub fn push(&mut self, text: String) -> String {
        let Some(form) = self.form else { return text };
        self.held += &text;
        if self.in_call {
            return String::new();
        }
        let marker = form.marker();
        let keep = match self.held.find(marker) {
            Some(at) => {
                self.in_call = true;
                self.held.len() - at
            }
            None => {
                (1..marker.len()).rev().find(|&n| self.held.ends_with(&marker[..n])).unwrap_or(0)
            }
        };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is left in the end: text, and calls.
    pub fn finish(&mut self) -> (String, Vec<ToolCall>) {
        let held = std::mem::take(&mut self.held);
        match self.form {
            Some(form) if self.in_call => form.parse(&held),
            _ => (held, Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_held_back_and_text_is_not() {
        let mut out = Outgoing::new(Some(ToolForm::Hermes));
        let mut text = String::new();
        for piece in [
            "Let me <b>see</b> <tool",
            "box> <too",
            "l_call>\n{\"name\": \"f\",",
            " \"arguments\": {}}",
        ] {
            text += &out.push(piece.to_owned());
        }
        assert_eq!(text, "Let me <b>see</b> <toolbox> ");
        let (rest, calls) = out.finish();
        assert_eq!((rest.as_str(), calls.len(), calls[0].name.as_str()), ("", 1, "f"));
        let mut out = Outgoing::new(Some(ToolForm::Hermes));
        assert_eq!(out.push("a <tool_c".to_owned()), "a ");
        assert_eq!(out.finish(), ("<tool_c".to_owned(), Vec::new()));
        let mut out = Outgoing::new(None);
        assert_eq!(out.push("<tool_call>".to_owned()), "<tool_call>");
    }
}
