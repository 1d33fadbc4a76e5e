"""UniMC: any question with options as a row of which a masked language model says yes or no.

A row is `[CLS] [MASK] option [MASK] option [SEP] question [SEP] text [SEP] second text [SEP]`. Each option's mask asks
whether that option is right. Options do not see each other, and all begin at position 1.

Source: Yang et al. 2022, https://arxiv.org/abs/2210.08590; what its code adds to the paper is of
https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/unimc.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fsb_jax.encodings.borrowing import borrowed_backend
from fsb_jax.encodings.masking import IGNORED
from fsb_jax.encodings.tokenizer import special_id
from fsb_jax.errors import UserError

# What the mask of a right option and of any other stands for.
ANSWERS = {"chinese": ("是", "非"), "english": ("yes", "no")}
# Tasks whose second text goes into the options, so that an option says a thing about the first.
REWRITES = {
  "语义匹配": {"不相似": "不能理解为：{}", "相似": "可以理解为：{}"},
  "自然语言推理": {"矛盾": "不能推断出：{}", "自然": "很难推断出：{}", "蕴含": "可以推断出：{}"},
}
# Tokens of a row that options leave to the rest, rows of the models' position tables, and how often which share of a
# row's text is hidden.
_ROOM_FOR_TEXT = 32
_POSITIONS = 512
_SHARES, _CHANCES = (0.0, 0.1, 0.2, 0.3), (0.3, 0.3, 0.25, 0.15)


def encode_unimc(
  tokenizer, items: Sequence[Mapping], *, max_length: int, language: str = "chinese"
) -> dict[str, list[np.ndarray]]:
  """Encodes items without padding; no item is changed.

  An item has the fields `texta`, `choice` (its options), and may have `textb`, `question`, `label` (which option is
  right) and `task_type`: one of `REWRITES` puts the second text into the options. While options are too long, each
  loses the second half of its characters; a row still longer than `max_length` loses its end. Options may be alike:
  they are known by their place.

  Args:
    tokenizer: a transformers fast tokenizer with [CLS], [SEP] and [MASK].
    items: the items.
    max_length: longest row in tokens, special tokens included.
    language: of `ANSWERS`.

  Returns:
    One array per row:
    `input_ids`, `token_type_ids`, `position_ids`: int32 `[tokens]`.
    `option_bounds`: int32 `[options + 1]`, where each option begins (with its mask), and where the last one ends; it
      says all that `option_attention` needs.
    `labels`: int32 `[tokens]`, yes or no at each option's mask and -100 elsewhere; -100 everywhere without `label`.
    `option_label`: int32 `[]`, `label`, or -100.
    `yes_token`: int32 `[]`.

  Raises:
    UserError: an item lacks a field or has a value that is none, options do not fit into `max_length` even without
      their text, the tokenizer lacks a token, or the language is unknown.
  """
  if language not in ANSWERS:
    raise UserError(f"unknown language {language!r}; known: {', '.join(ANSWERS)}")
  cls, sep, mask = (special_id(tokenizer, name) for name in ("cls", "sep", "mask"))
  checked = [_checked(item, number) for number, item in enumerate(items)]
  tokens_of = _tokens(tokenizer)
  # All at once, in parallel.
  tokens_of([text for options, texts, _ in checked for text in (*options, *texts)])
  yes, no = (_single(tokenizer, tokens_of([answer])[0], answer) for answer in ANSWERS[language])
  rows = {}
  for number, (options, texts, label) in enumerate(checked):
    options = _shortened(options, tokens_of, max_length, number)
    parts = [np.concatenate([[mask], ids]) for ids in tokens_of(options)]
    bounds = np.cumsum([1, *map(len, parts)]).astype(np.int32)
    rest = [part for ids in tokens_of(texts) for part in (ids, [sep])]
    ids = np.concatenate([[cls], *parts, [sep], *rest])
    ids = np.append(ids[: max_length - 1], sep) if len(ids) > max_length else ids
    labels = np.full(len(ids), IGNORED)
    if label != IGNORED:
      labels[bounds[:-1]] = np.where(np.arange(len(options)) == label, yes, no)
    row = {
      "input_ids": ids,
      "token_type_ids": (np.arange(len(ids)) >= 1) & (np.arange(len(ids)) <= bounds[-1]),
      "position_ids": _positions(bounds, len(ids)),
      "option_bounds": bounds,
      "labels": labels,
      "option_label": label,
      "yes_token": yes,
    }
    for name, value in row.items():
      rows.setdefault(name, []).append(np.asarray(value, np.int32))
  return rows


def option_attention(bounds: np.ndarray, length: int) -> np.ndarray:
  """Who sees whom in a row, bool `[length, length]`: an option's tokens do not see another option's.

  Args:
    bounds: `option_bounds` of `encode_unimc`.
    length: of the row in tokens.
  """
  option = np.zeros(length, np.int32)
  option[bounds[0] : bounds[-1]] = np.repeat(np.arange(1, len(bounds)), np.diff(bounds))
  query, key = option[:, None], option[None, :]
  return (query == key) | (query == 0) | (key == 0)


def mask_unimc(
  input_ids: np.ndarray,
  labels: np.ndarray,
  option_bounds: np.ndarray,
  *,
  random: np.random.Generator,
  mask_id: int,
  vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Hides tokens behind a row's options for the model to find, while it learns to answer.

  A share of 0, 10, 20 or 30 % is drawn for the row (with chances of 30, 30, 25 and 15 %), and every token from the
  options' [SEP] on is chosen with that chance, separators too. Of the chosen ones 80 % become the mask, 10 % stay, and
  10 % become any token but the vocabulary's first.

  Args:
    input_ids: of `encode_unimc`.
    labels: of `encode_unimc`.
    option_bounds: of `encode_unimc`.
    random: what is drawn from.
    mask_id: id of the mask token.
    vocab_size: ids that may replace a token are below this.

  Returns:
    The new `input_ids` and `labels`, int32 `[tokens]`.
  """
  share = random.choice(_SHARES, p=_CHANCES)
  fate = random.random(len(input_ids))
  chosen = (fate < share) & (np.arange(len(input_ids)) >= option_bounds[-1])
  masked, labels = input_ids.copy(), np.where(chosen, input_ids, labels).astype(np.int32)
  masked[chosen & (fate < 0.8 * share)] = mask_id
  replaced = chosen & (fate >= 0.9 * share)
  masked[replaced] = random.integers(1, vocab_size, replaced.sum())
  return masked, labels


