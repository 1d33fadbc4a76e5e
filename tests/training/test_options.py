"""Classification as questions with options: what is served, hidden, learned, scored and predicted."""

import json

import numpy as np
import pytest
from tiny_run import BAD, GOOD, OTHER, one_device, run

import fsb_jax
from fsb_jax import encodings, tasks
from fsb_jax.encodings import IGNORED
from fsb_jax.errors import UserError
from fsb_jax.training.data import Loader
from fsb_jax.training.evaluate import evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.loop import Periods
from fsb_jax.training.options import Options
from fsb_jax.training.start import SizedModel

ROWS = {"train": 200, "validation": 45, "test": 21}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  characters = sorted({*GOOD, *BAD, *OTHER, *"是非差评好0123456789新闻属于哪一个类别？下面故事文化"})
  return encodings.bert_tokenizer_from_characters(characters, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """Reviews whose one telling character stands among others; the test split has no labels."""
  folder, random = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
  for split, rows in ROWS.items():
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
      for i in range(rows):
        text = "".join(random.choice(list(OTHER), random.integers(1, 9))) + random.choice(list(BAD if i % 3 else GOOD))
        label = {} if split == "test" else {"label": "差评" if i % 3 else "好评"}
        lines.write(json.dumps({"text": text, **label}, ensure_ascii=False) + "\n")
  files = {split: folder / f"{split}.jsonl" for split in ROWS}
  return tasks.table_task("short_reviews", files, "text", label_names=["差评", "好评"])


def loader_of(table, tokenizer, split="train", **options):
  arguments = {"shuffle": split == "train", "view": "unimc", "buckets": (24, 32), **options}
  return Loader(table.name, split, tokenizer, 40, 16, **arguments)


def rows_by_example(loader, epoch=0):
  return {
    int(batch["example_ids"][row]): {name: values[row] for name, values in batch.items()}
    for batch in loader.batches(epoch)
    for row in np.flatnonzero(batch["weights"])
  }


def test_rows_are_those_of_the_encoding(table, tokenizer):
  loader = loader_of(table, tokenizer, "validation")
  assert (loader.head, loader.objective, loader.label_slice, loader.label_names) == ("masked_lm", "unimc", (0, 2), ())
  served = rows_by_example(loader)
  assert len(served) == 45
  for index, row in served.items():
    fields, length = loader.raw(index), len(row["input_ids"])
    item = {"texta": fields["text"], "choice": ["差评", "好评"], "label": ["差评", "好评"].index(fields["label"])}
    expected = encodings.only_asked_unimc(
      encodings.batch_unimc(
        encodings.encode_unimc(tokenizer, [item], max_length=40), pad_id=tokenizer.pad_token_id, length=length
      )
    )
    for name, values in expected.items():
      np.testing.assert_array_equal(row[name], values[0], err_msg=name)
    assert loader.options(index)[item["label"]] == fields["label"]


def test_training_hides_other_words_in_every_epoch(table, tokenizer):
  plain = rows_by_example(loader_of(table, tokenizer, shuffle=False))
  loader = loader_of(table, tokenizer, seed=3)
  epochs = [rows_by_example(loader, epoch) for epoch in (0, 1)]
  again = rows_by_example(loader_of(table, tokenizer, seed=3), 1)
  hidden = [0, 0]
  for index, untouched in plain.items():
    behind = untouched["masked_lm_positions"][1]  # the last option's mask
    np.testing.assert_array_equal(epochs[1][index]["input_ids"], again[index]["input_ids"])
    for epoch, rows in enumerate(epochs):
      row = rows[index]
      changed = np.flatnonzero(row["input_ids"] != untouched["input_ids"][: len(row["input_ids"])])
      assert (changed > behind).all()
      asked = row["masked_lm_positions"][2:][row["labels"][2:] != IGNORED]
      assert set(changed) <= set(asked.tolist())
      np.testing.assert_array_equal(untouched["input_ids"][asked], row["labels"][2:][row["labels"][2:] != IGNORED])
      assert row["option_label"] == untouched["option_label"] and row["option_mask"][:2].all()
      hidden[epoch] += len(asked)
  assert min(hidden) > 100 and any(
    not np.array_equal(epochs[0][index]["labels"], epochs[1][index]["labels"]) for index in plain
  )


def test_batches_of_a_bucket_have_one_shape(table, tokenizer):
  loader = loader_of(table, tokenizer)
  shapes = {tuple((name, x.shape) for name, x in sorted(batch.items())) for epoch in range(3)
            for batch in loader.batches(epoch)}  # fmt: skip
  assert 1 <= len(shapes) <= 2
  for length in loader.buckets:
    # Two options, and more of the text than is ever hidden.
    assert loader.shapes(length)["masked_lm_positions"][1] <= length
  lengths = {dict(each)["input_ids"][1] for each in shapes}
  assert all(dict(each) == {name: shape for name, shape in loader.shapes(dict(each)["input_ids"][1]).items()}
             for each in shapes) and lengths <= set(loader.buckets)  # fmt: skip


def trained(folder, table, tokenizer, steps, **changes):
  return run(
    folder, table, tokenizer, steps, view="unimc", feature_lengths={"inputs": 40}, buckets=(32,),
    periods=Periods(log=20), model=SizedModel("bert", "tiny"), dropout_rate=0.0, **changes,
  )  # fmt: skip


@pytest.fixture(scope="module")
def finished(table, tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "unimc"
  return folder, trained(folder, table, tokenizer, 60, mesh=one_device())


@pytest.mark.slow
def test_it_learns_to_choose(finished):
  _, metrics = finished
  assert metrics["examples"] == 45 and metrics["majority_baseline"] == pytest.approx(30 / 45)
  assert metrics["accuracy"] == 1.0 and {*metrics} == {"loss", "examples", *Options.score_names}


@pytest.mark.slow
def test_trained_on_a_mesh_as_on_one_device(table, tokenizer, tmp_path):
  meshes = {"one": one_device(), "cube": {"data": 2, "tensor": 2, "sequence": 2}}
  one, cube = (trained(tmp_path / name, table, tokenizer, 8, mesh=mesh) for name, mesh in meshes.items())
  assert cube == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_scored_and_asked_afterwards_it_says_the_same(finished, table, tokenizer, tmp_path):
  folder, metrics = finished
  asked = dict(
    model=str(folder), task=table, feature_lengths={"inputs": 40}, batch_size=16, buckets=(32,), view="unimc"
  )
  scores = evaluate(**asked)["short_reviews"]
  assert scores == pytest.approx(metrics, rel=1e-5)
  assert infer(**asked, split="validation", output_file=str(tmp_path / "out.jsonl")) == 45
  lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
  assert all(line["prediction"] == line["label"] for line in lines)
  # The pipeline reads the run's folder, and answers as the run does.
  answers = fsb_jax.pipeline("zero_shot", folder)([{"texta": x["text"], "choice": ["差评", "好评"]} for x in lines])
  assert [answer["answer"] for answer in answers] == [line["prediction"] for line in lines]
  likeliest = [max(answer["score"].values()) for answer in answers]
  np.testing.assert_allclose(likeliest, [line["score"] for line in lines], atol=1e-5)
  with pytest.raises(UserError, match="this split is published without labels"):
    evaluate(**asked, split="test")
  with pytest.raises(UserError, match="the model has a masked_lm head, .*VIEW='unimc' asks classes of a masked_lm"):
    evaluate(**{**asked, "view": None})
  with pytest.raises(UserError, match="unknown VIEW 'unimcs'; known: 'unimc'"):
    evaluate(**{**asked, "view": "unimcs"})


def test_clues_tasks_have_their_own_words(tokenizer, tmp_path):
  (tmp_path / "tnews").mkdir()
  rows = [{"label": "101", "sentence": "文化好"}, {"label": "100", "sentence": "故事"}]
  (tmp_path / "tnews" / "train.json").write_text("\n".join(map(json.dumps, rows)), "utf-8")
  for name in ("tnews", "clue_classification.tnews"):
    loader = Loader(name, "train", tokenizer, 128, 2, shuffle=False, view="unimc", data_dir=tmp_path)
    (batch,) = loader.batches(0)
    assert loader.label_slice == (0, 15) and loader.options(0)[1] == "文化"
    by_example = dict(zip(batch["example_ids"].tolist(), batch["option_label"].tolist()))
    assert by_example == {0: 1, 1: 0}
    assert "下 面 新 闻 属 于 哪 一 个 类 别 ？" in tokenizer.decode(batch["input_ids"][0])


def test_what_has_no_options_cannot_be_asked(tokenizer, tmp_path):
  (tmp_path / "text.txt").write_text("天地\n你我\n", "utf-8")
  task = tasks.plain_text_task("documents", {"train": tmp_path / "text.txt"}, whole_words=False)
  with pytest.raises(UserError, match="VIEW 'unimc' is for the classifications .* which documents is not"):
    Loader(task.name, "train", tokenizer, 40, 2, shuffle=True, view="unimc")
  (tmp_path / "one.csv").write_text("text,label\n天,好\n", "utf-8")
  task = tasks.table_task("one_label", {"train": tmp_path / "one.csv"}, "text")
  with pytest.raises(UserError, match="example 0 has one option only, '好'"):
    Loader(task.name, "train", tokenizer, 40, 2, shuffle=True, view="unimc")
