"""The heads of the original code that go on any BERT-like encoder."""

from collections.abc import Callable

from fsb_jax.models.extraction import EXTRACTION_HEADS
from fsb_jax.models.heads import Head
from fsb_jax.models.tagging import TAGGING_HEADS

ORIGINAL_HEADS: dict[str, Callable[..., Head]] = {**EXTRACTION_HEADS, **TAGGING_HEADS}