def batch_unimc(
  encoded: Mapping[str, Sequence[np.ndarray]],
  *,
  pad_id: int,
  length: int | None = None,
  ask_every_token: bool = False,
  padding_label: int = IGNORED,
) -> dict[str, np.ndarray]:
  """Rows of `encode_unimc` as arrays of one length.

  Args:
    encoded: the rows.
    pad_id: id of the padding token.
    length: of the arrays; the longest row's if not given.
    ask_every_token: a token without a label is asked for itself, hidden or not, as the original does when it
      validates.
    padding_label: what padding is asked for: nothing, or the original's 0.

  Returns:
    `input_ids`, `token_type_ids`, `position_ids`, `labels`: int32 `[batch, length]`.
    `attention_mask`: bool `[batch, length, length]`; padding neither sees nor is seen.
    `option_mask`: bool `[batch, length]`, where an option's mask token is.
    `option_label`: int32 `[batch]`, where the right option's is; -100 where that is unknown.
    `yes_token`: int32 `[batch]`.
  """
  longest = max(len(ids) for ids in encoded["input_ids"])
  length = longest if length is None else length
  if longest > length:
    raise UserError(f"a row of {longest} tokens does not fit into length {length}; raise it.")
  rows = len(encoded["input_ids"])
  fills = {"input_ids": pad_id, "token_type_ids": 0, "position_ids": 0, "labels": padding_label}
  batch = {name: np.full((rows, length), fill, np.int32) for name, fill in fills.items()}
  batch["attention_mask"] = np.zeros((rows, length, length), bool)
  batch["option_mask"] = np.zeros((rows, length), bool)
  batch["option_label"] = np.full(rows, IGNORED, np.int32)
  batch["yes_token"] = np.array(encoded["yes_token"], np.int32)
  for i, bounds in enumerate(encoded["option_bounds"]):
    row = {name: encoded[name][i] for name in fills}
    tokens = len(row["input_ids"])
    if ask_every_token:
      row["labels"] = np.where(row["labels"] == IGNORED, row["input_ids"], row["labels"])
    for name, values in row.items():
      batch[name][i, :tokens] = values
    batch["attention_mask"][i, :tokens, :tokens] = option_attention(bounds, tokens)
    batch["option_mask"][i, bounds[:-1]] = True
    label = encoded["option_label"][i]
    if label != IGNORED:
      batch["option_label"][i] = bounds[label]
  return batch


def only_asked_unimc(batch: Mapping[str, np.ndarray], asked: int | None = None) -> dict[str, np.ndarray]:
  """A batch whose model scores the vocabulary only where something is asked.

  Args:
    batch: of `batch_unimc`.
    asked: positions a row; as many as the row with most options and labels has if not given.

  Returns:
    The batch with `masked_lm_positions` int32 `[batch, asked]`, a row's options first and in their order; `labels`,
    `option_mask` and `option_label` are now about those.

  Raises:
    UserError: a row asks more than that.
  """
  labelled = batch["labels"] != IGNORED
  most = int((batch["option_mask"] | labelled).sum(axis=1).max())
  asked = most if asked is None else asked
  if most > asked:
    raise UserError(f"a row asks at {most} positions, more than asked={asked}; raise it.")
  order = np.where(batch["option_mask"], 0, np.where(labelled, 1, 2))
  positions = np.argsort(order, axis=1, kind="stable")[:, :asked].astype(np.int32)
  right = positions == batch["option_label"][:, None]
  return {
    **batch,
    "masked_lm_positions": positions,
    **{name: np.take_along_axis(batch[name], positions, axis=1) for name in ("labels", "option_mask")},
    "option_label": np.where(right.any(axis=1), right.argmax(axis=1), IGNORED).astype(np.int32),
  }


