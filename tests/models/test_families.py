"""Every size of every family against transformers' own shapes, and what Hub configs say."""

import dataclasses
import math

import jax
import pytest
import torch
from convert_torch.hub import param_shapes
from convert_torch.weights import table
from tiny_hub import DECODERS, ENCODER_DECODERS, FAMILIES, HEADS, LM, ORIGINAL_DECODERS, ORIGINALS, torch_class

from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.models.config import Dropout
from fsb_jax.models.layers import ACTIVATIONS, NormSpec

SIZES = [(name, size) for name, family in models.all_families().items() for size in family.sizes]
# Every day the first of a family stands for its others.
FIRST = {family: size for family, size in reversed(SIZES)}


def of_every_size(families):
  """Cases `family, size`; beyond the first of a family they are slow."""
  return [
    pytest.param(family, size, marks=[] if FIRST[family] == size else pytest.mark.slow)
    for family, size in SIZES
    if family in families
  ]


SHAPE = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
# What a config must say beside it, where transformers' default is something that we lack.
_BART = dict(
  d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48, decoder_layers=3,
  decoder_attention_heads=2, decoder_ffn_dim=40,
)  # fmt: skip
_T5 = dict(d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=6, num_decoder_layers=3)
ALSO = {
  "bart": _BART,
  "deberta_v2": dict(relative_attention=True),
  "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_inner=48),
  "mt5": _T5,
  "pegasus": _BART,
  "t5": _T5,
  "xlnet": dict(d_model=32, n_layer=2, n_head=4, d_inner=48),
  "zen1": dict(word_size=40, num_hidden_word_layers=1),
  "zen2": dict(word_size=40, num_hidden_word_layers=1),
}


def shape(family):
  return {**SHAPE, **ALSO.get(family, {})}


def parameter_count(family, head, config):
  with torch.device("meta"):
    chosen = torch_class(family, head)
    model = chosen(chosen.config_class(**models.family(family).config_to_hf(config)))
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  fixed = [x for name, x in model.named_buffers() if name == "final_logits_bias"]
  # transformers ties T5's whatever a config says.
  apart = [model.lm_head.weight] if not config.tie_embeddings and table(family).keeps_apart and head != "base" else []
  return sum(x.numel() for x in (*trained, *fixed, *apart))


def assert_as_many_parameters(family, size, head):
  config = models.sized(family, size)
  shapes = param_shapes(models.build(family, config, head))
  assert sum(math.prod(shape) for shape in shapes.values()) == parameter_count(family, head, config)


@pytest.mark.parametrize("family,size", [pair for pair in SIZES if pair[0] in FAMILIES])
def test_every_size_has_as_many_parameters_as_in_transformers(family, size):
  assert_as_many_parameters(family, size, "base")


@pytest.mark.parametrize("family,size", of_every_size(FAMILIES))
def test_every_language_model_has_as_many_parameters_as_in_transformers(family, size):
  assert_as_many_parameters(family, size, LM[family])


@pytest.mark.parametrize("family,size", of_every_size(LM))
def test_every_size_runs_in_its_longest_sequence(family, size):
  config = models.sized(family, size)
  model = models.build(family, config)
  length = getattr(config.positions, "usable_length", 512)
  ids = jax.ShapeDtypeStruct((2, length), "int32")
  written = {"decoder_input_ids": ids} if family in ENCODER_DECODERS else {}
  out = jax.eval_shape(model.apply, {"params": models.abstract_params(model)}, ids, **written)
  assert out.last_hidden_state.shape == (2, length, config.embed_dim)
  pools = config.base_pooler and family not in DECODERS + ENCODER_DECODERS
  assert (out.pooler_output.shape if pools else out.pooler_output) == ((2, config.embed_dim) if pools else None)


