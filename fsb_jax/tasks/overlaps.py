"""Sets whose rows stand in one another, as measured on the published files."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Rows of an evaluation split that a training split holds.

  Attributes:
    trained: task and split that a model may be trained on.
    scored: task and split that it may be scored on.
    rows: how many rows of `scored` are in `trained`.
    of: how many rows `scored` has.
    copy: the copy of the training split that holds them, where others do not.
  """

  trained: tuple[str, str]
  scored: tuple[str, str]
  rows: int
  of: int
  copy: str = ""

  def __str__(self) -> str:
    scored, trained = " ".join(self.scored), " ".join(self.trained) + (f" (if it is {self.copy})" if self.copy else "")
    return (
      f"{self.rows:,} of the {self.of:,} rows of {scored} are in {trained}: a model trained on these has seen their "
      "answers"
    )


OVERLAPS = (
  Overlap(("tnews", "train"), ("tnewsf", "test_public"), 2010, 2010),
  Overlap(("tnews", "train"), ("tnews", "validation"), 1099, 10000),
  Overlap(("csl", "validation"), ("cslf", "test_public"), 2838, 2838),
  Overlap(("ocnli", "validation"), ("ocnlif", "test_public"), 2520, 2520),
  Overlap(("cluewsc2020", "train"), ("cluewscf", "test_public"), 842, 976),
  Overlap(("cluewsc2020", "validation"), ("cluewscf", "test_public"), 134, 976),
  Overlap(("msra", "train"), ("msra", "test"), 4269, 4636, "dh_msra"),
  Overlap(("msra", "train"), ("msra", "validation"), 2143, 2318, "dh_msra"),
)


def overlaps(task: str, split: str, scored: tuple[str, str] | None = None) -> list[Overlap]:
  """What a model trained on this split of a task, or of a member of a mixture, must not be scored on.

  Args:
    task: what it was trained on.
    split: likewise.
    scored: task and split that it is scored on; all where it is None.
  """
  asked = scored and (scored[0].split(".")[-1], scored[1])
  trained = (task.split(".")[-1], split)
  return [each for each in OVERLAPS if each.trained == trained and asked in (None, each.scored)]
