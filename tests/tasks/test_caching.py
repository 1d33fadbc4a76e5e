"""Caches of tasks: written by Beam where it is installed, and everywhere by a writer that stands in for it."""

import functools
import importlib.util
import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from fsb_jax import tasks
from fsb_jax.encodings import bert_tokenizer_from_characters
from fsb_jax.errors import UserError
from fsb_jax.tasks import caching, registry, seqio_tasks
from fsb_jax.training.data import Loader

DOCUMENTS = [
  "我来到北京清华大学，他毕业于中国科学院。",
  "清华猫大学[SEP]猫猫毕业",
  "\u200b\u200b",  # no token at all
  *("他来北京" * length for length in range(1, 12)),
]


def write_without_beam(task, splits, folder, setup, options):
  """The files that SeqIO's pipeline writes, in a shuffled order as it does."""
  pickle.loads(pickle.dumps(setup))()
  Path(folder).mkdir(parents=True, exist_ok=True)
  for split in splits:
    count = len(task.source.list_shards(split))
    rows = []
    for part in range(count):
      raw = task.source.get_dataset(split, shuffle=False, shard_info=seqio.ShardInfo(part, count))
      rows += list(task.preprocess_precache(raw))
    random.Random(0).shuffle(rows)
    for part in range(count):
      path = f"{seqio.get_cached_tfrecord_prefix(folder, split)}-{part:05d}-of-{count:05d}"
      with tf.io.TFRecordWriter(path) as writer:
        for row in rows[part::count]:
          writer.write(seqio.dict_to_tfexample(row).SerializeToString())
    forms = {name: (value.shape.rank, value.dtype.name) for name, value in rows[0].items()}
    features = {name: {"shape": [None] * rank, "dtype": dtype} for name, (rank, dtype) in forms.items()}
    info, stats = {"num_shards": count, "features": features}, {"examples": len(rows)}
    Path(seqio.get_cached_info_path(folder, split)).write_text(json.dumps(info))
    Path(seqio.get_cached_stats_path(folder, split)).write_text(json.dumps(stats))


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
  """Documents and a table of pairs, declared as `text` and `table`."""
  folder = tmp_path_factory.mktemp("files")
  (folder / "corpus.txt").write_text("\n".join(DOCUMENTS), encoding="utf-8")
  rows = [f"他来北京{'很' * n}\t{'清华大学' * (n % 4)}好\t{n % 3}" for n in range(17)]
  (folder / "pairs.tsv").write_text("\n".join(["text\tother\tlabel", *rows]), encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "_DECLARED", {})
    patch.setattr(seqio_tasks, "_PARTS_OF_DOCUMENTS", 3)
    tasks.plain_text_task("text", {"train": folder / "corpus.txt"})
    tasks.table_task("table", {"train": folder / "pairs.tsv", "validation": folder / "pairs.tsv"}, "text", "other")
    yield folder


@pytest.fixture(scope="module", params=["without Beam", "with Beam"])
def cache(request, own_tasks, tokenizer, clue_dir, tmp_path_factory):
  """A folder with `text`, the training split of `table`, and a mixture's validation splits; and what was said."""
  output = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    if request.param == "without Beam":
      patch.setattr(caching, "require_beam", lambda: None)
      patch.setattr(caching, "_run_pipeline", write_without_beam)
    elif importlib.util.find_spec("apache_beam") is None:
      pytest.skip("Apache Beam is not installed: pip install 'fsb_jax[beam]'")
    said = []
    for task, split in (("text", ()), ("table", ("train",)), ("clue_classification", ("validation",))):
      say = caching.cache_task(task, tokenizer=tokenizer, output=output, splits=split, data_dir=str(clue_dir))
      said += list(say)
    # What is there already is left alone; what is not is added.
    again = caching.cache_task("text", tokenizer=tokenizer, output=output)
    assert list(again) == [f"text: is in {output}"]
    yield output, said, request.param


@pytest.mark.parametrize(
  "name, split, max_length",
  [("text", "train", 12), ("text", "train", 40), ("table", "train", 8), ("table", "train", 64),
   ("clue_classification", "validation", 16)],
)
def test_a_cache_gives_the_same_examples(cache, tokenizer, clue_dir, name, split, max_length):
  options = dict(batch_size=4, seed=3, shuffle=True, data_dir=str(clue_dir))
  without = Loader(name, split, tokenizer, max_length, **options)
  cached = Loader(name, split, tokenizer, max_length, **options, cache_dir=str(cache[0]))
  assert cached.digest == without.digest and cached.num_examples == without.num_examples > 1
  for ours, theirs in zip(cached.batches(1), without.batches(1), strict=True):
    assert ours.keys() == theirs.keys()
    for key in ours:
      np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  for index in range(cached.num_examples):
    assert cached.raw(index) == without.raw(index)


def test_what_is_said(cache):
  output, said, writer = cache
  assert [line.split(",")[0] for line in said] == [
    f"text train: {len(DOCUMENTS)} examples", "table train: 17 examples",
    *(f"clue_classification.{name} validation: 1 examples" for name in ("tnews", "afqmc", "ocnli", "iflytek")),
  ]
  assert all(line.split(" in ")[1].startswith(str(output)) for line in said)
  if writer == "with Beam":
    assert int(said[1].split(", ")[1].split()[0]) == sum(4 + n + 4 * (n % 4) + 1 for n in range(17))


