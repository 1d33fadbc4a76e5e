"""Masks for masked language modelling, as a pure function of (seed, epoch, example).

Devlin et al., "BERT", 2019 (which tokens, and what stands in their place); Cui et al., "Pre-Training with Whole Word
Masking for Chinese BERT", 2021 (all pieces of a word at once). Other than in BERT, a replaced token is never a special
one, and [UNK] is never asked for.
"""

import numpy as np

IGNORED = -100
SHARE = 0.15


def mask_words(
  input_ids: np.ndarray,
  word_ids: np.ndarray,
  *,
  seed: int,
  epoch: int,
  example: int,
  mask_id: int,
  replacements: np.ndarray,
  share: float = SHARE,
) -> tuple[np.ndarray, np.ndarray]:
  """Hides words of a row for a model to find.

  `share` of the row's tokens are chosen, at least one, word by word in random order; a word that is more than what is
  left to choose is passed over, so a row whose every word is longer than that has none. Of the chosen tokens 80 %
  become the mask, 10 % another token, and 10 % stay.

  Args:
    input_ids: int32 `[tokens]`.
    word_ids: int32 `[tokens]`, ascending; tokens of one word share a number, and -1 is never chosen (special tokens,
      padding). What is -1 does not change what is drawn for the rest.
    seed: of the run.
    epoch: another one draws other masks.
    example: the example's number; another one draws other masks.
    mask_id: id of the mask token.
    replacements: ids that may replace a token.
    share: of the tokens that can be chosen.

  Returns:
    The masked `input_ids`, and `labels` int32 `[tokens]`: the true id where a token was chosen, else -100.
  """
  tokens = np.flatnonzero(word_ids >= 0)
  masked, labels = input_ids.copy(), np.full_like(input_ids, IGNORED)
  if not len(tokens):
    return masked, labels
  random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, example + 1, 0]))
  starts = np.flatnonzero(np.diff(word_ids[tokens], prepend=-1))
  sizes = np.diff(starts, append=len(tokens)).tolist()
  left = max(1, round(share * len(tokens)))
  is_chosen = np.zeros(len(starts), bool)
  for word in random.permutation(len(starts)).tolist():
    if sizes[word] <= left:
      is_chosen[word] = True
      left -= sizes[word]
      if not left:
        break
  chosen = tokens[np.repeat(is_chosen, sizes)]
  labels[chosen] = input_ids[chosen]
  fate = random.random(len(chosen))
  masked[chosen[fate < 0.8]] = mask_id
  replaced = chosen[fate >= 0.9]
  masked[replaced] = random.choice(replacements, len(replaced))
  return masked, labels


def asked_positions(labels: np.ndarray, share: float = SHARE) -> tuple[np.ndarray, np.ndarray]:
  """Where `mask_words` asks for something, in rows of one length for all masks of that many tokens.

  Args:
    labels: int32 `[batch, tokens]` of `mask_words`.
    share: what it was called with.

  Returns:
    Positions and their labels, int32 `[batch, asked]`: those that are asked for in ascending order, then others, whose
    label is -100.
  """
  asked = max(1, int(np.ceil(share * labels.shape[1])))
  positions = np.argsort(labels == IGNORED, axis=1, kind="stable")[:, :asked].astype(np.int32)
  return positions, np.take_along_axis(labels, positions, axis=1)
