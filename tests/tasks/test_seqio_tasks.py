import collections
import pickle
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from fsb_jax import tasks
from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.tasks.registry import known_tasks
from fsb_jax.tasks.text_task import load_split
from fsb_jax.tasks.vocabularies import TokenizerVocabulary

CLUE = ("tnews", "afqmc", "ocnli", "iflytek")


@pytest.fixture(autouse=True)
def registered(tokenizer, clue_dir):
  tasks.register(tokenizer, clue_dir)


def rows_of(name, split, **options):
  options = {"sequence_length": None, "shuffle": False, "num_epochs": 1, **options}
  return list(seqio.get_mixture_or_task(name).get_dataset(split=split, **options).as_numpy_iterator())


@pytest.mark.parametrize("name", CLUE)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pipeline_gives_the_tokenizers_ids(tokenizer, clue_dir, name, split):
  examples = load_split(known_tasks()[name], split, clue_dir).examples
  rows = rows_of(name, split)
  assert len(rows) == len(examples) == seqio.TaskRegistry.get(name).num_input_examples(split)
  for row, example in zip(rows, examples):
    expected = tokenizer(example["text"], example.get("text_pair"))
    assert row["input_ids"].tolist() == expected["input_ids"]
    assert row["token_type_ids"].tolist() == expected["token_type_ids"]
    assert (row["label"], row["id"]) == (example["label"], example["id"])
    assert {row[key].dtype for key in row} == {np.dtype(np.int32)}


def test_sequence_length_truncates_longest_first(tokenizer, clue_dir):
  examples = load_split(known_tasks()["ocnli"], "train", clue_dir).examples
  rows = rows_of("ocnli", "train", sequence_length={"input_ids": 8, "token_type_ids": 8})
  for row, example in zip(rows, examples):
    expected = tokenizer(example["text"], example["text_pair"], truncation="longest_first", max_length=8)
    assert row["input_ids"].tolist() == expected["input_ids"]


def test_shuffling_and_sharding_keep_every_row():
  whole = sorted(row["input_ids"].tolist() for row in rows_of("tnews", "train"))
  shuffled = rows_of("tnews", "train", shuffle=True, seed=1)
  assert sorted(row["input_ids"].tolist() for row in shuffled) == whole
  shards = [rows_of("tnews", "train", shard_info=seqio.ShardInfo(index, 3)) for index in range(3)]
  assert sorted(row["input_ids"].tolist() for shard in shards for row in shard) == whole
  assert max(map(len, shards)) < len(whole)


def test_mixture_offsets_labels_and_keeps_every_row(clue_dir):
  expected = collections.Counter()
  for member in tasks.info("clue_classification").members:
    start, stop = tasks.info(member).label_slice
    single = rows_of(member.split(".")[1], "train")
    offset = rows_of(member, "train")
    assert [row["label"] for row in offset] == [start + row["label"] for row in single]
    assert all(start <= row["label"] < stop for row in offset)
    expected.update((tuple(row["input_ids"].tolist()), int(row["label"])) for row in offset)
    assert all(row["label"] == -1 for row in rows_of(member, "test"))
  mixed = rows_of("clue_classification", "train")
  assert collections.Counter((tuple(row["input_ids"].tolist()), int(row["label"])) for row in mixed) == expected
  mixture = seqio.MixtureRegistry.get("clue_classification")
  assert {task.name.split(".")[1]: mixture.get_rate(task) for task in mixture.tasks} == {
    "tnews": 4,
    "afqmc": 3,
    "ocnli": 3,
    "iflytek": 2,
  }


def test_metric_looks_inside_the_members_slice():
  task = seqio.TaskRegistry.get("clue_classification.afqmc")
  logits = np.zeros(139)
  logits[[0, 16]] = 9.0, 1.0
  assert task.postprocess_fn(logits, example=None, is_target=False) == 16
  assert task.postprocess_fn(np.int32(16), example=None, is_target=True) == 16
  assert task.metric_fns[0]([16], [16]) == {"accuracy": 1.0}


def test_registering_again_replaces(tmp_path, tokenizer, clue_dir):
  before = rows_of("tnews", "train")[0]["input_ids"]
  other = bert_tokenizer_from_characters("故事", tmp_path)
  tasks.register(other, clue_dir)
  after = rows_of("tnews", "train")[0]["input_ids"]
  assert after.tolist() == other("老人讲的小故事")["input_ids"] and after.tolist() != before.tolist()
  assert seqio.TaskRegistry.get("ocnli").output_features["input_ids"].vocabulary == TokenizerVocabulary(other)


def test_data_directory_from_the_environment(tokenizer, clue_dir, monkeypatch):
  monkeypatch.setenv("FSB_DATA_DIR", str(clue_dir))
  tasks.register(tokenizer)
  assert len(rows_of("afqmc", "train")) == 3


def test_vocabulary(tokenizer, tmp_path):
  vocabulary = TokenizerVocabulary(tokenizer)
  ids = tokenizer("他会跑步", add_special_tokens=False)["input_ids"]
  assert vocabulary.encode("他会跑步") == ids
  assert vocabulary.encode_tf(tf.constant("他会跑步")).numpy().tolist() == ids
  dataset = tf.data.Dataset.from_tensors("他会跑步").map(vocabulary.encode_tf)
  assert next(dataset.as_numpy_iterator()).tolist() == ids
  assert vocabulary.decode(ids) == vocabulary.decode([2, *ids, 3, 0]) == "他 会 跑 步"
  assert vocabulary.decode_tf(tf.constant([ids, ids[::-1]])).numpy().tolist() == [
    "他 会 跑 步".encode(),
    "步 跑 会 他".encode(),
  ]
  assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == "他 会 跑 步"
  assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, None, None)
  assert vocabulary.vocab_size == len(tokenizer)
  assert "tokens" in repr(vocabulary)
  copied = pickle.loads(pickle.dumps(vocabulary))
  assert copied.encode("他会跑步") == ids and copied == vocabulary and hash(copied) == hash(vocabulary)
  assert vocabulary != TokenizerVocabulary(bert_tokenizer_from_characters("他会", tmp_path))
  assert vocabulary != seqio.PassThroughVocabulary(5)


def test_a_call_with_truncation_leaves_the_vocabulary_equal(tokenizer):
  copied = pickle.loads(pickle.dumps(tokenizer))
  copied("他会跑步", truncation=True, max_length=3)
  assert TokenizerVocabulary(copied) == TokenizerVocabulary(tokenizer)


def test_tensorflow_gets_no_gpu():
  program = (
    "import tensorflow as tf; calls = []; tf.config.set_visible_devices = lambda *a: calls.append(a)\n"
    "import fsb_jax.tasks.seqio_tasks; print(calls)"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
  assert done.stdout.strip() == "[([], 'GPU')]"
