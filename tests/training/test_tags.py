"""Named entities: what is served, learned, scored, predicted and exported."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from tiny_run import OTHER, one_device, run

import fsb_jax
from fsb_jax import encodings, models, tasks
from fsb_jax.encodings import TAGGERS
from fsb_jax.errors import UserError
from fsb_jax.tasks.metrics import entity_f1
from fsb_jax.tasks.ner import TASKS
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import describe, evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.loop import Periods
from fsb_jax.training.optimizers import adamw, schedule

DATA_DIR = Path(os.environ.get("FSB_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
NAME, TITLE = ("张王李", "明华强"), ("教经", "授理")
ROWS = {"train": 2000, "dev": 45, "test": 21}
LENGTH = {"inputs": 24}


def sentence(random):
  """Characters with their BMES tags: a name of two or three characters, a title of two, and others."""
  rows = [(character, "O") for character in random.choice(list(OTHER), random.integers(1, 9))]
  name = [random.choice(list(NAME[0])), *random.choice(list(NAME[1]), random.integers(1, 3))]
  for kind, entity in (("NAME", name), ("TITLE", [random.choice(list(part)) for part in TITLE])):
    if random.random() < 0.7:
      place = random.choice([i for i, (_, tag) in enumerate(rows) if tag == "O"])
      tags = ["B", *"M" * (len(entity) - 2), "E"]
      rows[place:place] = [(character, f"{tag}-{kind}") for character, tag in zip(entity, tags)]
  return rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return encodings.bert_tokenizer_from_characters("".join((*NAME, *TITLE, OTHER)), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Résumés as published, a file of MSRA, and CLUENER, whose test split has no labels."""
  folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
  for name in ("resume_ner", "msra_ner", "cluener"):
    (folder / name).mkdir()
  for split, rows in ROWS.items():
    text = "\n\n".join("\n".join(map(" ".join, sentence(random))) for _ in range(rows))
    (folder / "resume_ner" / f"{split}.char.bmes").write_text(text + "\n", "utf-8")
  (folder / "msra_ner" / "dev.tsv").write_text("text_a\tlabel\n张 明 天\tB-PER I-PER O\n地\tO\n", "utf-8")
  overlapping = {"name": {"张明": [[0, 1]]}, "position": {"明教授": [[1, 3]]}}
  lines = [{"text": "张明教授", "label": overlapping}, {"text": "天 王强", "label": {"name": {"王强": [[2, 3]]}}}]
  (folder / "cluener" / "dev.json").write_text("\n".join(map(json.dumps, lines)), "utf-8")
  (folder / "cluener" / "test.json").write_text(json.dumps({"id": 0, "text": "张明"}), "utf-8")
  return folder


def loader_of(tokenizer, data_dir, name="resume", split="validation", max_length=24, **options):
  arguments = {"shuffle": split == "train", "data_dir": data_dir, **options}
  return Loader(name, split, tokenizer, max_length, 8, **arguments)


def gold(loader):
  """The results of a tagger that answers with what it is taught."""
  for batch in loader.batches(0):
    result = {name: batch[name] for name in ("attention_mask", "example_ids")}
    if "labels" in batch:
      result["predictions"] = batch["labels"]
    elif "start_positions" in batch:
      result |= {"starts": batch["start_positions"], "ends": batch["end_positions"]}
    else:
      first = np.arange(batch["input_ids"].shape[1])[:, None]
      last = np.minimum(first + np.arange(encodings.MAX_WIDTH), len(first) - 1)
      pairs = batch["span_labels"][:, first, last]
      result |= {"pairs": pairs, "sureness": np.zeros(pairs.shape)}
    real = batch["weights"] > 0
    yield {name: values[real] for name, values in result.items()}


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("head", TAGGERS)
def test_what_is_served_is_what_is_published(tokenizer, data_dir, head, padding_side, monkeypatch):
  monkeypatch.setattr(tokenizer, "padding_side", padding_side)
  if head == "crf" and padding_side == "left":
    with pytest.raises(UserError, match="a crf head reads rows from their first token"):
      loader_of(tokenizer, data_dir, head=head)
    return
  loader = loader_of(tokenizer, data_dir, head=None if head == "token_classification" else head)
  assert (loader.head, loader.objective, loader.num_examples) == (head, head, 45)
  results = list(gold(loader))
  assert loader.question.scores(results, 0.0) == dict.fromkeys(loader.question.score_names, 1)
  assert loader.question.score_names == ("precision", "recall", "f1")
  for index, found in enumerate(loader.question.predictions(results)):
    tokens = loader.raw(index)["tokens"]
    expected = [
      {"label": label, "start": start, "end": end, "text": "".join(tokens[start:end])}
      for label, start, end in loader.raw(index)["entities"]
    ]
    assert found == {"prediction": expected}


