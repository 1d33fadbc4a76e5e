"""Text to arrays and back: pure functions that need neither TensorFlow nor torch nor jax."""

from fsb_jax.encodings.pairs import encode_pairs
from fsb_jax.encodings.tokenizer import bert_tokenizer_from_characters, load_tokenizer, save_tokenizer

__all__ = ["bert_tokenizer_from_characters", "encode_pairs", "load_tokenizer", "save_tokenizer"]
