"""Tasks that HFL scores its models on beside CLUE's, and others of their kind, read from the files as they go round.

Cui et al., "Pre-Training with Whole Word Masking for Chinese BERT", 2021;
https://github.com/ymcui/Chinese-BERT-wwm.
"""

import functools
from collections.abc import Iterator

from fsb_jax.tasks import labels
from fsb_jax.tasks.examples import scored_example, squad_example
from fsb_jax.tasks.files import DataFile, Row, read_table
from fsb_jax.tasks.kinds import READING, SCORED_PAIRS, rows_task
from fsb_jax.tasks.published import Published, tables
from fsb_jax.tasks.readers import read_squad
from fsb_jax.tasks.text_task import published_text_task

_HFL = "https://github.com/ymcui/Chinese-BERT-wwm (data)"
_CSTS = "https://github.com/zejunwang1/CSTS"
_UER = "https://raw.githubusercontent.com/dbiir/UER-py/master/datasets/chnsenticorp"
_FIRST = ("sentence1", "text_a", "premise", "question1")
_SECOND = ("sentence2", "text_b", "hypo", "hypothesis", "question2")
_LABEL = ("label", "gold_label")
# MNLI's Chinese training file writes one of them otherwise.
_INFERENCE = {**labels.INFERENCE, "contradictory": "contradiction"}


def _tables(folder: str, source: str, **addresses) -> Published:
  names = {"train": ("train",), "validation": ("dev", "validation"), "test": ("test",)}
  return Published({split: tables(folder, *each) for split, each in names.items()}, source, addresses)


def _hub(folder: str, repository: str) -> dict[str, str]:
  """The Chinese files of a data set of the Hub in many languages, by where they belong."""
  return {
    f"{folder}/{name}.parquet": f"hf://datasets/{repository}/zh/{name}-00000-of-00001.parquet"
    for name in ("train", "validation", "test")
  }


def _read_pairs(file: DataFile) -> Iterator[Row]:
  return read_table(file, ("sentence1", "sentence2", "label"))


def _read_xnli(file: DataFile) -> Iterator[Row]:
  """The Chinese rows; XNLI's own files hold fifteen languages."""
  return (row for row in _read_pairs(file) if row[1].get("language", "zh") == "zh")


def _pair_task(name: str, summary: str, published: Published, names=labels.YES_NO, rows=_read_pairs, **options):
  return published_text_task(
    name, summary, published, names, _FIRST, _SECOND, label=_LABEL, unlabelled=(), rows=rows, **options
  )


_CHNSENTICORP = _tables("chnsenticorp", "datasets/chnsenticorp of https://github.com/dbiir/UER-py")