def test_labels_of_padding_and_of_filling_rows_count_for_nothing(tokenizer, data_dir):
  for batch in loader_of(tokenizer, data_dir).batches(0):
    ignored = (batch["attention_mask"] == 0) | (batch["weights"] == 0)[:, None]
    np.testing.assert_array_equal(batch["labels"] == encodings.IGNORED, ignored)


def test_scores_are_seqevals(tokenizer, data_dir):
  loader, random = loader_of(tokenizer, data_dir), np.random.default_rng(0)
  names, first = np.array(loader.label_names), 3
  results, targets, predictions = [], {}, {}
  for result in gold(loader):
    noisy = random.random(result["predictions"].shape) < 0.3
    said = np.where(noisy, random.integers(first, len(names), noisy.shape), result["predictions"])
    for row, (example, mask) in enumerate(zip(result["example_ids"], result["attention_mask"])):
      inner = slice(1, mask.sum() - 1)
      targets[example] = names[result["predictions"][row, inner]].tolist()
      predictions[example] = names[said[row, inner]].tolist()
    results.append({**result, "predictions": said})
  order = sorted(targets)
  tags = [targets[example] for example in order], [predictions[example] for example in order]
  scores = loader.question.scores(results, 0.0)
  assert scores == pytest.approx(
    {"precision": precision_score(*tags), "recall": recall_score(*tags), "f1": f1_score(*tags)}, rel=1e-12
  )
  assert 0.1 < scores["f1"] < 0.9


def test_what_is_cut_off_or_cannot_be_said_is_missed(tokenizer, data_dir, caplog):
  loader = loader_of(tokenizer, data_dir, "cluener")
  assert loader.question.scores(list(gold(loader)), 0.0) == {"precision": 1, "recall": 2 / 3, "f1": 0.8}
  assert not caplog.records
  loader = loader_of(tokenizer, data_dir, "cluener", max_length=4)
  assert "cluener validation: 2 of 3 entities end beyond TASK_FEATURE_LENGTHS of 4 tokens" in caplog.text
  assert loader.question.scores(list(gold(loader)), 0.0)["recall"] < 2 / 3


def test_a_member_of_a_mixture_is_answered_within_its_own_labels(tokenizer, data_dir):
  loader = loader_of(tokenizer, data_dir, "ner.msra")
  names = loader.label_names
  assert len(names) == 4 + 2 * (10 + 3 + 8 + 8)
  start, stop = loader.label_slice
  assert names[start:stop] == tuple(f"{tag}-msra/{kind}" for kind in ("PER", "LOC", "ORG") for tag in "BI")
  (batch,) = loader.batches(0)
  np.testing.assert_array_equal(np.flatnonzero(batch["label_mask"][0]), [3, *range(start, stop)])
  assert loader.question.predictions(list(gold(loader)))[0]["prediction"] == [
    {"label": "msra/PER", "start": 0, "end": 2, "text": "张明"}
  ]
  # Another task's entity, surer than this one's.
  logits = np.zeros((8, batch["labels"].shape[1], len(names)))
  logits[..., names.index("B-resume/NAME")], logits[..., names.index("B-msra/ORG")] = 9, 5
  said = models.said_by_tagger(
    models.TokenClassificationOutput(logits=logits), batch["attention_mask"], batch["label_mask"], 1
  )
  assert {names[label] for label in np.unique(said["predictions"])} == {"B-msra/ORG"}


