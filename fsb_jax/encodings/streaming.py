"""Text of a model's answer while it is being written."""

import re

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNKNOWN = "\ufffd"
# The longest thing that cleaning up shortens, less the character that completes it: " n't".
_CLEANED = 3


class StreamingDetokenizer:
  """Turns ids into pieces of text, one after the other; joined they are what the tokenizer decodes from all of them.

  Characters of several tokens come out whole. A run of SentencePiece's byte tokens is kept back until it ends, since
  one wrong byte makes the tokenizer give up on all of it. To decode a token costs no more late in a text than early,
  unless the tokenizer cleans up its spaces, which takes the whole text.

  Args:
    tokenizer: a transformers fast tokenizer.
    skip_special_tokens: leave out the end of a text and its like.
  """

  def __init__(self, tokenizer, skip_special_tokens: bool = True):
    self._tokenizer = tokenizer
    self._skip_special_tokens = skip_special_tokens
    added = tokenizer.added_tokens_decoder
    self._left_out = {i for i, token in added.items() if token.special} if skip_special_tokens else set()
    self._held_back = _CLEANED if tokenizer.clean_up_tokenization_spaces else 0
    # The ids since the last place but one where all text was out: the first token of a text is decoded otherwise, and
    # is never the one to come.
    self._ids: list[int] = []
    self._settled = 0
    self._out = 0

  def push(self, token_id: int) -> str:
    """The text that has become certain by one more token; often none."""
    self._ids.append(int(token_id))
    certain = len(self._ids)
    while certain and self._is_open(self._ids[certain - 1]):
      certain -= 1
    text = self._decode(self._ids[:certain])
    stable = text.rstrip(_UNKNOWN)
    stable = stable[: len(stable) - self._held_back] if self._held_back else stable
    piece = stable[self._out :]
    self._out = max(self._out, len(stable))
    if stable == text and certain == len(self._ids):
      self._settle()
    return piece

  def finish(self) -> str:
    """What is left when no token follows, half characters as the tokenizer decodes them; a new text may begin."""
    piece = self._decode(self._ids)[self._out :]
    self._ids, self._settled, self._out = [], 0, 0
    return piece

  def _settle(self) -> None:
    """Forgets the ids before the last place where all text was out; those since decode to some text."""
    since = self._decode(self._ids[self._settled :])
    if since:
      self._ids, self._out = self._ids[self._settled :], len(since)
      self._settled = len(self._ids)

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

  def _is_open(self, token_id: int) -> bool:
    """Whether what follows may change a token: a byte, or one that is left out between bytes."""
    return token_id in self._left_out or bool(_BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or ""))
