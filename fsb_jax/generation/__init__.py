"""Texts from decoders and encoder-decoders: greedy, sampled, by beams, with a draft model."""

from fsb_jax.generation.engine import Generated, generate, generate_texts, prepared
from fsb_jax.generation.options import GenerationOptions, options_of

__all__ = ["Generated", "GenerationOptions", "generate", "generate_texts", "options_of", "prepared"]
