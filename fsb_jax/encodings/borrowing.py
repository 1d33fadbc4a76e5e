"""The Rust tokenizer under a fast one, with settings of our own for a while."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def borrowed_backend(tokenizer, max_length: int | None = None, **truncation) -> Iterator:
  """Gives the backend of a transformers fast tokenizer, and leaves it as it was.

  Args:
    tokenizer: the fast tokenizer.
    max_length: rows are cut to so many tokens; None cuts nothing.
    **truncation: how, see `enable_truncation` of the `tokenizers` library.

  Yields:
    A `tokenizers.Tokenizer` that does not pad.
  """
  backend = tokenizer.backend_tokenizer
  before, padding = backend.truncation, backend.padding
  backend.no_padding()
  if max_length is None:
    backend.no_truncation()
  else:
    backend.enable_truncation(max_length, **truncation)
  try:
    yield backend
  finally:
    if before:
      backend.enable_truncation(**before)
    else:
      backend.no_truncation()
    if padding:
      backend.enable_padding(**padding)