def test_published_sizes():
  # Of the papers and model cards: Devlin et al. 2018 (base, large), Shoeybi et al. 2019 (1.3B, 3.9B).
  published = {
    ("bert", "erlangshen_roberta_110m"): 0.102e9,
    ("bert", "erlangshen_roberta_330m"): 0.325e9,
    ("megatron_bert", "erlangshen_1_3b"): 1.26e9,
    ("megatron_bert", "erlangshen_3_9b"): 3.83e9,
    ("roberta", "roberta_base"): 0.125e9,
    # Lan et al. 2019's base; of the Hub's model cards: Erlangshen-DeBERTa-v2, Chinese-ELECTRA,
    # Erlangshen-ZEN1 and -ZEN2, Zhouwenwang-Unified.
    ("albert", "albert_base"): 0.012e9,
    ("deberta_v2", "erlangshen_97m"): 0.097e9,
    ("deberta_v2", "erlangshen_186m"): 0.186e9,
    ("deberta_v2", "erlangshen_320m"): 0.320e9,
    ("deberta_v2", "erlangshen_710m"): 0.710e9,
    ("deberta_v2", "unimc_1_4b"): 1.4e9,
    ("electra", "electra_small"): 0.012e9,
    # Of HFL's own lists: Chinese-BERT-wwm and Chinese-XLNet.
    ("bert", "rbt3"): 0.038e9,
    ("bert", "rbtl3"): 0.061e9,
    ("xlnet", "xlnet_base"): 0.117e9,
    ("xlnet", "xlnet_mid"): 0.209e9,
    # ALBERT-xxlarge by its repository's list; the paper, and so the checkpoint's name, says 235M of the same shape.
    ("albert", "unimc_235m"): 0.223e9,
    ("longformer", "longformer_base_4096"): 0.149e9,
    ("longformer", "longformer_large_4096"): 0.435e9,
    ("electra", "electra_base"): 0.102e9,
    ("electra", "electra_large"): 0.324e9,
    ("zen1", "erlangshen_224m"): 0.224e9,
    ("zen2", "erlangshen_345m"): 0.345e9,
    ("zen2", "erlangshen_668m"): 0.668e9,
    ("zhouwenwang", "unified_110m"): 0.102e9,
    ("zhouwenwang", "unified_1_3b"): 1.26e9,
  }
  # Of models that write with the vocabulary's kernel.
  writes = {
    # Radford et al. 2019's small one with the corrected count, which the name rounds down; the model card's 3.5B has
    # 3.56.
    ("gpt2", "wenzhong_110m"): 0.124e9,
    ("gpt2", "wenzhong_3_5b"): 3.56e9,
    # Touvron et al. 2023, 2307.09288; of the Hub's model cards Ziya, Randeng-T5, -BART and -Pegasus.
    ("llama", "ziya_13b"): 13.1e9,
    ("llama", "chinese_llama_7b"): 6.89e9,
    ("llama", "chinese_alpaca_13b"): 13.2e9,
    ("llama", "chinese_alpaca_2_1_3b"): 1.26e9,
    ("llama", "chinese_alpaca_2_7b"): 6.93e9,
    ("llama", "llama_3_chinese_8b"): 8.03e9,
    ("t5", "t5_base"): 0.223e9,
    ("mt5", "randeng_77m"): 0.077e9,
    ("mt5", "randeng_784m"): 0.784e9,
    ("bart", "bart_base"): 0.139e9,
    ("bart", "randeng_139m"): 0.139e9,
    ("bart", "randeng_759m"): 0.759e9,
    ("pegasus", "randeng_238m"): 0.238e9,
    ("pegasus", "randeng_523m"): 0.523e9,
  }
  for (family, size), expected in {**published, **writes}.items():
    head = LM[family] if (family, size) in writes else "base"
    shapes = param_shapes(models.build(family, models.sized(family, size), head))
    # To the digits that are published.
    allowed = 0.03 if expected < 0.05e9 else 0.01
    assert sum(math.prod(shape) for shape in shapes.values()) == pytest.approx(expected, rel=allowed)


@pytest.mark.parametrize("family,size", SIZES)
def test_config_round_trip_of_every_size(family, size):
  chosen, config = models.family(family), models.sized(family, size)
  assert chosen.config_from_hf(chosen.config_to_hf(config)) == config


_GATED = dict(activations=("gelu_new", "linear"), norm=NormSpec(kind="rms", epsilon=1e-3))
# What decoders have of the fields that are changed; T5 has one rate of dropout, BART's and Pegasus's norm is fixed.
OF_DECODERS = {
  "bart": dict(norm=NormSpec(epsilon=1e-5), dropout=Dropout(hidden=0.2, attention=0.3, mlp=0.1, classifier=0.4)),
  "gpt2": dict(dropout=Dropout(hidden=0.2, embedding=0.3, attention=0.4)),
  "llama": dict(**_GATED, dropout=Dropout(hidden=0.0, attention=0.3), num_kv_heads=2, head_size=6),
  "mt5": dict(**_GATED, dropout=Dropout(hidden=0.2, attention=0.2, mlp=0.2, output=0.2, classifier=0.4)),
}
# Its feed-forward block is as wide as its layers say.
OF_DECODERS["fengshen_llama"] = dict(**_GATED, dropout=Dropout(hidden=0.2, attention=0.3))
OF_DECODERS |= {"pegasus": OF_DECODERS["bart"], "t5": {**OF_DECODERS["mt5"], "activations": ("silu",)}}


