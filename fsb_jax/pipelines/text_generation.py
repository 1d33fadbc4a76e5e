"""Texts that go on from a prompt, answer a conversation, or are written from one that is read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsb_jax import encodings
from fsb_jax.errors import UserError
from fsb_jax.generation import Generated, generate_texts, prepared
from fsb_jax.partitioning import Partitioner
from fsb_jax.pipelines.lines import read_lines, require_new_file, write_json_lines
from fsb_jax.pretrained import from_pretrained, require_readable


class TextGeneration:
  """Writes texts.

  Args:
    model: a converted folder, a Hub folder or id, or a GGUF file, of a decoder or an encoder-decoder.
    template: of conversations, one of `encodings.TEMPLATES`; the tokenizer's own if not given.
    batch_size: prompts at a time.
    draft: a smaller model of the same tokenizer that proposes tokens, see `generation.generate_texts`.
    mesh: see `from_pretrained`; texts are written on it.
    say: called with a line on the cache's size before it is allocated.
    **options: of `from_pretrained`, such as dtype=.
  """

  def __init__(
    self, model: str | Path, *, template: str | None = None, batch_size: int = 8, draft: str | Path | None = None,
    mesh: Any = None, say: Callable[[str], None] | None = None, **options: Any,
  ):  # fmt: skip
    self._partitioner = mesh if mesh is None or isinstance(mesh, Partitioner) else Partitioner(mesh)
    self._say = say
    options = {"scan_layers": False, "mesh": self._partitioner, **options}
    loaded = from_pretrained(model, **options)
    if loaded.tokenizer is None:
      raise UserError(f"{model} holds no tokenizer; put its files (tokenizer.json, vocab.txt, ...) there")
    require_readable(loaded.tokenizer, loaded.model)
    self.tokenizer = loaded.tokenizer
    self.generation_config = loaded.generation_config or {}
    self._template, self._batch_size = template, batch_size
    self._model, self._params = prepared(loaded.model, loaded.params)
    self._reads = loaded.config.decoder is not None
    self._draft = None
    if draft is not None:
      small = from_pretrained(draft, **{"load_tokenizer": False, **options})
      self._draft = prepared(small.model, small.params)

  def __call__(self, prompts: str | Sequence[str], **options: Any) -> dict[str, Any] | list[dict[str, Any]]:
    """{"generated_text"} for a prompt, or a list of them for several.

    Args:
      prompts: what to go on from; of an encoder-decoder what to read.
      **options: of `generation.GenerationOptions`, and `on_text`, called with every piece of the only prompt's text.
        With several `num_return_sequences` there is a list of texts for each prompt.
    """
    if isinstance(prompts, str):
      return self([prompts], **options)[0]
    answers = []
    for first in range(0, len(prompts), self._batch_size):
      answers += self._write(list(prompts[first : first + self._batch_size]), special_tokens=True, **options)
    return answers

  def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """The answer to a conversation, see `encodings.conversations`; options as in `__call__`."""
    if self._template is None:
      prompt = encodings.own_conversation_prompt(self.tokenizer, messages)
    else:
      prompt = encodings.conversation_prompt(messages, self._template)
    ids, texts = encodings.split_stops(self.tokenizer, prompt.stops)
    options = {"eos_token_id": ids, "stop_strings": texts, **options}
    answer = self._write([prompt.text], special_tokens=prompt.special_tokens, **options)[0]["generated_text"]
    for stop in texts:
      answer = answer.split(stop)[0]
    return answer.strip()

  def _write(
    self, prompts: list[str], *, special_tokens: bool, on_text: Callable[[str], None] | None = None, **options: Any
  ) -> list[dict[str, Any]]:
    encoded = [self.tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"] for prompt in prompts]
    empty = next((prompt for prompt, ids in zip(prompts, encoded) if not ids), None)
    if empty is not None:
      raise UserError(f"the prompt {empty!r} is empty: give a text to go on from")
    longest = max(map(len, encoded))
    padding = self.tokenizer.pad_token_id or 0
    ids, mask = np.full((len(prompts), longest), padding), np.zeros((len(prompts), longest), np.int64)
    for row, tokens in enumerate(encoded):
      ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    stream = None
    if on_text is not None:
      if len(prompts) > 1 or options.get("num_return_sequences", 1) > 1:
        raise UserError("on_text follows one text; ask for one at a time")
      pieces = encodings.StreamingDetokenizer(self.tokenizer)

      def stream(tokens):
        for token in tokens[0]:
          if piece := pieces.push(int(token)):
            on_text(piece)

    made = generate_texts(
      self._model, self._params, ids, mask, generation_config=self._config(), tokenizer=self.tokenizer,
      on_tokens=stream, draft=self._draft, partitioner=self._partitioner, say=self._say, **options,
    )  # fmt: skip
    if stream is not None and (rest := pieces.finish()):
      on_text(rest)
    return self._answers(made, len(prompts), 1 if self._reads else longest)

  def _config(self) -> dict[str, Any]:
    """The folder's; the tokenizer says what it does not."""
    told = {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
    return {**{name: value for name, value in told.items() if value is not None}, **self.generation_config}

  def _answers(self, made: Generated, prompts: int, start: int) -> list[dict[str, Any]]:
    texts = [
      self.tokenizer.decode(row[start : start + count].tolist(), skip_special_tokens=True)
      for row, count in zip(made.sequences, made.new_tokens)
    ]
    each = len(texts) // prompts
    if each == 1:
      return [{"generated_text": text} for text in texts]
    return [{"generated_text": texts[i : i + each]} for i in range(0, len(texts), each)]


def write_out(
  model: str, prompts: Sequence[str], *, input_file: Path | None = None, output_file: Path | None = None,
  template: str | None = None, conversation: bool = False, system: str | None = None, stream: bool = True,
  draft: str | None = None, options: Mapping[str, Any],
) -> None:  # fmt: skip
  """Writes on from prompts and the lines of a file, or answers them as the user's messages.

  The only prompt's text goes to standard output while it is written, if `stream`; several go there when all are done,
  or as JSON lines of `prompt` and `generated_text` into `output_file`.
  """
  prompts = [*prompts, *read_lines(input_file)]
  if not prompts:
    raise UserError("nothing to go on from: give --prompt, or --input FILE")
  if system is not None and not conversation:
    raise UserError("--system is a part of a conversation; add --chat")
  if output_file is not None:
    require_new_file(output_file)
  writer = TextGeneration(model, template=template, draft=draft, say=lambda line: print(line, file=sys.stderr))
  options = dict(options)
  streaming = stream and len(prompts) == 1 and output_file is None and options.get("num_beams", 1) == 1
  if streaming:
    options["on_text"] = lambda piece: print(piece, end="", flush=True)
  if conversation:
    first = [] if system is None else [{"role": "system", "content": system}]
    texts = [writer.chat([*first, {"role": "user", "content": prompt}], **options) for prompt in prompts]
  else:
    texts = [answer["generated_text"] for answer in writer(prompts, **options)]
  if output_file is not None:
    write_json_lines(output_file, ({"prompt": p, "generated_text": text} for p, text in zip(prompts, texts)))
  elif streaming:
    print(flush=True)
  else:
    for prompt, text in zip(prompts, texts):
      for each in [text] if isinstance(text, str) else text:
        print(f"{prompt}\n  {each}" if len(prompts) > 1 else each)
