"""Texts from decoders and encoder-decoders: greedy, sampled, by beams, with a draft model."""

from fsb_jax.generation.engine import generate, generate_texts
from fsb_jax.generation.options import GenerationOptions, options_of
from fsb_jax.generation.prepare import prepared
from fsb_jax.generation.run import Generated

__all__ = ["Generated", "GenerationOptions", "generate", "generate_texts", "options_of", "prepared"]
