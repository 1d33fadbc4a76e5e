"""The tasks of CLUE 1.1, and CMNLI of CLUE 1.0, read from the files that CLUE published.

Xu et al., "CLUE: A Chinese Language Understanding Evaluation Benchmark", COLING 2020;
https://github.com/CLUEbenchmark/CLUE.
"""

import functools
from pathlib import Path

from fsb_jax.tasks import labels
from fsb_jax.tasks.examples import chid_example, choice_example, keywords_of, marked_text, squad_example
from fsb_jax.tasks.files import read_table
from fsb_jax.tasks.kinds import MULTIPLE_CHOICE, READING, RowsTask, rows_task
from fsb_jax.tasks.published import Published, StandIn
from fsb_jax.tasks.readers import read_c3, read_chid, read_squad
from fsb_jax.tasks.text_task import Split, published_text_task

PAIR_COLUMNS = ("sentence1", "sentence2", "label")


def _files(name: str, **files) -> Published:
  archive = f"https://storage.googleapis.com/cluebenchmark/tasks/{name}_public.zip"
  files = {"train": f"{name}/train.json", "validation": f"{name}/dev.json", "test": f"{name}/test.json", **files}
  return Published(
    files, f"{archive} (CLUE, https://github.com/CLUEbenchmark/CLUE)", {f"{name}/{name}_public.zip": archive}
  )


_OCNLI_PARTS = tuple(
  StandIn(f"ocnli/train.{size}.json", f"the {size} part of the 50k training rows") for size in ("30k", "10k")
)

_TEXT_TASKS = (
  published_text_task(
    "tnews",
    "news titles of Toutiao, by subject",
    _files(
      "tnews",
      validation=(
        "tnews/dev.json", StandIn("tnews/test.json", "the labelled file that this archive calls test.json")
      ),
      test=("tnews/test1.1.json", "tnews/test.json"),
    ),
    labels.TNEWS,
    "sentence",
  ),
  published_text_task(
    "afqmc",
    "pairs of questions to Ant Financial: the same meaning or not",
    _files("afqmc"), labels.YES_NO, "sentence1", "sentence2",
  ),
  published_text_task(
    "ocnli",
    "premise and hypothesis, written in Chinese",
    _files("ocnli", train=("ocnli/train.50k.json", *_OCNLI_PARTS)),
    labels.INFERENCE, "sentence1", "sentence2", dropped_labels=("-",),
  ),
  published_text_task(
    "iflytek",
    "descriptions of apps, by kind of app",
    # DataCLUE's files share 151 rows with FewCLUE's train_0, so validation stays within FewCLUE, which shares none.
    _files(
      "iflytek",
      train=(
        "iflytek/train.json",
        StandIn("fewclue/iflytek/train_0.json", "FewCLUE's few-shot train_0, not the 12,133 rows"),
      ),
      validation=(
        "iflytek/dev.json", StandIn("fewclue/iflytek/test_public.json", "FewCLUE's test_public, not CLUE's dev")
      ),
    ),
    labels.IFLYTEK,
    "sentence",
  ),
  published_text_task(
    "cmnli",
    "premise and hypothesis, translated from English",
    _files(
      "cmnli", **{
        split: (f"cmnli/{name}.json", f"cmnli/{name}.tsv", f"cmnli/{name}.txt")
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
      }
    ),
    labels.INFERENCE, "sentence1", "sentence2", dropped_labels=("-",),
    rows=functools.partial(read_table, columns=PAIR_COLUMNS),
  ),
  published_text_task(
    "cluewsc2020",
    "whether a pronoun, between [ ], stands for a noun, between _ _",
    _files("cluewsc2020", **{"test1.0": "cluewsc2020/test1.0.json"}),
    labels.TRUTH, marked_text, unlabelled=("test", "test1.0"),
  ),
  published_text_task(
    "csl",
    "keywords and a paper's abstract: whether all of them are its own",
    _files("csl"), labels.YES_NO, keywords_of, "abst",
  ),
)


def _chid() -> RowsTask:
  published = _files(
    "chid",
    test=("chid/test1.1.json", "chid/test.json"),
    **{"test1.0": ("chid/test1.0.json", "chid/test.json")},
  )
  answers = Published(
    {"train": "chid/train_answer.json", "validation": "chid/dev_answer.json"}, published.source, published.addresses
  )

  def read(split: str, data_dir: Path | None) -> Split:
    found = answers.locate("chid", split, data_dir) if split in answers.splits else [None]
    task = rows_task(
      "chid", "", MULTIPLE_CHOICE, published, functools.partial(read_chid, answers=found[0]), chid_example,
      submitted=("test", "test1.0"),
    )
    return task.read(split, data_dir)

  return RowsTask(
    "chid", "passages with a blank and ten idioms for it", MULTIPLE_CHOICE, published.splits, read,
    published=published,
  )


TASKS = (
  *_TEXT_TASKS,
  rows_task(
    "cmrc2018",
    "questions about paragraphs of Wikipedia",
    READING,
    _files("cmrc2018", trial="cmrc2018/trial.json"),
    read_squad,
    squad_example,
  ),
  _chid(),
  rows_task(
    "c3",
    "questions about dialogues and texts for learners of Chinese, with up to four answers to choose from",
    MULTIPLE_CHOICE,
    _files(
      "c3",
      train=["c3/d-train.json", "c3/m-train.json"],
      validation=["c3/d-dev.json", "c3/m-dev.json"],
      test="c3/test1.1.json",
      **{"test1.0": "c3/test1.0.json", "test_labelled": ["c3/c3-d-test.json", "c3/c3-m-test.json"]},
    ),
    read_c3,
    choice_example,
    submitted=("test", "test1.0"),
  ),
)