TASKS = (
  published_text_task(
    "chnsenticorp",
    "reviews of hotels, books and computers, by sentiment",
    Published(
      _CHNSENTICORP.files,
      _CHNSENTICORP.source,
      {f"chnsenticorp/{name}.tsv": f"{_UER}/{name}.tsv" for name in ("train", "dev", "test")},
    ),
    {"0": "negative", "1": "positive"},
    "text_a",
    unlabelled=(),
  ),
  _pair_task("lcqmc", "pairs of questions: the same meaning or not", _tables("lcqmc", f"{_CSTS} or {_HFL}")),
  _pair_task("bq", "pairs of questions to a bank: the same meaning or not", _tables("bq", f"{_CSTS} or {_HFL}")),
  _pair_task(
    "xnli",
    "premise and hypothesis, translated from English by people",
    Published(
      {
        "train": (*tables("xnli", "train"), "xnli/train.parquet", "xnli/multinli.train.zh.tsv"),
        "validation": (*tables("xnli", "dev", "validation"), "xnli/validation.parquet", "xnli/xnli.dev.tsv"),
        "test": (*tables("xnli", "test"), "xnli/test.parquet", "xnli/xnli.test.tsv"),
      },
      f"https://github.com/facebookresearch/XNLI or {_HFL}",
      _hub("xnli", "facebook/xnli"),
    ),
    _INFERENCE,
    _read_xnli,
    dropped_labels=("-",),
  ),
  published_text_task(
    "thucnews",
    "news articles, by subject",
    Published(
      {
        "train": (*tables("thucnews", "train"), "thucnews/cnews.train.txt"),
        "validation": (*tables("thucnews", "dev"), "thucnews/cnews.val.txt"),
        "test": (*tables("thucnews", "test"), "thucnews/cnews.test.txt"),
      },
      f"{_HFL}; the corpus is http://thuctc.thunlp.org's",
    ),
    labels.THUCNEWS,
    ("text", "text_a", "sentence"),
    unlabelled=(),
    rows=functools.partial(read_table, columns=("label", "text")),
  ),
  published_text_task(
    "thucnews_titles",
    "titles of news articles, by subject",
    _tables(
      "thucnews_titles", "THUCNews/data of https://github.com/649453932/Chinese-Text-Classification-Pytorch"
    ),
    labels.THUCNEWS_TITLES,
    ("text", "text_a", "sentence"),
    unlabelled=(),
    rows=functools.partial(read_table, columns=("text", "label")),
  ),
  rows_task(
    "drcd",
    "questions about paragraphs of Wikipedia, in traditional characters",
    READING,
    Published(
      {
        split: tuple(f"drcd/{stem}.json" for stem in (f"DRCD_{name}", *also))
        for split, name, *also in (
          ("train", "training", "train"), ("validation", "dev", "dev"), ("test", "test", "test"),
        )
      },
      "https://github.com/DRCKnowledgeTeam/DRCD",
      {
        f"drcd/DRCD_{name}.json": f"https://raw.githubusercontent.com/DRCKnowledgeTeam/DRCD/master/DRCD_{name}.json"
        for name in ("training", "dev", "test")
      },
    ),
    read_squad,
    squad_example,
  ),
  rows_task(
    "cjrc",
    "questions about judgements of courts, some of which have no answer, or yes or no",
    READING,
    Published(
      {
        "train": ("cjrc/train.json", "cjrc/train_data.json", "cjrc/big_train_data.json"),
        "validation": ("cjrc/dev.json", "cjrc/dev_ground_truth.json"),
        "test": ("cjrc/test.json", "cjrc/test_ground_truth.json"),
      },
      "https://github.com/china-ai-law-challenge/CAIL2019",
    ),
    read_squad,
    squad_example,
  ),
  published_text_task(
    "qbqtc",
    "what was asked of a search engine and a page's title: how well it answers",
    Published(
      {
        "train": tables("qbqtc", "train"),
        "validation": tables("qbqtc", "dev"),
        "test_public": tables("qbqtc", "test_public"),
        "test": tables("qbqtc", "test"),
      },
      "https://github.com/CLUEbenchmark/QBQTC",
      {
        f"qbqtc/{name}.json": f"https://raw.githubusercontent.com/CLUEbenchmark/QBQTC/main/dataset/{name}.json"
        for name in ("train", "dev", "test_public", "test")
      },
    ),
    {str(number): str(number) for number in range(3)},
    "query",
    "title",
  ),
  _pair_task(
    "paws_x",
    "pairs of sentences with the same words: the same meaning or not",
    Published(
      {
        split: (
          *(path for folder in ("paws_x", "paws-x") for path in tables(folder, *each)), f"paws_x/{split}.parquet"
        )
        for split, each in (
          ("train", ("train", "translated_train")), ("validation", ("dev", "dev_2k")), ("test", ("test", "test_2k")),
        )
      },
      f"https://github.com/google-research-datasets/paws/tree/master/pawsx (zh) or {_CSTS}",
      _hub("paws_x", "google-research-datasets/paws-x"),
    ),
  ),
  rows_task(
    "stsb",
    "pairs of sentences, translated from English: how alike, from 0 to 5",
    SCORED_PAIRS,
    _tables("stsb_zh", _CSTS),
    functools.partial(read_table, columns=("sentence1", "sentence2", "score")),
    scored_example,
    submitted=(),
  ),
)
