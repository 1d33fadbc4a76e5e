"""What the authors of other models report, to stand beside ours.

Best of several runs where they report that too. The split is the one they scored, which need not be the one at hand.
"""

import dataclasses
from collections.abc import Iterator

_WWM = "https://github.com/ymcui/Chinese-BERT-wwm"
_XLNET = "https://github.com/ymcui/Chinese-XLNet"
_ELECTRA = "https://github.com/ymcui/Chinese-ELECTRA"
_FENGSHENBANG = "https://github.com/IDEA-CCNL/Fengshenbang-LM"
_DOCUMENTATION = "https://github.com/IDEA-CCNL/Fengshenbang-doc"


@dataclasses.dataclass(frozen=True)
class Reference:
  """A published score.

  Attributes:
    model: the model's name.
    metric: the score's name, as here.
    value: between 0 and 1.
    split: what was scored; empty where its authors do not say.
    source: where it was published.
  """

  model: str
  metric: str
  value: float
  split: str
  source: str


def references(task: str) -> tuple[Reference, ...]:
  """The published scores of a task, or of `fewclue` and `zeroclue` as a whole; none where none are known."""
  return tuple(row for name, row in _rows() if name == task)


# In percent: exact match and F1 of CMRC 2018 and of DRCD, then accuracies; None where a model was not scored.
_HFL_COLUMNS = (
  ("cmrc2018", "exact_match"), ("cmrc2018", "f1"), ("drcd", "exact_match"), ("drcd", "f1"),
  ("xnli", "accuracy"), ("chnsenticorp", "accuracy"), ("lcqmc", "accuracy"), ("bq", "accuracy"),
)  # fmt: skip
_HFL = (
  (_WWM, "BERT-base", 70.0, 87.0, 82.2, 89.2, 77.8, 95.0, 86.9, 84.8),
  (_WWM, "BERT-wwm", 70.5, 87.4, 82.8, 89.7, 78.2, 95.4, 87.0, 85.2),
  (_WWM, "BERT-wwm-ext", 71.4, 87.7, 83.6, 90.4, 78.7, 95.3, 87.1, 85.3),
  (_WWM, "RoBERTa-wwm-ext", 72.6, 89.4, 85.6, 92.0, 78.8, 95.6, 86.4, 85.0),
  (_WWM, "RoBERTa-wwm-ext-large", 74.2, 90.6, 89.6, 94.5, 81.2, 95.8, 87.0, 85.8),
  (_WWM, "RBT3", 62.2, 81.8, 75.0, 83.9, 72.3, 92.8, 85.1, 83.3),
  (_WWM, "RBTL3", 63.3, 83.4, 77.2, 85.6, 74.0, 94.2, 85.1, 83.6),
  (_XLNET, "XLNet-base", 67.0, 87.2, 83.5, 92.2, None, None, None, None),
  (_XLNET, "XLNet-mid", 69.3, 89.2, 85.5, 93.6, None, 95.4, None, None),
  (_ELECTRA, "ELECTRA-small", 67.8, 83.4, 79.0, 85.8, 73.1, 94.3, 85.9, 82.0),
  (_ELECTRA, "ELECTRA-base", 73.1, 87.1, 86.9, 91.8, 78.4, 94.5, 87.6, 84.5),
  (_ELECTRA, "ELECTRA-large", 73.9, 87.1, 88.8, 93.6, 81.0, 95.3, 87.3, 85.1),
  (_ELECTRA, "ELECTRA-180g-base", 73.1, 88.6, 88.9, 93.7, 79.5, 94.8, 87.1, 84.5),
  (_ELECTRA, "ELECTRA-180g-large", 73.5, 88.5, 90.5, 94.7, 80.4, 95.2, 87.3, 85.4),
)

# Accuracies between 0 and 1.
_CLUE_COLUMNS = ("afqmc", "tnews", "iflytek", "ocnli", "cmnli")
_CLUE = (
  ("Erlangshen-DeBERTa-v2-97M", "dev", 0.7405, 0.571, 0.5977, 0.7568, 0.807),
  ("Erlangshen-DeBERTa-v2-320M", "dev", 0.7498, 0.5817, 0.6042, 0.8022, 0.8301),
  ("Erlangshen-DeBERTa-v2-710M", "dev", 0.7549, 0.5873, 0.6177, 0.8012, 0.8389),
  ("Erlangshen-MegatronBert-3.9B", "", 0.7561, 0.6048, 0.6204, 0.8278, 0.8517),
  ("Erlangshen-ZEN2-345M", "", 0.741, 0.584, 0.599, 0.788, 0.80),
  ("Erlangshen-ZEN2-668M", "", 0.75, 0.60, 0.589, 0.81, 0.82),
  ("Zhouwenwang-Unified-1.3B", "", 0.7463, 0.6036, 0.6288, 0.7654, 0.7741),
)

