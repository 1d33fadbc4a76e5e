"""Which rows a process serves, and mistakes in starting several (runs of two: training/test_survival)."""

import jax
import numpy as np
import pytest

from fsb_jax.errors import UserError
from fsb_jax.partitioning import Partitioner, multihost


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"coordinator": "127.0.0.1:1234"}, "go together; give all three"),
    ({"process_count": 2, "process_index": 0}, "go together; give all three"),
    ({"coordinator": "somewhere", "process_count": 2, "process_index": 0}, "must be HOST:PORT"),
    ({"coordinator": "127.0.0.1:1234", "process_count": 2, "process_index": 2}, "must be from 0 to 1"),
  ],
  ids=str,
)
def test_mistakes_in_starting_are_told(arguments, words):
  with pytest.raises(UserError, match=words):
    multihost.initialise(**arguments)


def test_the_environment_counts_too(monkeypatch):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES=two must be a whole number"):
    multihost.initialise()
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  with pytest.raises(UserError, match="go together; give all three"):
    multihost.initialise()


def test_alone_nothing_happens():
  multihost.initialise()
  assert not jax.distributed.is_initialized()
  multihost.require_equal("anything", "at all")


class Elsewhere:
  """A partitioner as one of several processes sees it: half of its devices are another's."""

  def __init__(self, mesh, devices):
    self.partitioner, self.devices = Partitioner(mesh), devices

  def host_rows(self, monkeypatch, batch_size):
    every = jax.sharding.NamedSharding.devices_indices_map
    monkeypatch.setattr(
      jax.sharding.NamedSharding, "addressable_devices_indices_map",
      lambda sharding, shape: {d: i for d, i in every(sharding, shape).items() if d.id in self.devices},
    )
    return self.partitioner.host_rows(batch_size).tolist()


@pytest.mark.parametrize(
  ("mesh", "devices", "rows"),
  [
    ({"data": 8}, range(4), range(8)),
    ({"data": 8}, range(4, 8), range(8, 16)),
    ({"fsdp": 2, "tensor": 4}, range(4), range(8)),
    # A tensor axis across hosts: both hold all rows.
    ({"tensor": 8}, range(4), range(16)),
    # Devices of a host that do not lie side by side.
    ({"data": 8}, (0, 7), (0, 1, 14, 15)),
  ],
  ids=str,
)
def test_a_process_serves_the_rows_of_its_devices(mesh, devices, rows, monkeypatch):
  assert Elsewhere(mesh, devices).host_rows(monkeypatch, 16) == list(rows)


def test_one_process_holds_all_rows_and_batches_are_split():
  partitioner = Partitioner({"data": 2, "fsdp": 2, "sequence": 2})
  assert partitioner.host_rows(8).tolist() == list(range(8))
  ids = np.arange(8 * 6).reshape(8, 6)
  batch = partitioner.shard_batch({"input_ids": ids, "labels": ids[:, 0]})
  assert {shard.data.shape for shard in batch["input_ids"].addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(batch["input_ids"], ids)
  np.testing.assert_array_equal(batch["labels"], ids[:, 0])
