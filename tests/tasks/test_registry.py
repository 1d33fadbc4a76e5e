import dataclasses
import subprocess
import sys

import pytest

from fsb_jax import tasks
from fsb_jax.errors import UserError
from fsb_jax.tasks.registry import known_tasks


def test_members_share_one_head_without_overlap():
  mixture = tasks.info("clue_classification")
  assert mixture.label_slice == (0, 139) and len(mixture.label_names) == 139
  covered = []
  for member in mixture.members:
    found = tasks.info(member)
    start, stop = found.label_slice
    single = tasks.info(member.split(".")[1])
    assert found.label_names == mixture.label_names
    assert found.label_names[start:stop] == tuple(f"{single.name}/{label}" for label in single.label_names)
    assert found.has_pair == single.has_pair
    covered += range(start, stop)
  assert sorted(covered) == list(range(139))


def test_describe_and_unknown_names():
  assert tasks.info("ocnli").describe() == (
    "ocnli: premise and hypothesis, written in Chinese; pairs of texts; 3 labels: contradiction, neutral, entailment"
  )
  assert [tasks.info(name).name for name in tasks.names()] == tasks.names()
  for name in ("absent", "clue_classification.cmnli"):
    with pytest.raises(UserError, match=f"There is no task '{name}'; the known ones are tnews, afqmc"):
      tasks.info(name)


def test_describing_needs_no_tensorflow():
  program = (
    "import sys; from fsb_jax import tasks; tasks.info('tnews')\n"
    "print({'tensorflow', 'torch', 'transformers'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
  assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
  ("names", "words"), [((), "needs at least one label name"), (("a", "b", "a"), "label name 'a' is listed twice")]
)
def test_labels_of_a_task_are_names(names, words):
  with pytest.raises(UserError, match=words):
    dataclasses.replace(known_tasks()["tnews"], label_names=names)


def test_a_task_has_a_name_that_seqio_takes():
  with pytest.raises(UserError, match="letters, digits, _ and . only, not 'my-task'"):
    dataclasses.replace(known_tasks()["tnews"], name="my-task")
