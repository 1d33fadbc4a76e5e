"""What training makes of groups of tasks, of splits with other names, of rates, and of kinds it does not serve yet."""

import functools
import json
import sys

import pytest
import seqio
from small_tasks import CHARACTERS

from fsb_jax import tasks
from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.training.data import Loader


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return bert_tokenizer_from_characters(CHARACTERS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """FewCLUE's classifications with 4 rows in train_0 and 8 in train_few_all; eprstmt has 64."""
  root = tmp_path_factory.mktemp("data")
  target = {"span1_index": 0, "span1_text": "今", "span2_index": 1, "span2_text": "天"}
  fields = {
    "sentence": "今天天气", "content": "今天天气", "sentence1": "今天", "sentence2": "天气", "abst": "今天",
    "keyword": ["天气"], "text": "今天", "target": target,
  }
  folders = {"tnewsf": "tnews", "iflytekf": "iflytek", "ocnlif": "ocnli", "cslf": "csl", "cluewscf": "cluewsc"}
  first = {"tnewsf": "100", "iflytekf": "0"}
  for member in tasks.info("fewclue").members:
    name = member.split(".")[1]
    folder = root / "fewclue" / folders.get(name, name)
    folder.mkdir(parents=True)
    row = json.dumps({**fields, "label": first.get(name, tasks.info(name).label_names[0])}, ensure_ascii=False) + "\n"
    (folder / "train_0.json").write_text(row * 4, "utf-8")
    (folder / "train_few_all.json").write_text(row * (64 if name == "eprstmt" else 8), "utf-8")
  return str(root)


def counts_of(name, tokenizer, data_dir, split="train", rate=None):
  loader = Loader(name, split, tokenizer, 16, 8, shuffle=True, data_dir=data_dir, mixture_rate=rate)
  return loader, sorted(loader._examples.counts)  # SeqIO has an order of its own


def test_a_group_trains_its_classifications_under_one_head(tokenizer, data_dir, caplog):
  loader, counts = counts_of("fewclue", tokenizer, data_dir)
  assert counts == [8] * 7 + [64] and len(loader.label_names) == 212
  assert "fewclue: left out, being of other kinds: chidf" in caplog.text
  assert counts_of("fewclue", tokenizer, data_dir, "train_0")[1] == [4] * 8


def test_rates_have_a_temperature_and_a_maximum(tokenizer, data_dir):
  rate = functools.partial(seqio.mixing_rate_num_examples, maximum=8)
  assert counts_of("fewclue", tokenizer, data_dir, rate=rate)[1] == [15] * 8
  rate = functools.partial(seqio.mixing_rate_num_examples, temperature=3.0)  # 4 to 2, not 64 to 8
  assert counts_of("fewclue", tokenizer, data_dir, rate=rate)[1] == [13] * 7 + [27]


def test_gin_binds_the_rate():
  from fsb_jax.training import gin_utils
  from fsb_jax.training.train import train

  bindings = [
    "MIXTURE_OR_TASK_NAME='fewclue'", "INITIAL_CHECKPOINT_PATH=None", "MODEL_DIR='x'", "TRAIN_STEPS=1",
    "MIXTURE_RATE=@seqio_utils.mixing_rate_num_examples", "MIXTURE_TEMPERATURE=2.0", "MIXTURE_MAXIMUM=100",
  ]
  _, text = gin_utils.configured(train, ["gin/runs/finetune.gin"], bindings)
  assert "MIXTURE_TEMPERATURE = 2.0" in text and "@seqio_utils.mixing_rate_num_examples" in text


@pytest.mark.parametrize("name", ["c3", "chidf", "stsb"])
def test_kinds_that_are_not_served_yet_say_so_before_a_file_is_read(tokenizer, tmp_path, name):
  with pytest.raises(UserError, match=f"Task {name} .* head, which the loader does not serve yet; it serves"):
    Loader(name, "train", tokenizer, 16, 8, shuffle=True, data_dir=str(tmp_path))


def test_a_corpus_that_is_not_prepared(tokenizer, tmp_path):
  (tmp_path / "tensorflow_datasets").mkdir()
  with pytest.raises(UserError, match="Task wikipedia_zh: TensorFlow Datasets has no wikipedia/.* tfds build"):
    Loader("wikipedia_zh", "train", tokenizer, 16, 8, shuffle=True, data_dir=str(tmp_path))


def _write_corpus(tmp_path, texts):
  import tensorflow as tf
  import tensorflow_datasets as tfds

  tfds.dataset_builders.store_as_tfds_dataset(
    name="wikipedia", config="20230601.zh", version="1.0.0", data_dir=str(tmp_path / "tensorflow_datasets"),
    features=tfds.features.FeaturesDict({"title": tfds.features.Text(), "text": tfds.features.Text()}),
    split_datasets={"train": tf.data.Dataset.from_tensor_slices({"title": texts, "text": texts})},
  )


def test_a_corpus_of_tensorflow_datasets_is_served(tokenizer, tmp_path, monkeypatch):
  import importlib.resources.abc

  texts = ["今天天气真好", "不知道今天"]
  with monkeypatch.context() as patched:
    # Writing one, which we never do, asks for the backport of what Python has.
    patched.setitem(sys.modules, "importlib_resources", importlib.resources)
    _write_corpus(tmp_path, texts)
  loader = Loader("wikipedia_zh", "train", tokenizer, 16, 2, shuffle=False, data_dir=str(tmp_path))
  assert loader.head == "masked_lm"
  rows = [loader._examples.tokens.row("input_ids", index) for index in range(2)]
  assert sorted(tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") for row in rows) == sorted(texts)


def test_training_warns_of_what_it_must_not_be_scored_on(tokenizer, tmp_path, capsys):
  from fsb_jax.partitioning import Partitioner
  from fsb_jax.training import train

  (tmp_path / "tnews").mkdir()
  for name in ("train", "dev"):
    row = json.dumps({"sentence": "今天天气", "label": "100"}, ensure_ascii=False)
    (tmp_path / "tnews" / f"{name}.json").write_text(row + "\n", "utf-8")
  options = dict(
    seed=0, train_split="train", validation_split="validation", mixture_rate=None, max_length=16, buckets=1,
    data_dir=str(tmp_path),
  )
  train._loaders("tnews", tokenizer, Partitioner(None, None), 8, 8, **options)
  said = capsys.readouterr().err
  assert "warning: 2,010 of the 2,010 rows of tnewsf test_public are in tnews train: a model trained on these" in said
  assert "1,099 of the 10,000 rows of tnews validation" in said
