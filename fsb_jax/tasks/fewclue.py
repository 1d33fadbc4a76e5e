"""The nine tasks of FewCLUE and ZeroCLUE, with their splits as published.

Xu et al., "FewCLUE: A Chinese Few-shot Learning Evaluation Benchmark", 2021, https://arxiv.org/abs/2107.07498;
https://github.com/CLUEbenchmark/FewCLUE. ZeroCLUE's dev and test files are FewCLUE's dev_0 and test.
"""

from fsb_jax.tasks import labels
from fsb_jax.tasks.examples import chid_example, keywords_of, marked_text
from fsb_jax.tasks.files import read_table
from fsb_jax.tasks.kinds import MULTIPLE_CHOICE, rows_task
from fsb_jax.tasks.published import Published
from fsb_jax.tasks.text_task import published_text_task

_FILES = (
  *(f"{name}_{number}" for name in ("train", "dev") for number in range(5)),
  "train_few_all", "dev_few_all", "test_public", "test", "unlabeled",
)
_UNLABELLED = ("test", "unlabeled")
_ADDRESS = "https://raw.githubusercontent.com/CLUEbenchmark/FewCLUE/main/datasets"


def _files(folder: str) -> Published:
  # CLUEWSC's file of unlabelled rows is published empty.
  files = {
    name: f"fewclue/{folder}/{name}.json" for name in _FILES if (folder, name) != ("cluewsc", "unlabeled")
  }
  addresses = {path: f"{_ADDRESS}/{folder}/{name}.json" for name, path in files.items()}
  files["dev_0"] = (files["dev_0"], f"zeroclue/{folder}/dev.json")
  files["test"] = (files["test"], f"zeroclue/{folder}/test.json")
  # The names that a run asks for where it is not told others: all five parts together.
  named = {"train": files["train_few_all"], "validation": files["dev_few_all"]}
  return Published({**named, **files}, "https://github.com/CLUEbenchmark/FewCLUE (datasets)", addresses)


TASKS = (
  *(
    published_text_task(name, summary, _files(folder), names, *columns, unlabelled=_UNLABELLED)
    for name, folder, summary, names, *columns in (
      ("eprstmt", "eprstmt", "reviews of goods, by sentiment", {"Negative": "Negative", "Positive": "Positive"},
       "sentence"),
      ("csldcp", "csldcp", "abstracts of papers, by discipline", labels.CSLDCP, "content"),
      ("tnewsf", "tnews", "news titles of Toutiao, by subject; few-shot", labels.TNEWS, "sentence"),
      ("iflytekf", "iflytek", "descriptions of apps, by kind of app; few-shot", labels.IFLYTEK, "sentence"),
      ("ocnlif", "ocnli", "premise and hypothesis, written in Chinese; few-shot", labels.INFERENCE, "sentence1",
       "sentence2"),
      ("bustm", "bustm", "pairs of things said to an assistant: the same meaning or not", labels.YES_NO, "sentence1",
       "sentence2"),
      ("cslf", "csl", "keywords and a paper's abstract: whether all of them are its own; few-shot", labels.YES_NO,
       keywords_of, "abst"),
      ("cluewscf", "cluewsc", "whether a pronoun, between [ ], stands for a noun, between _ _; few-shot", labels.TRUTH,
       marked_text),
    )
  ),
  rows_task(
    "chidf", "passages with a blank and seven idioms for it; few-shot", MULTIPLE_CHOICE, _files("chid"), read_table,
    chid_example, submitted=_UNLABELLED,
  ),
)  # fmt: skip
