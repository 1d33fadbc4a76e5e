"""Metrics of written answers: exact match and F1 of CMRC 2018, ROUGE and BLEU of Chinese text."""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics_bootstrap import Measured, averages

# What the official script leaves out. It lists the ellipsis as a pair, which no single character equals: … stays.
_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = re.compile("([\u4e00-\u9fa5])")
# n-grams of BLEU go up to four.
_ORDER = 4


def reading_comprehension(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measured:
  """`exact_match` and `f1` of answers to questions, by the official rules of CMRC 2018, which DRCD is scored by too.

  Case and punctuation do not count. F1 is that of the longest run of pieces that prediction and answer share, a piece
  being a Han character or another word. Of several answers the best counts. The words of a piece of other script are
  split by NLTK as one sentence, where the official script looks for sentences in it first.

  Args:
    targets: per question its answers; "" where the passage holds none.
    predictions: per question what was answered, "" for nothing.

  Raises:
    UserError: a question has no answer, or there are not as many predictions as questions.

  Source: https://github.com/ymcui/cmrc2018, squad-style-data/cmrc2018_evaluate.py.
  """
  targets = _references("Exact match and F1", targets, predictions)
  exact, f1 = [], []
  for answers, prediction in zip(targets, predictions):
    said = _without_punctuation(prediction)
    right = [_without_punctuation(answer) for answer in answers]
    exact.append(said in right)
    # That of no answer is 1 or 0, as SQuAD 2.0 has it.
    pairs = zip(answers, map(_pieces, right))
    f1.append(max(_overlap(pieces, _pieces(said)) if answer else not said for answer, pieces in pairs))
  return averages({"exact_match": exact, "f1": f1})


def rouge(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Measured:
  """`rouge1`, `rouge2` and `rougeL`: F-measures of rouge-score, averaged; the pieces are those of `bleu`.

  Args:
    targets: per example its reference, or several, of which the best counts for each score.
    predictions: per example the text written.

  Raises:
    UserError: an example has no reference, or there are not as many predictions as examples.

  Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
  """
  from rouge_score.rouge_scorer import RougeScorer

  names = ["rouge1", "rouge2", "rougeL"]
  scorer = RougeScorer(names, tokenizer=_Pieces())
  pairs = zip(_references("ROUGE", targets, predictions), predictions)
  found = [scorer.score_multi(references, prediction) for references, prediction in pairs]
  return averages({name: [scores[name].fmeasure for scores in found] for name in names})


def bleu(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> Measured:
  """`bleu`: BLEU-4 of all the texts together, by sacrebleu with its Chinese pieces, here between 0 and 1.

  A piece is a Chinese character or sign, or a word of other script.

  Args:
    targets: per example its reference, or several.
    predictions: per example the text written.

  Raises:
    UserError: an example has no reference, or there are not as many predictions as examples.

  Source: Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018.
  """
  from sacrebleu.metrics import BLEU

  # Of a single text only its counts are used, which the effective order does not change.
  scorer = BLEU(tokenize="zh", effective_order=True, max_ngram_order=_ORDER)
  pairs = zip(_references("BLEU", targets, predictions), predictions)
  found = [scorer.sentence_score(prediction, references) for references, prediction in pairs]

  def of_row(row):
    counts = [int(count) for count in row]
    score = BLEU.compute_bleu(counts[:_ORDER], counts[_ORDER:-2], *counts[-2:], max_ngram_order=_ORDER)
    return min(score.score / 100, 1.0)  # sacrebleu rounds a perfect score up

  def of_sums(sums):
    return {"bleu": np.apply_along_axis(of_row, -1, np.asarray(sums))}

  return Measured([[*text.counts, *text.totals, text.sys_len, text.ref_len] for text in found], of_sums)


class _Pieces:
  """sacrebleu's Chinese pieces, as rouge-score asks for them."""

  def __init__(self):
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    self._split = TokenizerZh()

  def tokenize(self, text: str) -> list[str]:
    return self._split(text).split()


def _references(what: str, targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> list[list[str]]:
  if len(targets) != len(predictions):
    raise UserError(f"{what} needs as many predictions as targets; got {len(predictions)} for {len(targets)}.")
  listed = [[target] if isinstance(target, str) else list(target) for target in targets]
  for i, references in enumerate(listed):
    if not references:
      raise UserError(f"{what}: example {i} has no reference to be compared with; leave it out.")
  return listed


def _without_punctuation(text: str) -> str:
  return text.lower().strip().translate(_PUNCTUATION)


def _pieces(text: str) -> list[str]:
  from nltk.tokenize import word_tokenize

  found = []
  for part in filter(None, _HAN.split(text)):
    found += [part] if _HAN.match(part) else word_tokenize(part, preserve_line=True)
  return found


def _overlap(answer: list[str], said: list[str]) -> float:
  matcher = difflib.SequenceMatcher(None, answer, said, autojunk=False)
  return 2 * matcher.find_longest_match().size / max(len(answer) + len(said), 1)