# Task, metric, model, split, value in percent, source.
_OTHERS = (
  ("cluewsc2020", "accuracy", "Zhouwenwang-Unified-1.3B", "", 88.49, _DOCUMENTATION),
  ("csl", "accuracy", "Zhouwenwang-Unified-1.3B", "", 87.77, _DOCUMENTATION),
  ("tnews", "accuracy", "Erlangshen-ZEN1-224M", "", 56.82, _DOCUMENTATION),
  ("cmnli", "accuracy", "Erlangshen-Roberta-110M-NLI", "", 80.83, _DOCUMENTATION),
  ("cmnli", "accuracy", "Erlangshen-Roberta-330M-NLI", "", 82.25, _DOCUMENTATION),
  ("cmnli", "accuracy", "Erlangshen-MegatronBert-1.3B-NLI", "", 84.52, _DOCUMENTATION),
  ("ocnli", "accuracy", "Erlangshen-Roberta-110M-NLI", "", 78.56, _DOCUMENTATION),
  ("ocnli", "accuracy", "Erlangshen-Roberta-330M-NLI", "", 79.82, _DOCUMENTATION),
  ("ocnli", "accuracy", "Erlangshen-MegatronBert-1.3B-NLI", "", 84.17, _DOCUMENTATION),
  ("bq", "accuracy", "Erlangshen-Roberta-110M-Similarity", "", 85.41, _DOCUMENTATION),
  ("bq", "accuracy", "Erlangshen-Roberta-330M-Similarity", "", 86.21, _DOCUMENTATION),
  ("bq", "accuracy", "Erlangshen-MegatronBert-1.3B-Similarity", "", 86.31, _DOCUMENTATION),
  ("afqmc", "accuracy", "Erlangshen-Roberta-110M-Similarity", "", 81.72, _DOCUMENTATION),
  ("afqmc", "accuracy", "Erlangshen-Roberta-330M-Similarity", "", 93.89, _DOCUMENTATION),
  ("chnsenticorp", "accuracy", "Erlangshen-Roberta-110M-Sentiment", "", 96.61, _DOCUMENTATION),
  ("chnsenticorp", "accuracy", "Erlangshen-Roberta-330M-Sentiment", "", 96.66, _DOCUMENTATION),
  ("chnsenticorp", "accuracy", "Erlangshen-MegatronBert-1.3B-Sentiment", "", 97.0, _DOCUMENTATION),
  ("tnews", "accuracy", "Erlangshen-TCBert-1.3B-Classification", "", 57.41, _FENGSHENBANG),
  ("csldcp", "accuracy", "Erlangshen-TCBert-1.3B-Classification", "", 65.10, _FENGSHENBANG),
  ("iflytek", "accuracy", "Erlangshen-TCBert-1.3B-Classification", "", 53.75, _FENGSHENBANG),
  ("zeroclue", "accuracy", "UniMC-110M", "", 55.7, _FENGSHENBANG),
  ("zeroclue", "accuracy", "UniMC-330M", "", 59.01, _FENGSHENBANG),
  ("zeroclue", "accuracy", "UniMC-1.3B", "", 64.53, _FENGSHENBANG),
  ("zeroclue", "accuracy", "ERNIE-3.0-240B", "", 61.41, _FENGSHENBANG),
  ("zeroclue", "accuracy", "Yuan-13B", "", 56.22, _FENGSHENBANG),
  ("fewclue", "accuracy", "UniMC-110M", "", 62.86, _FENGSHENBANG),
  ("fewclue", "accuracy", "UniMC-330M", "", 66.46, _FENGSHENBANG),
  ("fewclue", "accuracy", "UniMC-1.3B", "", 72.05, _FENGSHENBANG),
  ("weibo", "f1", "Erlangshen-ZEN2-345M", "", 65.26, _DOCUMENTATION),
  ("weibo", "f1", "Erlangshen-ZEN2-668M", "", 70.02, _DOCUMENTATION),
  ("resume", "f1", "Erlangshen-ZEN2-345M", "", 96.03, _DOCUMENTATION),
  ("resume", "f1", "Erlangshen-ZEN2-668M", "", 96.08, _DOCUMENTATION),
  ("msra", "f1", "Erlangshen-ZEN2-345M", "", 95.15, _DOCUMENTATION),
  ("msra", "f1", "Erlangshen-ZEN2-668M", "", 95.13, _DOCUMENTATION),
  ("cluener", "f1", "Erlangshen-ZEN2-345M", "", 79.27, _DOCUMENTATION),
  ("cluener", "f1", "Erlangshen-ZEN2-668M", "", 79.22, _DOCUMENTATION),
  ("cmrc2018", "exact_match", "Randeng-T5-784M-QA-Chinese", "", 57.1, _FENGSHENBANG),
  ("cmrc2018", "f1", "Randeng-T5-784M-QA-Chinese", "", 77.9, _FENGSHENBANG),
  ("cmrc2018", "rougeL", "Randeng-T5-784M-QA-Chinese", "", 82.7, _FENGSHENBANG),
  ("cmrc2018", "bleu", "Randeng-T5-784M-QA-Chinese", "", 61.1, _FENGSHENBANG),
  ("lcsts", "rouge1", "Randeng-Pegasus-238M-Summary-Chinese", "", 43.46, _DOCUMENTATION),
  ("lcsts", "rouge2", "Randeng-Pegasus-238M-Summary-Chinese", "", 29.59, _DOCUMENTATION),
  ("lcsts", "rougeL", "Randeng-Pegasus-238M-Summary-Chinese", "", 39.76, _DOCUMENTATION),
  ("lcsts", "rouge1", "Randeng-Pegasus-523M-Summary-Chinese", "", 48.00, _DOCUMENTATION),
  ("lcsts", "rouge2", "Randeng-Pegasus-523M-Summary-Chinese", "", 35.24, _DOCUMENTATION),
  ("lcsts", "rougeL", "Randeng-Pegasus-523M-Summary-Chinese", "", 44.70, _DOCUMENTATION),
)


def _rows() -> Iterator[tuple[str, Reference]]:
  for source, model, *values in _HFL:
    for (task, metric), value in zip(_HFL_COLUMNS, values, strict=True):
      if value is not None:
        yield task, Reference(model, metric, round(value / 100, 4), "test", source)
  for model, split, *values in _CLUE:
    for task, value in zip(_CLUE_COLUMNS, values, strict=True):
      yield task, Reference(model, "accuracy", value, split, _DOCUMENTATION)
  for task, metric, model, split, value, source in _OTHERS:
    yield task, Reference(model, metric, round(value / 100, 4), split, source)
