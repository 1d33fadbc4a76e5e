"""TCBert: a text behind a prompt in which masks stand for the name of its class.

Source: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/tcbert.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.encodings.masking import IGNORED
from fsb_jax.encodings.tokenizer import special_id
from fsb_jax.errors import UserError

# Masks that stand for a class that is not known.
_MASKS = 2


def encode_tcbert(
  tokenizer,
  texts: Sequence[str],
  classes: Sequence[str] | None = None,
  *,
  prompt: str,
  names: Mapping[str, str],
  max_length: int,
) -> dict[str, list[np.ndarray]]:
  """Encodes texts without padding as `[CLS] prompt text [SEP]`; a row longer than `max_length` loses its end.

  Args:
    tokenizer: a transformers fast tokenizer with [CLS], [SEP] and [MASK].
    texts: the texts.
    classes: as many classes, keys of `names`; None where they are asked for.
    prompt: "下面是一则关于{}的新闻：", where masks take the place of {}: as many as the class's name has tokens, or
      two where the class is asked for.
    names: class -> its name in the prompt; its order numbers the classes.
    max_length: longest row in tokens, special tokens included.

  Returns:
    One array per row: `input_ids` and `token_type_ids` int32 `[tokens]`; and with `classes` also `labels` int32
    `[tokens]`, the name's tokens at the masks and -100 elsewhere, and `class_label` int32 `[]`.

  Raises:
    UserError: the prompt has no {}, a class is unknown, `classes` are not as many as `texts`, or `max_length` leaves no
      room for text.
  """
  if prompt.count("{}") != 1:
    raise UserError(f"the prompt {prompt!r} must hold {{}} once, where the class's name goes.")
  if classes is not None and len(classes) != len(texts):
    raise UserError(f"{len(texts)} texts and {len(classes)} classes do not make pairs.")
  unknown = set(classes or ()) - set(names)
  if unknown:
    raise UserError(f"unknown class {min(unknown)!r}; known: {', '.join(names)}")
  cls, sep, mask = (special_id(tokenizer, name) for name in ("cls", "sep", "mask"))
  before, after = prompt.split("{}")
  with borrowed_backend(tokenizer) as backend:
    pieces = backend.encode_batch([before, after, *names.values()], add_special_tokens=False)
    rests = backend.encode_batch([after + text for text in texts], add_special_tokens=False)
  before, after, *words = [np.array(piece.ids, np.int32) for piece in pieces]
  words, numbers = dict(zip(names, words)), {name: i for i, name in enumerate(names)}
  frame = 2 + len(before) + len(after) + max([_MASKS, *map(len, words.values())])
  if max_length <= frame:
    raise UserError(f"max_length {max_length} leaves no room for text beside a prompt of {frame} tokens; raise it.")
  begin = 1 + len(before)
  rows = {"input_ids": [], "token_type_ids": []} | ({} if classes is None else {"labels": [], "class_label": []})
  for i, rest in enumerate(rests):
    masks = _MASKS if classes is None else len(words[classes[i]])
    ids = np.concatenate([[cls], before, np.full(masks, mask), rest.ids])[: max_length - 1]
    ids = np.append(ids, sep).astype(np.int32)
    rows["input_ids"].append(ids)
    rows["token_type_ids"].append(np.zeros_like(ids))
    if classes is not None:
      labels = np.full_like(ids, IGNORED)
      labels[begin : begin + masks] = words[classes[i]]
      rows["labels"].append(labels)
      rows["class_label"].append(np.array(numbers[classes[i]], np.int32))
  return rows
