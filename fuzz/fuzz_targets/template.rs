//! Any chat template is refused or renders fixed messages within its limits.

#![no_main]

use aether_llm::chat::{Message, RenderOptions, Template, Tool};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|source: &str| {
    let template = Template::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned());
    let Ok(template) = template else { return };
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": "Hello.", "reasoning_content": "A greeting." },
        { "role": "user", "content": "Bye" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let messages = Message::parse_list(messages).expect("good messages");
    let tools = Tool::parse_list(tools).expect("a good function");
    let _ = template.render_with_tools(&messages, &tools, RenderOptions::default());
});
