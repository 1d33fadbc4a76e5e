"""Named entities in the files as they go round."""

import functools

from fsb_jax.tasks import labels
from fsb_jax.tasks.examples import cluener_example, tagged_example
from fsb_jax.tasks.files import read_json_lines
from fsb_jax.tasks.kinds import TAGGING, RowsTask, rows_task
from fsb_jax.tasks.published import Published, StandIn
from fsb_jax.tasks.readers import read_tags

_CLUENER = "https://storage.googleapis.com/cluebenchmark/tasks/cluener_public.zip"
_RESUME = "https://raw.githubusercontent.com/jiesutd/LatticeLSTM/master/ResumeNER"
_UER = "https://raw.githubusercontent.com/dbiir/UER-py/master/datasets/msra_ner"
_WEIBO = "https://raw.githubusercontent.com/hltcoe/golden-horse/master/data"


_SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def _forms(folder: str, name: str, *more: str | StandIn) -> tuple[str | StandIn, ...]:
  forms = ("char.bmes", "all.bmes", "bmes", "bio", "conll", "txt", "tsv")
  return tuple(f"{folder}/{name}.{form}" for form in forms) + more


def _tagged(name: str, summary: str, names: tuple[str, ...], published: Published) -> RowsTask:
  return rows_task(
    name, summary, TAGGING, published, functools.partial(read_tags, labels=names),
    functools.partial(tagged_example, labels=names), label_names=names, submitted=(),
  )


TASKS = (
  rows_task(
    "cluener",
    "entities of ten kinds in news",
    TAGGING,
    Published(
      {"train": "cluener/train.json", "validation": "cluener/dev.json", "test": "cluener/test.json"},
      f"{_CLUENER} (CLUE, https://github.com/CLUEbenchmark/CLUENER2020)",
      {"cluener/cluener_public.zip": _CLUENER},
    ),
    read_json_lines,
    functools.partial(cluener_example, labels=labels.CLUENER),
    label_names=labels.CLUENER,
  ),
  _tagged(
    "msra",
    "people, places and organisations in news",
    ("PER", "LOC", "ORG"),
    Published(
      {
        "train": _forms(
          "msra_ner", "train",
          StandIn("msra_ner/dh_msra.txt", "dh_msra, which holds most sentences of UER's validation and test files"),
        ),
        "validation": _forms("msra_ner", "dev"),
        "test": _forms("msra_ner", "test"),
      },
      "datasets/msra_ner of https://github.com/dbiir/UER-py",
      {f"msra_ner/{name}.tsv": f"{_UER}/{name}.tsv" for name in ("train", "dev", "test")},
    ),
  ),
  _tagged(
    "weibo",
    "names and mentions of people, places, organisations and states in microblogs",
    tuple(f"{kind}.{form}" for kind in ("PER", "LOC", "ORG", "GPE") for form in ("NAM", "NOM")),
    Published(
      {
        split: _forms("weibo_ner", name, f"weibo_ner/weiboNER_2nd_conll.{name}", f"weibo_ner/weiboNER.conll.{name}")
        for split, name in _SPLITS.items()
      },
      "https://github.com/hltcoe/golden-horse",
      {
        f"weibo_ner/weiboNER_2nd_conll.{name}": f"{_WEIBO}/weiboNER_2nd_conll.{name}"
        for name in ("train", "dev", "test")
      },
    ),
  ),
  _tagged(
    "resume",
    "entities of eight kinds in résumés",
    ("NAME", "CONT", "EDU", "LOC", "ORG", "PRO", "RACE", "TITLE"),
    Published(
      {split: _forms("resume_ner", name) for split, name in _SPLITS.items()},
      "https://github.com/jiesutd/LatticeLSTM (ResumeNER)",
      {f"resume_ner/{name}.char.bmes": f"{_RESUME}/{name}.char.bmes" for name in ("train", "dev", "test")},
    ),
  ),
)
