//! The model's own chat template (Jinja, as Hugging Face writes them), rendered by minijinja.

use covey_domain::infer::ChatMessage;
use minijinja::{Environment, context};
use serde_json::Value;

use crate::Error;

/// A compiled template and the special tokens it may name.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    pub fn new(source: &str, bos: String, eos: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
        });
        environment.add_template_owned("chat", source.to_owned()).map_err(|e| format!("chat template: {e}"))?;
        Ok(Self { environment, bos, eos })
    }

    /// The prompt that asks for the next assistant message.
    pub fn render(&self, messages: &[ChatMessage], tools: &[Value]) -> Result<String, Error> {
        let template = self.environment.get_template("chat").map_err(|e| Error::Request(e.to_string()))?;
        let tools = if tools.is_empty() { None } else { Some(tools) };
        template
            .render(context! {
                messages => messages,
                tools => tools,
                add_generation_prompt => true,
                bos_token => self.bos,
                eos_token => self.eos,
            })
            .map_err(|e| Error::Request(format!("the model's chat template refused the messages: {e}")))
    }
}
