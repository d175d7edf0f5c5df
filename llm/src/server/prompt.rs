//! From messages to the text that the model continues.

use serde_json::Value;

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use crate::chat::{Message, RenderOptions, Tool};

/// How messages become a text.
pub(super) struct Rendering {
    options: RenderOptions,
    /// Whether the last message, one of the assistant, is to be continued; when nothing is said it
    /// is, as llama.cpp has it.
    go_on: Option<bool>,
}

impl Rendering {
    /// Takes the fields.
    ///
    /// # Errors
    /// When one has a value that it cannot have, or they contradict each other.
    pub fn take(fields: &mut Fields, app: &App) -> Result<Rendering, ApiError> {
        let mut options = RenderOptions::default();
        if let Some(thinks) = app.options.thinking {
            options.extra.insert("enable_thinking".to_owned(), thinks.into());
        }
        if let Some(kwargs) = fields.take("chat_template_kwargs")? {
            let kwargs: serde_json::Map<String, Value> = kwargs;
            options.extra.extend(kwargs);
        }
        let go_on: Option<bool> = fields.take("continue_final_message")?;
        let begins: Option<bool> = fields.take("add_generation_prompt")?;
        if go_on == Some(true) && begins == Some(true) {
            let message = "`continue_final_message` does not go with `add_generation_prompt`";
            return Err(ApiError::field("continue_final_message", message));
        }
        options.generation_prompt = begins.unwrap_or(true);
        Ok(Rendering { options, go_on })
    }

    /// The text.
    ///
    /// # Errors
    /// When the template refuses the messages, or there is no message to go on with.
    pub fn text(
        mut self,
        app: &App,
        messages: &[Message],
        tools: &[Tool],
    ) -> Result<String, ApiError> {
        let wrong = |message: &str| Err(ApiError::field("messages", message));
        let said = |m: &&Message| m.role() == "assistant" && !m.content().is_empty();
        let last = messages.last().filter(said).filter(|m| !m.fields().contains_key("tool_calls"));
        let last = match (last, self.go_on) {
            (last, None | Some(true)) if last.is_some() => last,
            (_, Some(true)) => {
                return wrong("the last message should be the assistant's text to go on with");
            }
            _ => None,
        };
        let Some(last) = last else { return self.render(app, messages, tools) };
        let before = &messages[..messages.len() - 1];
        if before.last().is_some_and(|m| m.role() == "assistant") {
            return wrong("two messages of the assistant in the end: only one can be gone on with");
        }
        if before.is_empty() {
            return wrong("there should be a message before the assistant's");
        }
        self.options.generation_prompt = true;
        Ok(self.render(app, before, tools)? + last.content())
    }

    fn render(self, app: &App, messages: &[Message], tools: &[Tool]) -> Result<String, ApiError> {
        let mut text = app.template.render_with_tools(messages, tools, self.options)?;
        // A template that begins the thoughts whatever it is told.
        if app.options.thinking == Some(false) && text.ends_with("<think>\n") {
            text += "</think>";
        }
        Ok(text)
    }
}
