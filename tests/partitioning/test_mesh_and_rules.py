import jax
import pytest

from fsb_jax.errors import UserError
from fsb_jax.partitioning import AXES, Partitioner, make_mesh, merge_rules
from fsb_jax.partitioning.rules import check_parameter


def test_there_are_eight_devices():
  assert jax.device_count() == 8


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    ({}, (8, 1, 1, 1)),
    ({"fsdp": 8}, (1, 8, 1, 1)),
    ({"fsdp": -1}, (1, 8, 1, 1)),
    ({"tensor": 2}, (4, 1, 2, 1)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2, 1)),
    ({"tensor": 2, "sequence": -1}, (1, 1, 2, 4)),
  ],
)
def test_mesh_sizes(sizes, shape):
  mesh = make_mesh(**sizes)
  assert mesh.axis_names == AXES
  assert mesh.devices.shape == shape
  assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ({"data": 3}, "data=3, fsdp=1, tensor=1, sequence=1 needs 3 devices, but there are 8"),
    ({"fsdp": 16}, "needs a multiple of 16 devices, but there are 8"),
    ({"data": -1, "fsdp": -1}, "at most one may be -1"),
    ({"tensor": 0}, "positive whole number"),
    ({"tensor": 2.0}, "positive whole number"),
  ],
)
def test_mesh_that_does_not_fit_says_so(sizes, words):
  with pytest.raises(UserError, match=words):
    make_mesh(**sizes)


def test_unknown_mesh_axis_is_named():
  with pytest.raises(UserError, match="no axis 'model'"):
    Partitioner({"model": 8})


@pytest.mark.parametrize(
  ("rules", "words"),
  [({"embeds": "fsdp"}, "unknown logical axis 'embeds'"), ({"embed": "model"}, "no mesh axis 'model'")],
)
def test_wrong_rules_are_named(rules, words):
  with pytest.raises(UserError, match=words):
    merge_rules(rules)


def test_rules_replace_only_what_they_name():
  merged = merge_rules({"embed": ["fsdp", "sequence"]})
  assert merged["embed"] == ("fsdp", "sequence")
  assert merged["mlp"] == "tensor"


SIZES = {"data": 1, "fsdp": 2, "tensor": 4, "sequence": 1}


@pytest.mark.parametrize(
  ("shape", "names", "rules", "words"),
  [
    ((8, 8), ("embed", "mlp"), {"embed": "tensor"}, r"a/kernel .*embed -> tensor and mlp -> 'tensor'.*two of its axes"),
    ((8, 6), ("embed", "mlp"), {}, r"a/kernel \(8, 6\): rule mlp -> 'tensor' splits 6 into 4 parts"),
    ((8, 8), ("embed", "flavour"), {}, "a/kernel has a logical axis 'flavour' that no partitioning rule covers"),
  ],
)
def test_parameters_that_cannot_be_split_are_named_with_their_rule(shape, names, rules, words):
  with pytest.raises(UserError, match=words):
    check_parameter("a/kernel", shape, names, merge_rules(rules), SIZES)


def test_parameters_that_can_be_split_pass():
  check_parameter("a/kernel", (8, 8), ("embed", "mlp"), merge_rules({}), SIZES)
  # Two axes on one mesh axis are harmless where that mesh axis has one part.
  check_parameter("a/kernel", (8, 8), ("embed", "mlp"), merge_rules({"embed": "sequence", "mlp": "sequence"}), SIZES)


def test_batches_that_cannot_be_split_say_so():
  partitioner = Partitioner({"data": 2, "fsdp": 2, "sequence": 2})
  partitioner.validate_batch(8, (8, 16))
  with pytest.raises(UserError, match="BATCH_SIZE 6 cannot be split over 4 parts"):
    partitioner.validate_batch(6, (8,))
  with pytest.raises(UserError, match="length 9 cannot be split over 2 parts"):
    partitioner.validate_batch(8, (8, 9))
