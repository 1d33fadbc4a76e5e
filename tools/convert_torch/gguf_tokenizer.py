"""The tokenizer that a GGUF file's metadata describes, as a transformers fast tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the metadata leaves to its reader (how a text is
split, what is put before it where nothing says) is as in llama.cpp.
"""

import dataclasses
import logging
from collections import Counter
from typing import Any

from convert_torch.gguf_file import GgufFile
from fsb_jax.errors import UserError

# Kinds of tokens.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_LLAMA_3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Splitting:
  """How a byte-level tokenizer splits a text before it merges.

  Attributes:
    pattern: the words, as a regular expression; None for GPT-2's.
    digits_apart: every digit is a word.
    whole_words: a word that is a token is not built of merges.
    starts: a text is begun with a token, where the file does not say.
  """

  pattern: str | None = None
  digits_apart: bool = False
  whole_words: bool = False
  starts: bool = False


_GPT_2 = _Splitting()
_LLAMA_3 = _Splitting(pattern=_LLAMA_3_SPLIT, whole_words=True, starts=True)
_SPLITTINGS = {
  "default": _GPT_2,
  "gpt-2": _GPT_2,
  "llama-bpe": _LLAMA_3,
  "llama-v3": _LLAMA_3,
  "llama3": _LLAMA_3,
  "smollm": _Splitting(digits_apart=True),
}


def gguf_tokenizer(file: GgufFile) -> Any:
  """Makes the tokenizer of a GGUF file.

  Byte-level BPE ("gpt2") gives the ids of the tokenizer that the file was made of. SentencePiece's BPE ("llama") has
  scores where transformers has an order of merges. Between tokens of one score SentencePiece takes the one further
  left, which no order does; those that were added to a vocabulary by hand, as Chinese-LLaMA-Alpaca's, have one score,
  and texts that hold them may get other ids. A warning says so.

  Args:
    file: the opened file.

  Returns:
    A `TokenizersBackend` with the file's special tokens and chat template, or None where the file holds no tokenizer.

  Raises:
    UserError: the metadata is not whole, or describes a tokenizer that we do not know.
  """
  # None of this imports torch.
  from tokenizers import AddedToken
  from transformers.tokenization_utils_tokenizers import TokenizersBackend

  model = file.value("tokenizer.ggml.model", str, "none")
  if model in ("none", "no_vocab"):
    return None
  if model not in _MODELS:
    raise UserError(
      f"{file.path} says tokenizer.ggml.model={model!r}, and fsb_jax makes tokenizers of {' and '.join(_MODELS)} only; "
      "put the tokenizer's own files (tokenizer.json) beside it"
    )
  tokens = file.values("tokenizer.ggml.tokens", str)
  if len(set(tokens)) < len(tokens):
    twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
    raise UserError(f"{file.path} holds the token {twice!r} twice in tokenizer.ggml.tokens")
  kinds = file.values("tokenizer.ggml.token_type", int, len(tokens), [_NORMAL] * len(tokens))
  named = {name: _token(file, theirs, tokens) for name, theirs in _NAMED.items()}
  try:
    backend, starts = _MODELS[model](file, tokens, kinds, named["unk_token"])
  except UserError:
    raise
  # The Rust library raises bare Exception on tokens or merges that do not belong together.
  except Exception as error:
    raise UserError(f"the tokenizer of {file.path} cannot be made: {error}") from error
  added = [
    AddedToken(token, normalized=False, special=kind == _CONTROL or token in named.values())
    for token, kind in zip(tokens, kinds)
    if kind in (_CONTROL, _USER_DEFINED)
  ]
  backend.add_tokens(added)
  adds = {}
  for name, usual in (("bos", starts), ("eos", False)):
    adds[f"add_{name}_token"] = file.value(f"tokenizer.ggml.add_{name}_token", bool, usual)
    if adds[f"add_{name}_token"] and named[f"{name}_token"] is None:
      raise UserError(f"{file.path} adds a token to every text and lacks tokenizer.ggml.{name}_token_id, which it is")
  return TokenizersBackend(
    tokenizer_object=backend,
    chat_template=file.value("tokenizer.chat_template", str, None),
    clean_up_tokenization_spaces=False,
    **{name: token for name, token in named.items() if token is not None},
    **adds,
  )


_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _token(file: GgufFile, name: str, tokens: list[str]) -> str | None:
  token_id = file.value(f"tokenizer.ggml.{name}_token_id", int, None)
  if token_id is None:
    return None
  if token_id >= len(tokens):
    raise UserError(f"{file.path} says tokenizer.ggml.{name}_token_id={token_id} and holds {len(tokens)} tokens")
  return tokens[token_id]


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int], unknown: str | None):
  """Byte-level BPE and whether it begins a text with a token."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

  pre = file.value("tokenizer.ggml.pre", str)
  if pre not in _SPLITTINGS:
    raise UserError(
      f"{file.path} says tokenizer.ggml.pre={pre!r}, and fsb_jax knows how {', '.join(_SPLITTINGS)} split a text; put "
      "the tokenizer's own files (tokenizer.json) beside it"
    )
  splitting = _SPLITTINGS[pre]
  merges = [tuple(merge.split(" ")) for merge in file.values("tokenizer.ggml.merges", str)]
  odd = next((merge for merge in merges if len(merge) != 2), None)
  if odd is not None:
    raise UserError(f"{file.path} merges {' '.join(odd)!r} in tokenizer.ggml.merges, which is no pair of tokens")
  backend = Tokenizer(
    models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=splitting.whole_words)
  )
  prefix = file.value("tokenizer.ggml.add_space_prefix", bool, False)
  words = [pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=splitting.pattern is None)]
  if splitting.pattern is not None:
    words.insert(0, pre_tokenizers.Split(Regex(splitting.pattern), "isolated"))
  if splitting.digits_apart:
    words.insert(0, pre_tokenizers.Digits(individual_digits=True))
  backend.pre_tokenizer = pre_tokenizers.Sequence(words)
  backend.decoder = decoders.ByteLevel()
  return backend, splitting.starts


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int], unknown: str | None):
  """SentencePiece's BPE and whether it begins a text with a token."""
  from tokenizers import Tokenizer, decoders, models, normalizers
  from transformers.tokenization_utils_base import generate_merges

  vocabulary = {token: i for i, token in enumerate(tokens)}
  scores = dict(zip(tokens, file.values("tokenizer.ggml.scores", float, len(tokens))))
  special = [token for token, kind in zip(tokens, kinds) if kind != _NORMAL]
  merges = generate_merges(vocabulary, scores, special)
  shared = Counter(scores[merged] for merged in {left + right for left, right in merges})
  tied = sum(count for count in shared.values() if count > 1)
  if tied:
    logging.getLogger(__name__).warning(
      "%s: %d tokens share their scores, so that some texts get other ids than from SentencePiece", file.path, tied
    )
  backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  prefix = file.value("tokenizer.ggml.add_space_prefix", bool, True)
  # Every piece of text between added tokens begins with the space, also where it has one already.
  backend.normalizer = normalizers.Sequence(
    [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if prefix else []),
    ]
  )  # fmt: skip
  return backend, True


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}
