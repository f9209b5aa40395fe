// SPDX-License-Identifier: Apache-2.0
//! The chat template of a model: it turns messages into the one text that the model continues.
//!
//! Templates come with models, and are Jinja as Python's transformers have it. A template is a
//! program by a stranger: it gets so many instructions, and sees the messages only.

mod clock;

use crate::gguf::Header;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

/// How many instructions a template may take. Long conversations need some ten for each message.
const FUEL: u64 = 5_000_000;
/// How deep calls of macros may go: a module's stack is small.
const DEPTH: usize = 100;
/// The name of the only template.
const NAME: &str = "chat";
/// The format of most models that bring no template.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
                      {{ '<|im_start|>assistant\n' }}";
/// What ends a message in that format.
const CHATML_END: &str = "<|im_end|>";

/// A template that was understood.
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// The first token's text is left out, because the tokenizer adds the token by itself.
    without_bos: bool,
    stop: Option<&'static str>,
}

impl Template {
    /// The template of a model. The text says what is wrong with it if it cannot be used; then the
    /// template is that of chatml.
    pub fn of(model: &Header) -> (Self, Option<String>) {
        let with = |source: &str, stop| {
            let mut environment = Environment::new();
            // As transformers set it.
            environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
            environment.set_fuel(Some(FUEL));
            environment.set_recursion_limit(DEPTH);
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.add_function("raise_exception", refuse);
            environment.add_function("strftime_now", |format: &str| clock::format(format, std::time::SystemTime::now()));
            environment.add_template_owned(NAME, source.to_owned())?;
            let text = |token: &Option<String>| token.clone().unwrap_or_default();
            Ok(Self { environment, bos: text(&model.bos), eos: text(&model.eos), without_bos: model.adds_bos, stop })
        };
        let chatml = || with(CHATML, Some(CHATML_END)).unwrap_or_else(|error: Error| unreachable!("{error}"));
        match &model.chat_template {
            None => (chatml(), None),
            Some(source) => match with(source, None) {
                Ok(template) => (template, None),
                Err(error) => (chatml(), Some(error.to_string())),
            },
        }
    }

    /// The text at which an answer ends, if the model's own end of a text is another one.
    pub fn stop(&self) -> Option<&'static str> {
        self.stop
    }

    /// Writes messages as the model was trained to read them, up to where its answer begins.
    ///
    /// # Errors
    /// What the template has against the messages, in its own words.
    pub fn render(&self, messages: &[Value]) -> Result<String, String> {
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        let written = template.render(context! {
            messages => minijinja::Value::from(Serde(messages)),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
            // Templates ask whether there are any.
            tools => (),
        });
        let text = written.map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => "the model's chat template does not end".into(),
            _ => error.detail().map_or_else(|| error.to_string(), str::to_owned),
        })?;
        match text.strip_prefix(&self.bos) {
            Some(rest) if self.without_bos => Ok(rest.to_owned()),
            Some(_) | None => Ok(text),
        }
    }
}

/// `raise_exception` of transformers: a template refuses messages that it has no place for.
fn refuse(why: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(source: Option<&str>) -> Header {
        let text = |text: &str| Some(text.to_owned());
        Header { chat_template: source.map(str::to_owned), bos: text("<s>"), eos: text("</s>"), ..Header::default() }
    }

    fn written(header: &Header, messages: &Value) -> Result<String, String> {
        let (template, wrong) = Template::of(header);
        assert_eq!(wrong, None);
        template.render(messages.as_array().unwrap())
    }

    #[test]
    fn a_model_without_a_template_gets_chatml() {
        let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {{ 1 }}"}]);
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ 1 }}<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(written(&of(None), &messages).unwrap(), expected);
        assert_eq!(Template::of(&of(None)).0.stop(), Some("<|im_end|>"));
    }

    #[test]
    fn templates_may_use_what_transformers_have() {
        let source = "{{ bos_token }}{%- for m in messages %}\n  {%- if m['role'] == 'user' and loop.first %}\n[INST] {{ m['content'].strip() | upper }} [/INST]\n  \
                      {%- elif m.content is string %}\n {{ m.content.split('|')[-1] + eos_token }}\n{%- endif %}\n{%- endfor %}\
                      {% if add_generation_prompt and not tools %}{{ messages[-1:] | length }}{% endif %}{{ {'a': 1} | tojson }}";
        let messages = json!([{"role": "user", "content": " hi "}, {"role": "assistant", "content": "a|b"}]);
        assert_eq!(written(&of(Some(source)), &messages).unwrap(), "<s>[INST] HI [/INST] b</s>1{\"a\": 1}");
    }

    #[test]
    fn the_first_token_is_not_written_twice() {
        let mut header = of(Some("{{ bos_token }}x"));
        assert_eq!(written(&header, &json!([])).unwrap(), "<s>x");
        header.adds_bos = true;
        assert_eq!(written(&header, &json!([])).unwrap(), "x");
    }

    #[test]
    fn a_template_says_what_it_refuses() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}";
        assert_eq!(written(&of(Some(source)), &json!([{"role": "system", "content": ""}])).unwrap_err(), "begin with the user");
    }

    #[test]
    fn a_template_without_an_end_is_ended() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert_eq!(written(&of(Some(source)), &json!([])).unwrap_err(), "the model's chat template does not end");
    }

    #[test]
    fn a_broken_template_is_replaced_and_said_to_be() {
        let (template, wrong) = Template::of(&of(Some("{% if %}")));
        assert!(wrong.unwrap().contains("syntax error"), "it says what");
        assert_eq!(template.render(&[]).unwrap(), "<|im_start|>assistant\n");
    }
}
