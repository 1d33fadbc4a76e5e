"""The one sharding layer: a mesh, rules from logical names to mesh axes, and the partitioner that applies them."""

from fsb_jax.partitioning.mesh import AXES, make_mesh
from fsb_jax.partitioning.partitioner import Partitioner
from fsb_jax.partitioning.rules import DEFAULT_RULES, merge_rules

__all__ = ["AXES", "DEFAULT_RULES", "Partitioner", "make_mesh", "merge_rules"]
