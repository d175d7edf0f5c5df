//! The messages of a chat, in OpenAI's form.

use serde_json::{Map, Value};

use super::ChatError;

/// Most messages of a chat.
const MOST_MESSAGES: usize = 4096;
/// The roles, and what templates know them as.
const ROLES: [(&str, &str); 5] = [
    ("system", "system"),
    ("developer", "system"),
    ("user", "user"),
    ("assistant", "assistant"),
    ("tool", "tool"),
];

/// A message that was checked: `role`, `content` as one text, and what else templates look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A plain message.
    pub fn new(role: &str, content: &str) -> Message {
        let fields = [("role", role), ("content", content)];
        Message(fields.map(|(k, v)| (k.to_owned(), v.into())).into_iter().collect())
    }

    /// What templates see.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Who says it.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said.
    pub fn content(&self) -> &str {
        self.0.get("content").and_then(Value::as_str).unwrap_or_default()
    }

    /// The messages of a request.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse_list(value: Value) -> Result<Vec<Message>, ChatError> {
        let wrong = |problem: String| ChatError::Message { at: "messages".to_owned(), problem };
        let Value::Array(list) = value else {
            return Err(wrong("should be a list".to_owned()));
        };
        if list.is_empty() || list.len() > MOST_MESSAGES {
            return Err(wrong(format!("should hold from 1 to {MOST_MESSAGES} messages")));
        }
        list.into_iter()
            .enumerate()
            .map(|(i, message)| Message::parse(message, &format!("messages[{i}]")))
            .collect()
    }

    fn parse(value: Value, at: &str) -> Result<Message, ChatError> {
        let wrong = |field: &str, problem: &str| {
            let at = if field.is_empty() { at.to_owned() } else { format!("{at}.{field}") };
            ChatError::Message { at, problem: problem.to_owned() }
        };
        let Value::Object(mut given) = value else {
            return Err(wrong("", "should be an object"));
        };
        let role = given.remove("role");
        let role = role.as_ref().and_then(Value::as_str);
        let role = role.ok_or_else(|| wrong("role", "should be there, as a text"))?;
        let role = ROLES
            .iter()
            .find(|(name, _)| *name == role)
            .ok_or_else(|| wrong("role", "should be system, developer, user, assistant or tool"))?;
        let mut fields = Map::new();
        fields.insert("role".to_owned(), role.1.into());
        let content = match given.remove("content") {
            None | Some(Value::Null) if role.0 != "assistant" => {
                return Err(wrong("content", "should be there"));
            }
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => joined(parts, at)?,
            Some(_) => return Err(wrong("content", "should be a text or a list of parts")),
        };
        fields.insert("content".to_owned(), content.into());
        for name in ["name", "tool_call_id", "reasoning_content"] {
            match given.remove(name) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => {
                    fields.insert(name.to_owned(), text.into());
                }
                Some(_) => return Err(wrong(name, "should be a text")),
            }
        }
        if let Some(calls) = given.remove("tool_calls").filter(|v| !v.is_null()) {
            fields.insert("tool_calls".to_owned(), tool_calls(calls, at)?);
        }
        // What clients send back of an answer, which says nothing.
        for name in ["refusal", "annotations", "audio", "function_call"] {
            let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
            if given.get(name).is_some_and(empty) {
                given.remove(name);
            }
        }
        match given.keys().next() {
            Some(field) => Err(wrong(field, "is not supported")),
            None => Ok(Message(fields)),
        }
    }
}

/// The texts of parts, one after the other.
fn joined(parts: Vec<Value>, at: &str) -> Result<String, ChatError> {
    let mut out = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let wrong = |problem: &str| ChatError::Message {
            at: format!("{at}.content[{i}]"),
            problem: problem.to_owned(),
        };
        match part.get("type").and_then(Value::as_str) {
            Some("text") => {}
            Some(other) => {
                return Err(wrong(&format!("parts of type `{other}` are not supported")));
            }
            None => return Err(wrong("should have a `type`")),
        }
        let text = part.get("text").and_then(Value::as_str);
        out += text.ok_or_else(|| wrong("should have a `text`"))?;
    }
    Ok(out)
}

/// Calls with their arguments as objects, as templates want them: OpenAI sends them as text.
fn tool_calls(value: Value, at: &str) -> Result<Value, ChatError> {
    let wrong = |i: Option<usize>, problem: &str| ChatError::Message {
        at: i.map_or_else(|| format!("{at}.tool_calls"), |i| format!("{at}.tool_calls[{i}]")),
        problem: problem.to_owned(),
    };
    let Value::Array(mut calls) = value else {
        return Err(wrong(None, "should be a list"));
    };
    for (i, call) in calls.iter_mut().enumerate() {
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let function = function.ok_or_else(|| wrong(Some(i), "should have a `function`"))?;
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(wrong(Some(i), "should have a `function.name`"));
        }
        if let Some(Value::String(text)) = function.get("arguments") {
            // What is no JSON stays the text that it is.
            if let Ok(parsed) = serde_json::from_str(text) {
                function.insert("arguments".to_owned(), parsed);
            }
        }
    }
    Ok(calls.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_checked() {
        let table = [
            (json!("x"), "messages: should be a list"),
            (json!([]), "from 1 to"),
            (json!([3]), "messages[0]: should be an object"),
            (json!([{ "content": "x" }]), "messages[0].role"),
            (
                json!([{ "role": "user", "content": "x" }, { "role": "king", "content": "x" }]),
                "messages[1].role",
            ),
            (json!([{ "role": "user" }]), "messages[0].content"),
            (json!([{ "role": "user", "content": 3 }]), "messages[0].content"),
            (
                json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
                "messages[0].content[0]: parts of type `image_url`",
            ),
            (
                json!([{ "role": "user", "content": "x", "magic": 1 }]),
                "messages[0].magic: is not supported",
            ),
            (json!([{ "role": "assistant", "tool_calls": [{}] }]), "messages[0].tool_calls[0]"),
        ];
        for (value, want) in table {
            let error = Message::parse_list(value.clone()).unwrap_err().to_string();
            assert!(error.contains(want), "{value}: {error}");
        }
        let call = json!([{ "role": "assistant", "content": null, "refusal": null, "tool_calls": [
            { "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } },
        ]}]);
        let messages = Message::parse_list(call).unwrap();
        let arguments = &messages[0].fields()["tool_calls"][0]["function"]["arguments"];
        assert_eq!(*arguments, json!({ "a": 1 }));
        let developer = json!([{ "role": "developer", "content": "x" }]);
        assert_eq!(Message::parse_list(developer).unwrap()[0].role(), "system");
    }
}