def test_mistakes_are_told(tokenizer, data_dir, tmp_path):
  for options, message in (
    ({"head": "sequence_classification"}, "a sequence_classification head finds no entities; HEAD may be token_clas"),
    ({"name": "cluener", "split": "test", "shuffle": True}, "published without entities, so there is nothing to learn"),
    ({"cache_dir": str(tmp_path)}, "task resume is read as text, which CACHE_DIR .* does not hold"),
  ):
    with pytest.raises(UserError, match=message):
      loader_of(tokenizer, data_dir, **options)
  (tmp_path / "rows.csv").write_text("text,label\n天,好\n地,坏\n", "utf-8")
  table = tasks.table_task("classes", {"train": tmp_path / "rows.csv"}, "text")
  with pytest.raises(UserError, match="a crf head does not fit task classes, which is for sequence_classification"):
    loader_of(tokenizer, None, table.name, "train", head="crf")


@pytest.fixture(scope="module")
def small_bert(tokenizer, tmp_path_factory):
  """Weights so wide that what stands before a head of several layers reaches its scores."""
  import torch
  import transformers

  torch.manual_seed(0)
  folder = tmp_path_factory.mktemp("small_bert")
  config = transformers.BertConfig(
    vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
    initializer_range=0.15, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  transformers.BertModel(config).save_pretrained(folder)
  return folder


def trained(folder, tokenizer, data_dir, steps, **changes):
  rate = schedule(learning_rate=3e-3, train_steps=steps, warmup_ratio=0.1)
  return run(
    folder, "resume", tokenizer, steps, learning_rate=rate, optimizer=adamw(learning_rate=rate), buckets=(24,),
    feature_lengths=LENGTH, data_dir=str(data_dir), mesh=one_device(),
    periods=Periods(log=20), **changes,
  )  # fmt: skip


@pytest.fixture(scope="module")
def finished(small_bert, tokenizer, data_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "linear"
  return folder, trained(folder, tokenizer, data_dir, 60, model=None, initial_checkpoint_path=str(small_bert))


def test_it_learns(finished):
  _, metrics = finished
  assert metrics["examples"] == 45 and metrics["f1"] > 0.95
  assert describe("resume validation", {**metrics, "f1": 0.5, "precision": 0.25, "recall": 1, "loss": 2}) == (
    "resume validation: f1 0.5000 (precision 0.2500, recall 1.0000), loss 2.0000, 45 examples"
  )


def test_scored_and_asked_afterwards_it_says_the_same(finished, data_dir, tmp_path, monkeypatch):
  folder, metrics = finished
  asked = dict(model=str(folder), task="resume", feature_lengths=LENGTH, batch_size=16, buckets=(24,))
  asked["data_dir"] = str(data_dir)
  assert evaluate(**asked)["resume"] == pytest.approx(metrics, rel=1e-5)
  assert infer(**asked, split="validation", output_file=str(tmp_path / "out.jsonl")) == 45
  lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
  right = found = 0
  for line in lines:
    entities = {tuple(entity) for entity in line["entities"]}
    said = {(entity["label"], entity["start"], entity["end"]) for entity in line["prediction"]}
    right, found = right + len(entities & said), found + len(said)
  assert right / found == pytest.approx(metrics["precision"]) and found > 30
  texts = ["".join(line["tokens"]) for line in lines]
  answer = fsb_jax.pipeline("token_classification", folder)
  assert answer(texts) == [{"entities": line["prediction"]} for line in lines]
  # What is longer than the model reads is told too. The windows are no longer than what it learnt from: what it says of
  # places that it never saw is chance.
  long = OTHER * 30 + "张明" + OTHER[:5]
  answer = fsb_jax.pipeline("token_classification", folder, max_length=12)
  assert answer(long)["entities"] == [
    {"label": "NAME", "start": 30 * len(OTHER), "end": 30 * len(OTHER) + 2, "text": "张明"}
  ]
  with pytest.raises(UserError, match="the model knows 20 labels but task msra has 10"):
    evaluate(**{**asked, "task": "msra"})


def test_transformers_reads_what_is_exported(finished, tokenizer, data_dir, tmp_path):
  import torch
  import transformers
  from convert_torch import cli

  folder, _ = finished
  cli.export_checkpoint(folder, tmp_path / "hub")
  theirs = transformers.BertForTokenClassification.from_pretrained(tmp_path / "hub").eval()
  names = TAGGERS["token_classification"].names(next(task for task in TASKS if task.name == "resume").label_names)
  assert tuple(theirs.config.id2label[label] for label in range(len(names))) == names
  loaded = fsb_jax.from_pretrained(folder)
  for batch in loader_of(tokenizer, data_dir).batches(0):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    ours = np.asarray(loaded.model.apply({"params": loaded.params}, **inputs).logits)
    with torch.no_grad():
      expected = theirs(**{name: torch.from_numpy(values).long() for name, values in inputs.items()}).logits.numpy()
    real = batch["attention_mask"] > 0
    np.testing.assert_allclose(ours[real], expected[real], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(ours.argmax(-1)[real], expected.argmax(-1)[real])
  again = fsb_jax.pipeline("token_classification", tmp_path / "hub")("天张明教授")
  assert again == fsb_jax.pipeline("token_classification", folder)("天张明教授")
  assert [entity["text"] for entity in again["entities"]] == ["张明", "教授"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["crf", "span", "biaffine"])
def test_every_head_learns_and_answers(head, small_bert, tokenizer, data_dir, tmp_path):
  start = dict(model=None, initial_checkpoint_path=str(small_bert))
  metrics = trained(tmp_path / "run", tokenizer, data_dir, 300, head=head, **start)
  assert metrics["f1"] > 0.9
  asked = dict(model=str(tmp_path / "run"), task="resume", feature_lengths=LENGTH, batch_size=16, buckets=(24,))
  again = evaluate(**asked, data_dir=str(data_dir))["resume"]
  # A CRF's loss is the difference of two sums over the row, about a hundred each: 1e-5 is their last digit in float32.
  assert again.pop("loss") == pytest.approx(metrics.pop("loss"), rel=1e-5, abs=1e-5)
  assert again == metrics
  question = loader_of(tokenizer, data_dir).question
  answers = fsb_jax.pipeline("token_classification", tmp_path / "run")(question.texts)
  found = [[(each["label"], each["start"], each["end"]) for each in answer["entities"]] for answer in answers]
  assert entity_f1(question.entities, found)["f1"] == pytest.approx(metrics["f1"])


def test_a_crf_is_not_read_from_padding(small_bert, tokenizer, tmp_path):
  folder = shutil.copytree(small_bert, tmp_path / "crf")
  encodings.save_tokenizer(tokenizer, folder)
  names = TAGGERS["crf"].names(("NAME", "TITLE"))
  for file, says in (
    ("config.json", {"architectures": ["BertCrf"], "id2label": dict(enumerate(names))}),
    ("tokenizer_config.json", {"padding_side": "left"}),
  ):
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **says}))
  with pytest.raises(UserError, match="reads rows from their first token, where its tokenizer pads; set padding_side"):
    fsb_jax.pipeline("token_classification", folder)


def test_a_family_without_the_head_says_so(tokenizer, data_dir, tmp_path):
  from fsb_jax.training.start import SizedModel

  with pytest.raises(UserError, match="the xlnet family has no head 'crf'; known: base, "):
    trained(tmp_path / "run", tokenizer, data_dir, 1, head="crf", model=SizedModel("xlnet", "tiny"))


def test_published_sets_are_served_whole():
  vocabulary = DATA_DIR / "tokenizers" / "bert_base_chinese_vocab.txt"
  if not vocabulary.is_file():
    pytest.skip(f"the published sets and the BERT vocabulary are not under {DATA_DIR} (set FSB_DATA_DIR)")
  from transformers import BertTokenizerFast

  bert = BertTokenizerFast(vocab_file=str(vocabulary))
  for name, examples, entities in (("cluener", 1343, 3072), ("resume", 463, 1497), ("ner.cluener", 1343, 3072)):
    loader = loader_of(bert, DATA_DIR, name, max_length=512)
    assert loader.num_examples == examples and sum(map(len, loader.question.entities)) == entities
    assert loader.question.scores(list(gold(loader)), 0.0) == {"precision": 1, "recall": 1, "f1": 1}
