"""`from_pretrained` over both kinds of folder, every layout, dtype and mesh: the same model each time."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

import fsb_jax
from fsb_jax.errors import UserError

IDS = np.array([[2, 7, 9, 11, 3, 0], [2, 8, 8, 3, 0, 0]], np.int32)
MASK = (IDS > 0).astype(np.int32)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  """A tiny masked language model as a Hub folder, without a tokenizer, and its logits."""
  folder = tmp_path_factory.mktemp("hub")
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=32, initializer_range=0.3,
  )
  model = transformers.BertForMaskedLM(config).eval()
  model.save_pretrained(folder)
  with torch.no_grad():
    logits = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).logits.numpy()
  return folder, logits


@pytest.fixture(scope="module")
def ours(hub, tmp_path_factory):
  from convert_torch import cli

  folder = tmp_path_factory.mktemp("ours") / "model"
  cli.import_checkpoint(hub[0], folder)
  return folder


def logits_of(loaded):
  model, params = loaded
  result = jax.jit(lambda p: model.apply({"params": p}, IDS, MASK).logits)(params)
  return np.asarray(result, np.float32)[..., :101]


@pytest.mark.parametrize(
  ("kind", "options", "tolerance"),
  [
    ("hub", {}, 1e-4),
    ("hub", {"scan_layers": False}, 1e-4),
    ("ours", {}, 1e-4),
    pytest.param("ours", {"scan_layers": False}, 1e-4, marks=pytest.mark.slow),
    ("ours", {"mesh": {"fsdp": 2, "tensor": 4}}, 1e-4),
    pytest.param("hub", {"mesh": {"fsdp": 8}}, 1e-4, marks=pytest.mark.slow),
    ("ours", {"dtype": "bfloat16", "param_dtype": "bfloat16"}, 1.0),
  ],
  ids=str,
)
def test_the_same_model_each_time(hub, ours, kind, options, tolerance):
  folder, want = hub
  with jax.default_matmul_precision("highest"):
    loaded = fsb_jax.from_pretrained(folder if kind == "hub" else ours, **options)
    assert loaded.metadata.head == "masked_lm" and loaded.tokenizer is None and loaded.newly_initialised == ()
    assert np.abs(logits_of(loaded) - want).max() < tolerance
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)}
  assert dtypes == {options.get("param_dtype", "float32")}
  if "mesh" in options:
    kernel = loaded.params["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes * 8 == kernel.nbytes


@pytest.mark.parametrize("kind", ["hub", "ours"])
def test_a_head_the_folder_lacks_is_drawn_and_listed(hub, ours, kind):
  folder = hub[0] if kind == "hub" else ours
  loaded = fsb_jax.from_pretrained(folder, head="sequence_classification", num_labels=5)
  assert sorted(loaded.newly_initialised) == [
    "head/classifier/bias", "head/classifier/kernel", "pooler/bias", "pooler/kernel"
  ]
  kernel = np.asarray(loaded.params["head"]["classifier"]["kernel"])
  assert kernel.shape == (32, 5) and 0.1 < kernel.std() < 0.6
  body = fsb_jax.from_pretrained(folder).params
  np.testing.assert_array_equal(loaded.params["token_embed"]["embedding"], body["token_embed"]["embedding"])


def test_a_body_of_another_shape_is_refused(ours, tmp_path):
  import json
  import shutil

  shutil.copytree(ours, tmp_path / "copy")
  config = json.loads((tmp_path / "copy" / "config.json").read_text())
  (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
  with pytest.raises(UserError, match=r"config\.json is not as it was written .* call fsb_jax\.checkpoints\.reseal"):
    fsb_jax.from_pretrained(tmp_path / "copy")
  fsb_jax.checkpoints.reseal(tmp_path / "copy")
  with pytest.raises(UserError, match=r"encoder/layers/mlp/wi/kernel \(3, 32, 128\): the folder has \(3, 32, 64\)"):
    fsb_jax.from_pretrained(tmp_path / "copy")


def test_generation_config_is_read(ours, tmp_path):
  import shutil

  shutil.copytree(ours, tmp_path / "copy")
  (tmp_path / "copy" / "generation_config.json").write_text('{"max_length": 5}')
  assert fsb_jax.from_pretrained(tmp_path / "copy").generation_config == {"max_length": 5}
  assert fsb_jax.from_pretrained(ours).generation_config is None


def test_what_config_json_says_of_generation_is_read_where_there_is_nothing_else(tmp_path):
  import transformers

  config = transformers.GPT2Config(
    vocab_size=20, n_embd=8, n_layer=1, n_head=2, eos_token_id=3, pad_token_id=0, bos_token_id=2
  )
  transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
  (tmp_path / "generation_config.json").unlink()
  read = fsb_jax.from_pretrained(tmp_path).generation_config
  assert (read["eos_token_id"], read["pad_token_id"]) == (3, 0)
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5, "max_length": 9}')
  read = fsb_jax.from_pretrained(tmp_path).generation_config
  assert (read["eos_token_id"], read["pad_token_id"], read["max_length"]) == (5, 0, 9)
  (tmp_path / "generation_config.json").write_text("[")
  with pytest.raises(UserError, match="generation_config.json is no JSON object"):
    fsb_jax.from_pretrained(tmp_path)


def test_a_hub_id_is_downloaded(hub, monkeypatch):
  import huggingface_hub

  asked = []
  monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: ["model.safetensors", "pytorch_model.bin"])
  monkeypatch.setattr(
    huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns)) or hub[0]
  )
  assert fsb_jax.from_pretrained("IDEA-CCNL/Erlangshen-Tiny").metadata.family == "bert"
  assert asked[0][0] == "IDEA-CCNL/Erlangshen-Tiny"
  assert "*.safetensors" in asked[0][1] and "*.bin" not in asked[0][1]
  monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: ["pytorch_model.bin"])
  fsb_jax.from_pretrained("IDEA-CCNL/Erlangshen-Tiny")
  assert "*.bin" in asked[1][1]


def test_no_network_is_one_sentence(monkeypatch):
  import huggingface_hub

  def unreachable(*_, **__):
    raise OSError("no route to the Hub\nand a long story")

  monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
  with pytest.raises(UserError, match="IDEA-CCNL/Erlangshen-Tiny is no folder here.*no route to the Hub$"):
    fsb_jax.from_pretrained("IDEA-CCNL/Erlangshen-Tiny")


def test_a_file_is_no_folder(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match="is a file and no .gguf; give the folder"):
    fsb_jax.from_pretrained(tmp_path / "model.safetensors")


def test_pipeline_mistakes(hub):
  with pytest.raises(UserError, match="unknown pipeline 'translation'"):
    fsb_jax.pipeline("translation", hub[0])
  with pytest.raises(UserError, match="has a masked_lm head"):
    fsb_jax.pipeline("text_classification", hub[0])


@pytest.mark.parametrize(
  "says",
  [{"num_labels": 1}, {"problem_type": "regression"}, {"num_labels": 3, "problem_type": "multi_label_classification"}],
  ids=str,
)
def test_scores_that_are_no_classes_are_not_made_a_label(says, tmp_path):
  config = transformers.BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **says
  )
  transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
  with pytest.raises(UserError, match="does not answer with one of several labels .* take its logits from"):
    fsb_jax.pipeline("text_classification", tmp_path)


@pytest.fixture(scope="module")
def short_bert(tmp_path_factory):
  """The body of a model with 8 positions and a tokenizer, from which heads are drawn afresh."""
  from fsb_jax.encodings import bert_tokenizer_from_characters

  folder = tmp_path_factory.mktemp("short")
  config = transformers.BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
    max_position_embeddings=8, id2label={0: "O", 1: "B-PER", 2: "I-PER"},
  )  # fmt: skip
  transformers.BertForMaskedLM(config).save_pretrained(folder)
  bert_tokenizer_from_characters("天地是非", folder)
  return folder


@pytest.mark.parametrize("task", ["text_classification", "token_classification", "question_answering", "zero_shot"])
def test_rows_longer_than_the_model_reads_are_refused_before_a_text_is(task, short_bert):
  head = {} if task == "zero_shot" else {"head": task.replace("text", "sequence")}
  with pytest.raises(UserError, match="max_length=9 is more tokens than the model has positions for; give 8 at most"):
    fsb_jax.pipeline(task, short_bert, max_length=9, **head)
  with pytest.raises(UserError, match="batch_size 0 must be at least 1"):
    fsb_jax.pipeline(task, short_bert, batch_size=0, **head)


@pytest.mark.parametrize(
  ("kind", "scan_layers"),
  [
    ("hub", True), ("ours", False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("hub", False), ("ours", True))),
  ],
)  # fmt: skip
def test_another_number_of_tokens(hub, ours, kind, scan_layers):
  folder, expected = (hub[0] if kind == "hub" else ours), hub[1]
  grown = fsb_jax.from_pretrained(folder, vocab_size=105, scan_layers=scan_layers, mesh={"tensor": 4})
  assert grown.config.vocab_size == grown.hf_config["vocab_size"] == 105
  assert grown.params["token_embed"]["embedding"].shape == (108, 32)
  model, params = grown
  logits = np.asarray(jax.jit(lambda p: model.apply({"params": p}, IDS, MASK).logits)(params))
  np.testing.assert_allclose(logits[..., :101], expected, atol=1e-4)
  # A new token scores as the average one does.
  np.testing.assert_allclose(logits[..., 101:105], expected.mean(-1, keepdims=True).repeat(4, -1), atol=1e-4)
  assert np.isneginf(logits[..., 105:]).all()
  model, params = fsb_jax.from_pretrained(folder, vocab_size=50, scan_layers=scan_layers)
  logits = np.asarray(jax.jit(lambda p: model.apply({"params": p}, IDS, MASK).logits)(params))
  np.testing.assert_allclose(logits, expected[..., :50], atol=1e-4)


def test_no_tokens_at_all(hub):
  with pytest.raises(UserError, match="vocab_size=-1 leaves no token"):
    fsb_jax.from_pretrained(hub[0], vocab_size=-1)


def test_a_tokenizer_that_pads_on_the_left(tmp_path):
  from fsb_jax.encodings import bert_tokenizer_from_characters

  torch.manual_seed(0)
  config = transformers.XLNetConfig(vocab_size=12, d_model=32, n_layer=2, n_head=4, d_inner=64, initializer_range=0.3)
  transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
  bert_tokenizer_from_characters("天地玄黄", tmp_path)
  classify = fsb_jax.pipeline("text_classification", tmp_path)
  classify.tokenizer.padding_side = "left"
  # The last token speaks for the text, and is no padding beside a longer one.
  alone = [classify(text) for text in ("天", "天地玄黄天地玄黄")]
  for answer, expected in zip(classify(["天", "天地玄黄天地玄黄"]), alone):
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-6) and answer["label"] == expected["label"]


def test_new_tokens_in_16_bits_are_the_mean_too():
  from fsb_jax import models

  config = models.sized("bert", "tiny", param_dtype="bfloat16")
  boxed = models.abstract_params(models.build("bert", config))
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), nn.meta.unbox(boxed))
  new = models.abstract_params(models.build("bert", dataclasses.replace(config, vocab_size=config.vocab_size + 5)))
  resized = models.resize_vocabulary(ones, new, config.vocab_size)
  assert (np.asarray(resized["token_embed"]["embedding"][-5:], np.float32) == 1).all()


def test_models_of_ngrams_are_not_fed_tokens_alone():
  from fsb_jax import models
  from fsb_jax.pretrained import require_readable

  with pytest.raises(UserError, match="the model reads n-grams beside its tokens"):
    require_readable((), models.build("zen1", models.sized("zen1", "tiny")))


@pytest.mark.parametrize("family", ["longformer", "erlangshen_longformer"])
def test_a_model_that_looks_for_where_questions_end_knows_the_separator(family, tmp_path):
  from fsb_jax import encodings, models
  from fsb_jax.pretrained import require_readable
  from fsb_jax.training.start import SizedModel, start_from

  tokenizer = encodings.bert_tokenizer_from_characters("天地人", tmp_path)
  assert tokenizer.sep_token_id == 3
  config = dataclasses.replace(models.sized(family, "tiny"), vocab_size=len(tokenizer))
  require_readable(tokenizer, models.build(family, config, "masked_lm"))
  for head in ("question_answering", "multiple_choice"):
    with pytest.raises(UserError, match="says sep_token_id=2, and the tokenizer's is 3: .* set sep_token_id=3 in"):
      require_readable(tokenizer, models.build(family, config, head))
  drawn = start_from(
    checkpoint=None, model=SizedModel(family, "tiny"), tokenizer=tokenizer, head="question_answering",
    label_names=None, run=models.Run(),
  )  # fmt: skip
  assert drawn.config.window.separator == drawn.hf_config["sep_token_id"] == 3


def test_a_text_encoder_and_a_tokenizer_of_more_tokens_are_told_apart():
  from fsb_jax import models
  from fsb_jax.pipelines.prompt_encoder import PromptEncoder

  model = models.build("clip_text", models.sized("clip_text", "tiny"))
  tokens = range(model.config.vocab_size + 1)
  with pytest.raises(UserError, match=f"{len(tokens)} tokens but the model's vocabulary only .*not belong together"):
    PromptEncoder(tokens, model, {}, penultimate=False, partitioner=None)