# Those of the original's writers are in convert_torch/test_original_decoders.py.
@pytest.mark.parametrize("family", [name for name in LM if name not in ORIGINAL_DECODERS])
def test_config_round_trip_of_every_field(family):
  chosen = models.family(family)
  config = chosen.config_from_hf(shape(family))
  config = dataclasses.replace(
    config, activations=("gelu_new",), norm=NormSpec(epsilon=1e-3), tie_embeddings=False, initializer_range=0.5
  )
  if family in OF_DECODERS:
    length = "max_distance" if hasattr(config.positions, "max_distance") else "length"
    positions = dataclasses.replace(config.positions, **{length: 77})
    decoder = config.decoder and dataclasses.replace(config.decoder, positions=positions, start_token_id=7)
    config = dataclasses.replace(config, positions=positions, decoder=decoder, **OF_DECODERS[family])
  elif family == "xlnet":
    # It has one rate of dropout, and neither token types nor a longest sequence.
    positions = dataclasses.replace(config.positions, clamp=5, memory=7, reuse=3)
    dropout = Dropout(hidden=0.2, attention=0.2, mlp=0.2, classifier=0.0)
    config = dataclasses.replace(config, positions=positions, dropout=dropout)
  else:
    length = {"length": 77} if hasattr(config.positions, "length") else {}
    config = dataclasses.replace(
      config,
      token_types=3,
      positions=dataclasses.replace(config.positions, **length),
      dropout=Dropout(hidden=0.2, attention=0.3, classifier=0.4),
    )
  hf = chosen.config_to_hf(config)
  assert chosen.config_from_hf(hf) == config
  if family in ORIGINALS:
    return
  # What transformers itself makes of these fields, and writes, reads back the same.
  theirs = torch_class(family, "base").config_class(**hf)
  expected = dataclasses.replace(config, tie_embeddings=True) if table(family).keeps_apart else config
  assert chosen.config_from_hf(theirs.to_dict()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_a_config_leaves_out_are_transformers_defaults(family):
  chosen = models.family(family)
  theirs = torch_class(family, "base").config_class(**shape(family))
  ours, meant = chosen.config_from_hf(shape(family)), chosen.config_from_hf(theirs.to_dict())
  if family == "mt5":
    # Before version 5 of transformers it was not tied, and now it is whatever a config says.
    assert not ours.tie_embeddings and meant.tie_embeddings
    ours = dataclasses.replace(ours, tie_embeddings=True)
  assert ours == meant


@pytest.mark.parametrize(
  "family,changes,message",
  [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "config.json says scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"scale_attn_weights": False}, "config.json says scale_attn_weights=False"),
    ("gpt2", {"add_cross_attention": True}, "config.json says add_cross_attention=True"),
    ("gpt2", {"activation_function": "mish"}, "config.json says activation_function='mish'"),
    ("gpt2", {"n_head": 5}, "config.json says n_embd=32, which is no multiple of n_head=5"),
    ("gpt2", {"vocab_size": None, "n_layer": None}, "config.json lacks vocab_size, n_layer"),
    ("llama", {"hidden_act": "mish"}, "config.json says hidden_act='mish'"),
    ("llama", {"num_attention_heads": 5}, "hidden_size=32, which is no multiple of num_attention_heads=5"),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads=4, which is no multiple of num_key_value_heads=3"),
    ("llama", {"use_parallel_residual": True}, "config.json says use_parallel_residual=True"),
    ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "config.json says rope_type='longrope'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "scales positions by rope_type='linear', but lacks factor"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor, high_freq_factor"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "turns a part of each head"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish', which fsb_jax does not know"),
    ("mt5", {"feed_forward_proj": "mish"}, "feed_forward_proj='mish', which fsb_jax does not know"),
    ("t5", {"d_kv": None}, "config.json lacks d_kv"),
    ("bart", {"decoder_attention_heads": 5}, "d_model=32, which is no multiple of decoder_attention_heads=5"),
    ("bart", {"normalize_before": True}, "config.json says normalize_before=True"),
    ("bart", {"activation_function": "mish"}, "config.json says activation_function='mish'"),
    ("pegasus", {"static_position_embeddings": False}, "config.json says static_position_embeddings=False"),
    ("pegasus", {"decoder_layers": None}, "config.json lacks decoder_layers"),
  ],
)
def test_what_decoders_do_not_support_is_refused_in_one_sentence(family, changes, message):
  hf = {name: value for name, value in {**shape(family), **changes}.items() if value is not None}
  with pytest.raises(UserError) as error:
    models.family(family).config_from_hf(hf)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("family", [x for x in LM if x not in DECODERS + ENCODER_DECODERS])
@pytest.mark.parametrize(
  "changes,message",
  [
    ({"position_embedding_type": "relative_key"}, "config.json says position_embedding_type='relative_key'"),
    ({"position_embedding_type": "relative_key_query"}, "position_embedding_type='relative_key_query'"),
    ({"is_decoder": True}, "config.json says is_decoder=True"),
    ({"add_cross_attention": True}, "config.json says add_cross_attention=True"),
    ({"hidden_act": "mish"}, "config.json says hidden_act='mish'"),
    ({"num_attention_heads": 5, "n_head": 5}, "hidden_size=32, which is no multiple of num_attention_heads=5"),
    ({"vocab_size": None}, "config.json lacks vocab_size"),
  ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(family, changes, message):
  if "is_decoder" in changes and family == "zhouwenwang":
    pytest.skip("its causal language models say so")
  hf = {name: value for name, value in {**shape(family), **changes}.items() if value is not None}
  with pytest.raises(UserError) as error:
    models.family(family).config_from_hf(hf)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "family,changes,message",
  [
    ("bert", {"pruned_heads": {"0": [1]}}, "config.json says pruned_heads={'0': [1]}, which fsb_jax does not support"),
    ("bert", {"num_hidden_layers": 0}, "num_hidden_layers=0; it must be a whole number of at least 1"),
    ("bert", {"num_attention_heads": "4"}, "num_attention_heads='4'; it must be a whole number of at least 1"),
    ("bert", {"max_position_embeddings": None}, "max_position_embeddings=None; it must be a whole number"),
    ("bert", {"vocab_size": None}, "config.json lacks vocab_size; is it"),
    ("deberta_v2", {"attention_head_size": 16}, "attention_head_size=16, which fsb_jax does not support (only 8)"),
    ("deberta_v2", {"pos_att_type": ["c2p", "p2p"]}, "of which fsb_jax knows c2p and p2c only"),
    ("electra", {"summary_activation": None}, "summary_activation=None, which fsb_jax does not support (only 'gelu')"),
    ("xlnet", {"summary_use_proj": None}, "summary_use_proj=None, which fsb_jax does not support (only True)"),
    ("longformer", {"attention_window": None}, "attention_window=None; it must be one positive even number"),
    ("longformer", {"attention_window": 5}, "attention_window=5; it must be one positive even number"),
  ],
)
def test_a_field_that_would_be_ignored_or_misread_is_refused(family, changes, message):
  with pytest.raises(UserError) as error:
    models.family(family).config_from_hf({**shape(family), **changes})
  assert message in str(error.value) and "\n" not in str(error.value)


def test_how_zhouwenwang_masks_is_kept_and_checked():
  chosen = models.family("zhouwenwang")
  assert chosen.config_from_hf(SHAPE).mask_fill == "plus_1"
  meant = chosen.config_from_hf({**SHAPE, "mask_fill": "minus_10000"})
  assert chosen.config_from_hf(chosen.config_to_hf(meant)) == meant and meant.mask_fill == "minus_10000"
  with pytest.raises(UserError, match="mask_fill='none', which fsb_jax does not know; known: plus_1, minus_10000"):
    chosen.config_from_hf({**SHAPE, "mask_fill": "none"})


def test_how_zen1_masks_is_kept():
  chosen = models.family("zen1")
  as_it_was = chosen.config_from_hf(shape("zen1"))
  assert {head.__name__ for head in as_it_was.ngrams.mask_as_token_types} == {
    "MaskedLM", "NextSentence", "SequenceClassification", "TokenClassification"
  }  # fmt: skip
  assert "mask_as_ngram_token_types" not in chosen.config_to_hf(as_it_was)
  meant = chosen.config_from_hf({**shape("zen1"), "mask_as_ngram_token_types": False})
  assert meant.ngrams.mask_as_token_types == ()
  assert chosen.config_from_hf(chosen.config_to_hf(meant)) == meant


@pytest.mark.parametrize(
  "family,changes,message",
  [
    ("zen1", {"word_size": None}, "config.json lacks word_size, the number of n-grams"),
    ("zen1", {"num_hidden_word_layers": 0}, "num_hidden_word_layers=0, which is not between 1 and num_hidden_layers=2"),
    ("zen2", {"num_hidden_word_layers": None}, "num_hidden_word_layers=6, which is not between 1 and"),
    ("zen2", {"num_attention_heads": 32}, "heads of width 1; the codes of offsets need an even one of at least 4"),
  ],
)
def test_what_zen_needs(family, changes, message):
  hf = {name: value for name, value in {**shape(family), **changes}.items() if value is not None}
  with pytest.raises(UserError) as error:
    models.family(family).config_from_hf(hf)
  assert message in str(error.value)


@pytest.mark.parametrize(
  "says,name",
  [
    ({"fengshen_model_type": "fengshen-zen1", "model_type": ""}, "zen1"),
    ({"fengshen_model_type": "fengshen-zen2", "model_type": "bert"}, "zen2"),
    ({"fengshen_model_type": "fengshen-roformer"}, "zhouwenwang"),
    ({"fengshen_model_type": "huggingface-auto", "model_type": "bert"}, "bert"),
    ({"model_type": "fengshen-zen2"}, "zen2"),
    ({"model_type": "zen1"}, "zen1"),
  ],
)
def test_the_originals_own_name_of_a_model_comes_first(says, name):
  assert models.family_of_hub_config(says).name == name


def test_an_unknown_activation_is_answered_with_the_known_ones():
  with pytest.raises(UserError) as error:
    models.family("bert").config_from_hf({**SHAPE, "hidden_act": "mish"})
  assert str(error.value).endswith(", ".join(sorted(ACTIVATIONS)))


def test_unknown_names_are_answered_with_the_known_ones():
  with pytest.raises(UserError, match="unknown model family 'brt'; known: albert, bart, bert, .*zhouwenwang"):
    models.family("brt")
  with pytest.raises(UserError, match="unknown size 'huge' of the roberta family; known: roberta_base"):
    models.sized("roberta", "huge")
  with pytest.raises(UserError, match="the roberta family has no head 'pretraining'; known: base, masked_lm"):
    models.build("roberta", models.sized("roberta", "roberta_base"), "pretraining")
  with pytest.raises(UserError, match="model_type 'gpt_neo'.*known: albert, bart, bert, .*deberta-v2"):
    models.family_of_hub_config({"model_type": "gpt_neo"})
  with pytest.raises(UserError, match="BertLMHeadModel is not a head of the bert family"):
    models.family("bert").head_of("BertLMHeadModel")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_is_a_class_of_transformers(family):
  chosen = models.family(family)
  assert models.family_of_hub_config(torch_class(family, "base").config_class().to_dict()) is chosen
  for head in HEADS[family]:
    assert torch_class(family, head).config_class.model_type == chosen.model_type
  # One class of the original code is two heads.
  for head in {"base", *chosen.heads} - {"span_hard"}:
    assert chosen.head_of(chosen.architecture(head)) == head


TAGGERS = [name for name in models.all_families() if "crf" in models.family(name).heads]


@pytest.mark.parametrize("family", TAGGERS)
def test_the_originals_heads_have_its_class_names_on_every_encoder(family):
  chosen = models.family(family)
  for architecture, head in {
    "BertLinear": "token_classification", "BertCrf": "crf", "BertSpan": "span", "BertBiaffine": "biaffine"
  }.items():
    assert chosen.head_of(architecture) == head
    assert head == "token_classification" or chosen.architecture(head) == architecture
  assert chosen.architecture("span_hard") == "BertSpan"
  assert chosen.head_of(chosen.architecture("token_classification")) == "token_classification"


def test_a_family_without_the_originals_heads_does_not_read_them():
  with pytest.raises(UserError, match="BertCrf is not a head of the xlnet family"):
    models.family("xlnet").head_of("BertCrf")