def answers_unimc(items: Sequence[Mapping], probabilities: np.ndarray) -> list[dict]:
  """What the model says of each item, in the item's own words.

  Args:
    items: as given to `encode_unimc`.
    probabilities: `[batch, asked]` of `models.option_probabilities`, a row's options first (`only_asked_unimc`).

  Returns:
    For each item its `label` (which option), `answer` (its text) and `scores` (one per option).
  """
  answers = []
  for item, row in zip(items, np.asarray(probabilities), strict=True):
    scores = row[: len(item["choice"])]
    if not abs(float(scores.sum()) - 1) < 1e-2:
      raise UserError(
        "the probabilities of an item's options do not add up to 1; give those of a batch of only_asked_unimc, where "
        "the options stand first"
      )
    label = int(scores.argmax())
    answers.append({"label": label, "answer": item["choice"][label], "scores": scores.tolist()})
  return answers


def require_unimc(items: Sequence[Mapping]) -> None:
  """UserError where `encode_unimc` would refuse an item, whatever the tokenizer."""
  for number, item in enumerate(items):
    _checked(item, number)


def _checked(item: Mapping, number: int) -> tuple[list[str], list[str], int]:
  """Options, the texts behind them, and the label of an item."""
  options, label = item.get("choice"), item.get("label")
  if not isinstance(options, Sequence) or isinstance(options, str) or not options:
    raise UserError(f"item {number}: choice is {options!r}; give a list of options.")
  question, second = item.get("question") or "", item.get("textb") or ""
  named = [("texta", item.get("texta")), ("question", question), ("textb", second)]
  for name, text in (*named, *(("choice", option) for option in options)):
    if not isinstance(text, str):
      raise UserError(f"item {number}: {name} holds {text!r}, which is no text.")
  if label is not None and not (isinstance(label, (int, np.integer)) and 0 <= label < len(options)):
    raise UserError(f"item {number}: label is {label!r}; give the place of one of {len(options)} options, from 0.")
  if item.get("task_type") in REWRITES:
    options, second = _rewritten(item, second, number), ""
  texts = [*filter(None, [question]), item["texta"], *filter(None, [second])]
  return list(options), texts, IGNORED if label is None else int(label)


def _rewritten(item: Mapping, second: str, number: int) -> list[str]:
  task, forms = item["task_type"], REWRITES[item["task_type"]]
  unknown = [option for option in item["choice"] if option not in forms]
  if unknown:
    raise UserError(f"item {number}: {task} has the options {', '.join(forms)}, not {unknown[0]!r}; mend its choice.")
  if not second:
    raise UserError(f"item {number}: {task} is about two texts; give textb.")
  return [forms[option].format(second) for option in item["choice"]]


def _tokens(tokenizer) -> Callable[[Sequence[str]], list[np.ndarray]]:
  """A function that tokenises texts, each once."""
  known = {}

  def tokens_of(texts):
    fresh = [text for text in dict.fromkeys(texts) if text not in known]
    if fresh:
      with borrowed_backend(tokenizer) as backend:
        encodings = backend.encode_batch(fresh, add_special_tokens=False)
      known.update((text, np.array(encoding.ids, np.int32)) for text, encoding in zip(fresh, encodings))
    return [known[text] for text in texts]

  return tokens_of


def _single(tokenizer, ids: np.ndarray, answer: str) -> int:
  # The first: some tokenizers have more than one token for a word.
  if not len(ids) or ids[0] == tokenizer.unk_token_id:
    raise UserError(f"the tokenizer has no token for {answer!r}; choose another language.")
  return int(ids[0])


def _shortened(options: list[str], tokens_of, max_length: int, number: int) -> list[str]:
  """Options halved until they leave room for the text."""
  # Masks stand between options here, and special tokens around them.
  frame = len(options) + 1
  if frame > max_length - _ROOM_FOR_TEXT:
    raise UserError(
      f"item {number}: {len(options)} options need max_length {frame + _ROOM_FOR_TEXT} even without their text, not "
      f"{max_length}; raise it."
    )
  while frame + sum(map(len, tokens_of(options))) > max_length - _ROOM_FOR_TEXT:
    options = [option[: len(option) // 2] for option in options]
  return options


def _positions(bounds: np.ndarray, length: int) -> np.ndarray:
  """Every option counts from 1; what follows counts on from the longest one."""
  sizes = np.diff(bounds)
  options = np.arange(bounds[-1] - 1) - np.repeat(bounds[:-1] - 1, sizes) + 1
  rest = sizes.max() + 1 + np.arange(length - bounds[-1])
  return np.minimum(np.concatenate([[0], options, rest]), _POSITIONS - 1)
