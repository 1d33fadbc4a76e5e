"""Conversations as the text that a chat model was taught to go on with.

A conversation is a list of messages, each `{"role": "system" | "user" | "assistant", "content": text}`: at most one of
the system, first; then user and assistant in turn. What users write is not searched for the template's own marks.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from fsb_jax.errors import UserError

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """How turns are told apart.

  Attributes:
    user: a turn of the user and what the answer begins after, with `{content}`.
    assistant: an answer and its end, with `{content}`.
    first: the first turn of the user, with `{content}` and `{system}`; None for one as any other, and no system.
    system: what the system says where the conversation does not.
    stops: any of these ends an answer.
    special_tokens: the tokenizer puts its own (the start of a text) before the conversation.
    strip: contents lose the blanks around them.
  """

  user: str
  assistant: str
  stops: tuple[str, ...]
  first: str | None = None
  system: str = ""
  special_tokens: bool = True
  strip: bool = False

  def turns(self, messages: Messages) -> list[tuple[str, str]]:
    """(prompt, answer) of every turn, of which a model learns the answers; the last answer is "" where it is due.

    Raises:
      UserError: the roles are not in turn, or there is a system where the template has none.
    """
    system, rest = _without_system(messages)
    if system is not None and self.first is None:
      raise UserError("this template has no place for a message of the system; leave it out")
    contents = [message["content"].strip() if self.strip else message["content"] for message in rest]
    result = []
    for i in range(0, len(contents), 2):
      form = self.first if i == 0 and self.first is not None else self.user
      prompt = form.format(content=contents[i], system=self.system if system is None else system)
      result.append((prompt, self.assistant.format(content=contents[i + 1]) if i + 1 < len(contents) else ""))
    return result


_HELPFUL = "You are a helpful assistant. 你是一个乐于助人的助手。"
_INSTRUCTION = "### Instruction:\n{content}\n\n### Response: "
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_3 = _HEADER.format("user") + "{content}<|eot_id|>" + _HEADER.format("assistant")

TEMPLATES: dict[str, Template] = {
  # https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/examples/ziya_llama.
  "ziya": Template(
    user="<human>:{content}\n<bot>:", assistant="{content}</s>", stops=("</s>",), special_tokens=False, strip=True
  ),
  # https://github.com/ymcui/Chinese-LLaMA-Alpaca: Stanford Alpaca's.
  "chinese_alpaca": Template(
    first="{system}\n\n" + _INSTRUCTION,
    user=_INSTRUCTION,
    assistant="{content}\n\n",
    system="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    stops=("</s>", "### Instruction:"),
  ),
  # https://github.com/ymcui/Chinese-LLaMA-Alpaca-2: LLaMA 2's, with another system.
  "chinese_alpaca_2": Template(
    first="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{content} [/INST]",
    user="<s>[INST] {content} [/INST]",
    assistant=" {content}</s>",
    system=_HELPFUL,
    stops=("</s>",),
  ),
  # https://github.com/ymcui/Chinese-LLaMA-Alpaca-3: Llama 3's, with another system.
  "llama_3_chinese": Template(
    first=_HEADER.format("system") + "{system}<|eot_id|>" + _LLAMA_3,
    user=_LLAMA_3,
    assistant="{content}<|eot_id|>",
    system=_HELPFUL,
    stops=("<|eot_id|>", "<|end_of_text|>"),
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """What a model is given to answer.

  Attributes:
    text: the conversation so far.
    special_tokens: whether the tokenizer adds its own (`add_special_tokens`).
    stops: any of these ends the answer.
  """

  text: str
  special_tokens: bool
  stops: tuple[str, ...]


def conversation_prompt(messages: Messages, template: str | Template) -> Prompt:
  """The prompt of a conversation whose last message is the user's.

  Args:
    messages: see the module's docstring.
    template: one of `TEMPLATES`, by name or itself.

  Raises:
    UserError: there is no such template, or the messages are no conversation that awaits an answer.
  """
  if isinstance(template, str):
    if template not in TEMPLATES:
      raise UserError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    template = TEMPLATES[template]
  _require_question(messages)
  text = "".join(prompt + answer for prompt, answer in template.turns(messages))
  return Prompt(text=text, special_tokens=template.special_tokens, stops=template.stops)


def own_conversation_prompt(tokenizer, messages: Messages) -> Prompt:
  """The same by the tokenizer's own chat template; UserError where it has none that takes it.

  Args:
    tokenizer: a transformers fast tokenizer.
    messages: see the module's docstring; whether there may be a system is the template's affair.
  """
  import jinja2

  if not tokenizer.chat_template:
    raise UserError(f"the tokenizer has no chat template; name one of fsb_jax's: {', '.join(TEMPLATES)}")
  _require_question(messages)
  plain = [dict(message) for message in messages]
  try:
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
  except jinja2.TemplateError as error:
    raise UserError(f"the tokenizer's chat template does not take this conversation: {error}") from error
  # Llama 3's end of a turn is not its end of a text.
  ends = (tokenizer.eos_token, "<|eot_id|>", "<|im_end|>")
  vocabulary = tokenizer.get_vocab()
  return Prompt(text=text, special_tokens=False, stops=tuple(dict.fromkeys(end for end in ends if end in vocabulary)))


def split_stops(tokenizer, stops: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Ids of the stops that are one token, the tokenizer's end of a text among them; and the texts that are not."""
  vocabulary = tokenizer.get_vocab()
  ids = [vocabulary[stop] for stop in stops if stop in vocabulary]
  ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
  return tuple(dict.fromkeys(ids)), tuple(stop for stop in stops if stop not in vocabulary)


def _require_question(messages: Messages) -> None:
  _, rest = _without_system(messages)
  if len(rest) % 2 == 0:
    raise UserError("the last message is the assistant's, so there is nothing to answer; end with one of the user")


def _without_system(messages: Messages) -> tuple[str | None, list[Mapping[str, str]]]:
  """What the system says, if it does, and the turns."""
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
      raise UserError(f"message {i} is {message!r}; each needs a role and a content")
    if not isinstance(message["content"], str):
      raise UserError(f"the content of message {i} is {message['content']!r}, not a text")
  rest = list(messages)
  system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else None
  if not rest:
    raise UserError("the conversation has no message of the user")
  for i, message in enumerate(rest):
    role = ("user", "assistant")[i % 2]
    if message["role"] != role:
      place, said = i + (system is not None), message["role"]
      raise UserError(f"message {place} is of {said!r} where {role!r} is next; after the system they alternate")
  return system, rest