def test_a_cache_that_does_not_fit_is_refused(cache, tokenizer, clue_dir, tmp_path):
  output = cache[0]
  options = dict(batch_size=4, shuffle=False, data_dir=str(clue_dir))
  with pytest.raises(UserError, match="no split 'validation' of table; make it with fsb data cache table --split val"):
    Loader("table", "validation", tokenizer, 8, **options, cache_dir=output)
  with pytest.raises(UserError, match=r"CACHE_DIR .* has no split 'train' of afqmc"):
    Loader("afqmc", "train", tokenizer, 8, **options, cache_dir=output)
  with pytest.raises(UserError, match="VIEW 'unimc' reads texts, which CACHE_DIR"):
    Loader("table", "train", tokenizer, 8, **options, cache_dir=output, view="unimc")
  other = bert_tokenizer_from_characters("他来北京", tmp_path)
  with pytest.raises(UserError, match="table was made with another choice of tokenizer; remove it or name another"):
    Loader("table", "train", other, 8, **options, cache_dir=output)


def test_a_damaged_cache_is_refused(cache, tokenizer, tmp_path):
  output = tmp_path / "cache"
  for path in (cache[0] / "table").iterdir():
    (output / "table").mkdir(parents=True, exist_ok=True)
    (output / "table" / path.name).write_bytes(path.read_bytes())
  (part,) = (output / "table").glob("train.tfrecord-*")
  read = lambda: Loader("table", "train", tokenizer, 8, batch_size=4, shuffle=False, cache_dir=output)  # noqa: E731
  read()
  whole = part.read_bytes()
  part.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
  with pytest.raises(UserError, match="train.tfrecord is damaged; remove the folder and cache table again"):
    read()
  part.unlink()
  with pytest.raises(UserError, match="train.tfrecord has 0 of its 1 files"):
    read()
  (output / "table" / "COMPLETED").write_text("")
  with pytest.raises(UserError, match="COMPLETED does not say what the cache was made with"):
    read()


def test_mistakes_are_told_before_the_work_starts(own_tasks, tokenizer, clue_dir, tmp_path, monkeypatch):
  def cache(task, **options):
    return list(caching.cache_task(task, tokenizer=tokenizer, output=tmp_path, data_dir=str(clue_dir), **options))

  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"not installed \(.*\); pip install 'fsb_jax\[beam\]' brings it"):
      cache("afqmc")
  monkeypatch.setattr(caching, "require_beam", lambda: None)
  monkeypatch.setattr(caching, "_run_pipeline", lambda *arguments: pytest.fail("work was started"))
  with pytest.raises(UserError, match=r"Task cmrc2018 \(reading\) cannot be cached; classifications and"):
    cache("cmrc2018")
  with pytest.raises(UserError, match="Task table has no split 'dev'; its splits are train, validation"):
    cache("table", splits=["dev"])
  with pytest.raises(UserError, match="Task bq found no file for its split 'train'"):
    cache("bq")
  with pytest.raises(UserError, match="Name the task to cache, such as"):
    cache(None)


def test_a_mistake_in_a_file_is_told_as_one(tokenizer, tmp_path, monkeypatch):
  pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'fsb_jax[beam]'")
  monkeypatch.setattr(registry, "_DECLARED", {})
  (tmp_path / "lines.jsonl").write_text('{"text": "他"}\n{"text": "来"}\n{"text": 5}\n', encoding="utf-8")
  tasks.plain_text_task("lines", {"train": tmp_path / "lines.jsonl"})
  with pytest.raises(UserError, match=r"^\S+lines.jsonl, line 3: field 'text' must be text, not int\.$"):
    list(caching.cache_task("lines", tokenizer=tokenizer, output=tmp_path / "cache"))
  assert not (tmp_path / "cache" / "lines" / "COMPLETED").exists()
  with pytest.raises(UserError, match="^Beam: Unexpected pipeline runner: NoRunner"):
    list(caching.cache_task("lines", tokenizer=tokenizer, output=tmp_path / "cache", runner="NoRunner"))


def test_a_worker_elsewhere_learns_the_task(own_tasks, tokenizer):
  declared = tuple(registry.declared_tasks())
  setup = functools.partial(caching._register_on_worker, "text", tokenizer, None, declared)
  tasks.register(tokenizer)
  sent = pickle.dumps(setup)
  seqio.TaskRegistry.remove("text")
  registry._DECLARED.pop("text")
  pickle.loads(sent)()
  task = seqio.TaskRegistry.get("text")
  assert [row["example"] for row in task.source.get_dataset("train", False).as_numpy_iterator()] == list(
    range(len(DOCUMENTS))
  )


def test_parts_of_documents_are_all_of_them(own_tasks, tokenizer):
  tasks.register(tokenizer)
  source = seqio.TaskRegistry.get("text").source
  count = len(source.list_shards("train"))
  assert count > 1
  parts = [source.get_dataset("train", False, shard_info=seqio.ShardInfo(part, count)) for part in range(count)]
  found = {int(row["example"]): row["text"].decode() for part in parts for row in part.as_numpy_iterator()}
  assert [found[number] for number in range(len(DOCUMENTS))] == DOCUMENTS
