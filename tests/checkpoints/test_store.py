"""Saving on one mesh and restoring on another; what does not fit is named."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from fsb_jax import checkpoints, models
from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner
from fsb_jax.training.start import abstract_state
from fsb_jax.training.step import new_state

OPTIMIZER = optax.adamw(1e-3)
CONFIG = dataclasses.replace(
  models.sized("bert", "tiny"), vocab_size=101, embed_dim=32, num_heads=4, mlp_dim=64, num_layers=3
)


def abstract(mesh, config=CONFIG):
  partitioner = Partitioner(mesh)
  model = models.build("bert", config.with_run(vocab_multiple=partitioner.vocab_multiple), "masked_lm")
  boxed = abstract_state(model, OPTIMIZER)
  return partitioner, model, boxed, partitioner.shardings(boxed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("store")
  partitioner, model, _, shardings = abstract({"fsdp": 8})

  def draw(key):
    state = new_state(nn.meta.unbox(model.init(key, models.dummy_ids(model))["params"]), OPTIMIZER)
    return state.replace(optimizer=jax.tree.map(lambda x: x + 1, state.optimizer))

  state = partitioner.jit(draw, out_shardings=shardings)(jax.random.key(0))
  store = checkpoints.CheckpointStore(folder, keep=2)
  for step in (1, 2, 3):
    store.save(step, state.params, state.optimizer, {"step": step})
  store.close()
  return folder, jax.tree.map(np.asarray, state)


def test_keeps_the_newest(saved):
  folder, _ = saved
  assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "3"]
  store = checkpoints.CheckpointStore(folder)
  assert store.latest_step() == 3 and store.progress(3) == {"step": 3}
  with pytest.raises(UserError, match=r"no checkpoint of step 1; it has \[2, 3\]"):
    checkpoints.existing_step(store, 1)


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_restores_on_any_mesh(saved, mesh):
  folder, state = saved
  _, _, boxed, shardings = abstract(mesh)
  store = checkpoints.CheckpointStore(folder)
  for item in ("params", "optimizer"):
    want, got = getattr(state, item), store.restore(3, item, getattr(boxed, item), getattr(shardings, item))
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for (path, one), two, sharding in zip(
      jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), jax.tree.leaves(getattr(shardings, item))
    ):
      assert two.sharding.is_equivalent_to(sharding, two.ndim), path
      # Vocabularies are padded to the mesh: 104 rows for eight parts, 101 for one.
      two = np.asarray(two)
      shared = tuple(slice(0, min(a, b)) for a, b in zip(one.shape, two.shape))
      np.testing.assert_array_equal(one[shared], two[shared], err_msg=str(path))
  rows = {"fsdp": 104, "data": 101}[next(iter(mesh))]
  assert store.restore(3, "params", boxed.params, shardings.params)["token_embed"]["embedding"].shape[0] == rows


def test_what_does_not_fit_is_named_in_one_error(saved):
  folder, _ = saved
  other = dataclasses.replace(CONFIG, mlp_dim=128, token_types=0)
  _, _, boxed, shardings = abstract({"fsdp": 8}, other)
  with pytest.raises(UserError) as caught:
    checkpoints.CheckpointStore(folder).restore(3, "params", boxed.params, shardings.params)
  text = str(caught.value)
  assert "- encoder/layers/mlp/wi/kernel: has shape (3, 32, 64), the model wants (3, 32, 128)" in text
  assert "- encoder/layers/mlp/wo/kernel" in text and "+ token_type_embed/embedding (2, 32): unknown" in text
  assert len(text.splitlines()) == 5


def test_layouts_undo_each_other(saved):
  params = saved[1].params
  unrolled = checkpoints.to_layout(params, scan_layers=False)
  assert sorted(unrolled["encoder"]) == ["layers_0", "layers_1", "layers_2"]
  np.testing.assert_array_equal(
    unrolled["encoder"]["layers_1"]["mlp"]["wi"]["kernel"], params["encoder"]["layers"]["mlp"]["wi"]["kernel"][1]
  )
  again = checkpoints.to_layout(unrolled, scan_layers=True)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
  assert checkpoints.to_layout(params, scan_layers=True).keys() == params.keys()


METADATA = checkpoints.Metadata(family="bert", head="masked_lm", label_names=("a", "b"))


def test_a_folder_comes_back(saved, tmp_path):
  params = saved[1].params
  (tmp_path / "source").mkdir()
  (tmp_path / "source" / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
  (tmp_path / "source" / "secret.txt").write_text("not a tokenizer's file")
  checkpoints.save_folder(tmp_path / "ours", params, METADATA, {"model_type": "bert"}, tmp_path / "source")
  again, metadata, hf_config = checkpoints.load_folder(tmp_path / "ours")
  assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
  assert metadata == METADATA and hf_config == {"model_type": "bert"}
  assert (tmp_path / "ours" / "vocab.txt").is_file() and not (tmp_path / "ours" / "secret.txt").exists()


def test_nothing_is_overwritten(saved, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(UserError, match="already exists and is not empty"):
    checkpoints.save_folder(tmp_path, saved[1].params, METADATA, {})
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
  ("text", "words"),
  [("{", "not valid JSON"), ("[]", "holds a list, not a JSON object"), ('{"format_version": 9}', "format_version 9")],
)
def test_a_broken_description_is_told(tmp_path, text, words):
  (tmp_path / "metadata.json").write_text(text)
  with pytest.raises(UserError, match=words):
    checkpoints.read_metadata(tmp_path)


def test_fields_of_a_later_version_are_ignored(tmp_path):
  checkpoints.write_metadata(tmp_path, METADATA, {})
  facts = json.loads((tmp_path / "metadata.json").read_text())
  (tmp_path / "metadata.json").write_text(json.dumps({**facts, "mood": "good"}))
  assert checkpoints.read_metadata(tmp_path)[0] == METADATA
