"""The same tokens on any mesh."""

import jax
import numpy as np
import pytest
from writers import SPECIAL, our_texts, prompts, writer

from fsb_jax import models
from fsb_jax.generation import generate_texts
from fsb_jax.partitioning import Partitioner

MESHES = [dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, tensor=2, sequence=2), dict(data=8)]


SAMPLED = dict(do_sample=True, temperature=3.0, num_return_sequences=2)


@pytest.mark.parametrize(
  "family,options,mesh",
  [
    ("llama", SAMPLED, MESHES[0]),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ("bart", dict(num_beams=2), MESHES[1]), ("llama", {}, MESHES[0]),
        ("llama", {}, MESHES[1]), ("llama", SAMPLED, MESHES[1]), ("llama", {}, MESHES[2]),
        ("bart", dict(num_beams=2), MESHES[0]), ("t5", dict(num_beams=2), MESHES[0]),
        ("gpt2", dict(guidance_scale=1.5), MESHES[0]),
      )
    ),
  ],
  ids=str,
)  # fmt: skip
def test_as_on_one_device(family, options, mesh):
  chosen = writer(family)
  # Three rows, which the mesh does not divide.
  ids, mask = prompts(chosen.reads, 5, rows=3)
  expected = our_texts(chosen, ids, mask, **options)
  partitioner = Partitioner(mesh)
  # The vocabulary is padded, or the mesh could not split it.
  config = chosen.model.config.with_run(vocab_multiple=partitioner.vocab_multiple)
  model = chosen.model.clone(config=config, head=chosen.model.head.clone(config=config))
  boxed = models.abstract_params(model)
  rows = {path: box.value.shape for path, box in models.flatten(boxed).items()}
  grown = {
    path: np.pad(x, [(0, want - have) for want, have in zip(rows[path], x.shape)])
    for path, x in models.flatten(chosen.params).items()
  }
  params = jax.tree.map(jax.device_put, models.unflatten(grown), partitioner.shardings(boxed))
  config = {name: value for name, value in SPECIAL.items() if value is not None}
  made = generate_texts(
    model, params, ids, mask, generation_config=config, max_new_tokens=12, partitioner=partitioner, **options
  )
  np.testing.assert_array_equal(made.sequences, expected.sequences)
  if made.scores is not None:
    np.testing.assert_allclose(made.scores, expected.scores, atol=1e-5)
