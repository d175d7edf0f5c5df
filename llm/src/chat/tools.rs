//! Functions that a model may call: how each family of models writes a call, and reading it back.
//!
//! The form is found in the model's template, which tells the model about it. A template that knows
//! no tools gets a system message in Hermes' form.

use serde_json::{Value, json};

use super::{ChatError, Message};

/// How a family writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolForm {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen, SmolLM.
    Hermes,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`: Mistral.
    Mistral,
    /// `{"name": …, "parameters": …}` and nothing else: Llama 3.
    Llama,
}

/// A call that a model wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The JSON Schema of its arguments.
    pub parameters: Value,
    /// In OpenAI's form, for the template.
    pub json: Value,
}

/// Most functions of a request.
const MOST_TOOLS: usize = 128;

impl Tool {
    /// The functions of a request.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse_list(value: Value) -> Result<Vec<Tool>, ChatError> {
        let wrong =
            |at: String, problem: &str| ChatError::Message { at, problem: problem.to_owned() };
        let Value::Array(list) = value else {
            return Err(wrong("tools".to_owned(), "should be a list"));
        };
        if list.len() > MOST_TOOLS {
            return Err(wrong("tools".to_owned(), &format!("should be {MOST_TOOLS} at most")));
        }
        let parse = |(i, tool): (usize, Value)| {
            let at = |field: &str| format!("tools[{i}]{field}");
            if tool.get("type").and_then(Value::as_str) != Some("function") {
                return Err(wrong(at(".type"), "should be \"function\""));
            }
            let function = tool.get("function").and_then(Value::as_object);
            let function = function.ok_or_else(|| wrong(at(".function"), "should be an object"))?;
            let name = function.get("name").and_then(Value::as_str).filter(|n| is_name(n));
            let name = name.ok_or_else(|| {
                wrong(at(".function.name"), "should be 1 to 64 letters, digits, `_` or `-`")
            })?;
            let parameters = match function.get("parameters") {
                None | Some(Value::Null) => json!({ "type": "object", "properties": {} }),
                Some(schema @ Value::Object(_)) => schema.clone(),
                Some(_) => {
                    return Err(wrong(at(".function.parameters"), "should be a JSON Schema"));
                }
            };
            Ok(Tool { name: name.to_owned(), parameters, json: tool })
        };
        list.into_iter().enumerate().map(parse).collect()
    }
}

fn is_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(ok)
}

impl ToolForm {
    /// The form that a template speaks of.
    pub fn of(template: &str) -> ToolForm {
        if template.contains("[TOOL_CALLS]") {
            ToolForm::Mistral
        } else if template.contains("<|python_tag|>") || template.contains("\"parameters\": ") {
            ToolForm::Llama
        } else {
            ToolForm::Hermes
        }
    }

    /// What begins a call.
    pub fn marker(self) -> &'static str {
        match self {
            ToolForm::Hermes => "<tool_call>",
            ToolForm::Mistral => "[TOOL_CALLS]",
            ToolForm::Llama => "{\"name\"",
        }
    }

    /// What a model is told whose template knows no tools.
    pub fn instructions(tools: &[Tool]) -> String {
        let mut text = "# Tools\n\nYou may call one or more functions to answer.\n\nTheir \
                        signatures are within <tools></tools>:\n<tools>"
            .to_owned();
        for tool in tools {
            text += &format!("\n{}", tool.json);
        }
        text += "\n</tools>\n\nTo call one, write a JSON object with its name and arguments within \
                 <tool_call></tool_call>:\n<tool_call>\n{\"name\": NAME, \"arguments\": \
                 ARGUMENTS}\n</tool_call>";
        text
    }

    /// The messages with [`ToolForm::instructions`] at their beginning.
    pub fn instruct(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
        let text = ToolForm::instructions(tools);
        let mut out = messages.to_vec();
        match out.first_mut().filter(|m| m.role() == "system") {
            Some(first) => {
                *first = Message::new("system", &format!("{}\n\n{text}", first.content()))
            }
            None => out.insert(0, Message::new("system", &text)),
        }
        out
    }

    /// A grammar (llguidance's Lark) of one call of one of these functions.
    pub fn grammar(self, tools: &[&Tool]) -> String {
        let marker = match self {
            ToolForm::Hermes => "\"<tool_call>\" ",
            ToolForm::Mistral => "\"[TOOL_CALLS]\" ",
            ToolForm::Llama => "\"{\\\"name\\\"\" ",
        };
        format!("start: {marker}call\n{}", self.rules(tools))
    }

    /// A grammar of any text with at most one call, in its end.
    pub fn grammar_of_one(self, tools: &[&Tool]) -> String {
        let marker = match self {
            ToolForm::Hermes => "<tool_call>",
            ToolForm::Mistral => "\\[TOOL_CALLS\\]",
            ToolForm::Llama => "\\{\"name\"",
        };
        // Text and what begins a call are words that end where the marker does: words are as long
        // as they can be.
        format!(
            "start: TEXT? | CALLED call\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*{marker}.*)/\n\
             CALLED: /(?s:.*{marker})/ & ~/(?s:.*{marker}.+)/\n{}",
            self.rules(tools)
        )
    }

    /// The rule `call`: what comes after the marker of a call.
    fn rules(self, tools: &[&Tool]) -> String {
        let (before, name, key, after) = match self {
            ToolForm::Hermes => ("\"\\n\" ", "{\\\"name\\\"", "arguments", " \"\\n</tool_call>\""),
            ToolForm::Mistral => ("\"[\" ", "{\\\"name\\\"", "arguments", " \"]\""),
            // The name's key is the marker.
            ToolForm::Llama => ("", "", "parameters", ""),
        };
        let rules: Vec<String> = (0..tools.len()).map(|i| format!("call{i}")).collect();
        let mut text = format!("call: {before}({}){after}\n", rules.join(" | "));
        for (i, tool) in tools.iter().enumerate() {
            let mut schema = tool.parameters.clone();
            schema["x-guidance"] = json!({
                "whitespace_flexible": false,
                "item_separator": ", ",
                "key_separator": ": ",
            });
            let called = &tool.name;
            // A rule for each schema, so that its references are looked for in it.
            text += &format!(
                "call{i}: \"{name}: \\\"{called}\\\", \\\"{key}\\\": \" args{i} \"}}\"\n\
                 args{i}: %json {schema}\n"
            );
        }
        text
    }

    /// Takes the calls out of an answer: the text before them, and the calls. What cannot be read
    /// stays text.
    pub fn parse(self, text: &str) -> (String, Vec<ToolCall>) {
        let whole = || (text.to_owned(), Vec::new());
        let Some(at) = text.find(self.marker()) else { return whole() };
        let (before, rest) = text.split_at(at);
        let calls: Option<Vec<ToolCall>> = match self {
            ToolForm::Hermes => rest
                .split(self.marker())
                .skip(1)
                .map(|part| {
                    let end = part.find("</tool_call>").unwrap_or(part.len());
                    call(serde_json::from_str(part[..end].trim()).ok()?)
                })
                .collect(),
            ToolForm::Mistral => {
                serde_json::from_str::<Vec<Value>>(rest[self.marker().len()..].trim())
                    .ok()
                    .and_then(|list| list.into_iter().map(call).collect())
            }
            ToolForm::Llama => {
                serde_json::from_str(rest.trim()).ok().and_then(call).map(|c| vec![c])
            }
        };
        match calls {
            Some(calls) if !calls.is_empty() => (before.trim_end().to_owned(), calls),
            _ => whole(),
        }
    }
}

fn call(value: Value) -> Option<ToolCall> {
    let Value::Object(mut fields) = value else { return None };
    let name = fields.remove("name")?.as_str()?.to_owned();
    let arguments = fields.remove("arguments").or_else(|| fields.remove("parameters"));
    let arguments = match arguments {
        Some(Value::String(text)) => text,
        Some(value) => value.to_string(),
        None => "{}".to_owned(),
    };
    Some(ToolCall { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_in_every_form() {
        let call = |name: &str, arguments: &str| ToolCall {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        type Row = (ToolForm, &'static str, &'static str, Vec<ToolCall>);
        let table: [Row; 9] = [
            (ToolForm::Hermes, "just text", "just text", vec![]),
            (
                ToolForm::Hermes,
                "ok\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                "ok",
                vec![call("f", "{\"a\":1}")],
            ),
            (
                ToolForm::Hermes,
                "<tool_call>{\"name\": \"f\"}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": \"{}\"}",
                "",
                vec![call("f", "{}"), call("g", "{}")],
            ),
            (
                ToolForm::Hermes,
                "<tool_call>{oops}</tool_call>",
                "<tool_call>{oops}</tool_call>",
                vec![],
            ),
            (ToolForm::Hermes, "<tool_call>", "<tool_call>", vec![]),
            (
                ToolForm::Mistral,
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]",
                "",
                vec![call("f", "{}")],
            ),
            (ToolForm::Mistral, "[TOOL_CALLS]{}", "[TOOL_CALLS]{}", vec![]),
            (
                ToolForm::Llama,
                "{\"name\": \"f\", \"parameters\": {\"x\": []}}",
                "",
                vec![call("f", "{\"x\":[]}")],
            ),
            (ToolForm::Llama, "{\"name\": 3}", "{\"name\": 3}", vec![]),
        ];
        for (form, text, before, calls) in table {
            assert_eq!(form.parse(text), (before.to_owned(), calls), "{form:?}: {text}");
        }
    }

    #[test]
    fn grammars_name_the_functions() {
        let parameters = json!({ "type": "object" });
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            parameters: parameters.clone(),
            json: json!({}),
        };
        let (f, g) = (tool("f"), tool("g"));
        let text = ToolForm::Hermes.grammar(&[&f, &g]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"start: "<tool_call>" call"#);
        assert_eq!(lines[1], r#"call: "\n" (call0 | call1) "\n</tool_call>""#);
        assert_eq!(lines[2], r#"call0: "{\"name\": \"f\", \"arguments\": " args0 "}""#);
        assert!(lines[3].starts_with("args0: %json {\"type\":\"object\""), "{}", lines[3]);
        assert!(ToolForm::Llama.grammar(&[&g]).contains(r#"\"g\", \"parameters\": " args0"#));
    }

    /// Whether a grammar admits a text, and whether the text could go on.
    fn admitted(grammar: &str, text: &str) -> (bool, bool) {
        use crate::grammar::Grammars;
        let mut w = crate::gguf::GgufWriter::new();
        let mut tokens: Vec<String> = (0..256).map(|i| format!("<0x{i:02X}>")).collect();
        tokens.insert(0, "</s>".to_owned());
        let types: Vec<i32> = std::iter::once(3).chain(std::iter::repeat_n(6, 256)).collect();
        w.string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &tokens)
            .values("tokenizer.ggml.scores", &[0.0f32; 257])
            .values("tokenizer.ggml.token_type", &types)
            .value("tokenizer.ggml.eos_token_id", 0u32);
        let gguf = crate::gguf::Gguf::from_bytes("bytes.gguf", &w.to_bytes()).unwrap();
        let tokenizer = crate::tokenizer::Tokenizer::from_gguf(&gguf).unwrap();
        let mut constraint = Grammars::new(&tokenizer).unwrap().lark(grammar).unwrap();
        for byte in text.bytes() {
            let token = 1 + u32::from(byte);
            if !constraint.allowed().unwrap().contains(token) {
                return (false, false);
            }
            constraint.accept(token).unwrap();
        }
        let set = constraint.allowed().unwrap();
        (set.contains(0), (1..257).any(|token| set.contains(token)))
    }

    #[test]
    fn one_call_is_the_most() {
        let tools = Tool::parse_list(json!([{ "type": "function", "function": {
            "name": "f", "parameters": { "type": "object", "properties": {} },
        } }]));
        let tools = tools.unwrap();
        let tools: Vec<&Tool> = tools.iter().collect();
        let forms = [
            (ToolForm::Hermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>"),
            (ToolForm::Mistral, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]"),
            (ToolForm::Llama, "{\"name\": \"f\", \"parameters\": {}}"),
        ];
        for (form, call) in forms {
            let grammar = form.grammar_of_one(&tools);
            for text in ["", "Hi", "a <tool [TOOL {\"nam é \n/"] {
                assert_eq!(admitted(&grammar, text), (true, true), "{form:?} {text}");
                let called = format!("{text}{call}");
                assert_eq!(admitted(&grammar, &called), (true, false), "{form:?} {called}");
                assert!(!admitted(&grammar, &format!("{called}{call}")).0, "{form:?}");
                assert!(!admitted(&grammar, &format!("{called}\n{call}")).0, "{form:?}");
            }
            let other = call.replace("\"f\"", "\"g\"");
            assert!(!admitted(&grammar, &other).0, "{form:?}");
        }
    }

    #[test]
    fn functions_are_checked() {
        let table = [
            (json!({}), "tools: should be a list"),
            (json!([{ "type": "web_search" }]), "tools[0].type"),
            (json!([{ "type": "function" }]), "tools[0].function"),
            (
                json!([{ "type": "function", "function": { "name": "a b" } }]),
                "tools[0].function.name",
            ),
            (
                json!([{ "type": "function", "function": { "name": "f", "parameters": 3 } }]),
                "tools[0].function.parameters",
            ),
        ];
        for (value, want) in table {
            let error = Tool::parse_list(value).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
