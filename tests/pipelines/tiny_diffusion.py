"""Tiny random pipelines of diffusers, saved as folders."""

import json

import diffusers
import torch
import transformers

PROMPTS = ("一只黑猫，坐着", "飞流直下三千尺")
# So many tokens are read at once.
LENGTH = 16
SIDE = 16
SCHEDULE = dict(
  beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
  set_alpha_to_one=False,
)  # fmt: skip


def tiny_unet(text_dim=24, **options):
  options = dict(
    sample_size=SIDE // 2, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
    cross_attention_dim=text_dim, attention_head_dim=4, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
  ) | options  # fmt: skip
  return diffusers.UNet2DConditionModel(**options)


def tiny_autoencoder():
  blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
  return diffusers.AutoencoderKL(
    block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=SIDE, **blocks
  )


def bert_reader(folder):
  """A BERT text encoder and its tokenizer, as Taiyi's Chinese Stable Diffusion has them."""
  folder.mkdir()
  characters = sorted(set("".join(PROMPTS)) | set("模糊,."))
  vocab = folder / "vocab.txt"
  vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]), encoding="utf-8")
  tokenizer = transformers.BertTokenizer(str(vocab), model_max_length=LENGTH)
  config = transformers.BertConfig(
    vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=LENGTH, initializer_range=0.3,
  )  # fmt: skip
  return transformers.BertModel(config), tokenizer


def clip_reader(folder, kind=transformers.CLIPTextModel, hidden_size=24):
  """CLIP's text encoder and its tokenizer, whose tokens here are single bytes."""
  folder.mkdir()
  letters = [bytes_letter for byte in range(256) for bytes_letter in (_letter(byte), _letter(byte) + "</w>")]
  tokens = [*sorted(letters), "<|startoftext|>", "<|endoftext|>"]
  (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
  (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
  tokenizer = transformers.CLIPTokenizer(
    str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
  )
  config = transformers.CLIPTextConfig(
    vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=LENGTH, projection_dim=12, bos_token_id=len(tokenizer) - 2,
    eos_token_id=len(tokenizer) - 1, initializer_factor=3.0,
  )  # fmt: skip
  return kind(config), tokenizer


def _letter(byte):
  """The character that stands for a byte in byte-level vocabularies."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  return chr(byte) if byte in plain else chr(256 + [b for b in range(256) if b not in plain].index(byte))


def save_pipeline(folder, unet, text_encoder, tokenizer):
  """Writes a pipeline and gives it back."""
  pipeline = diffusers.StableDiffusionPipeline(
    vae=tiny_autoencoder(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet,
    scheduler=diffusers.PNDMScheduler(**SCHEDULE), safety_checker=None, feature_extractor=None,
    requires_safety_checker=False,
  )  # fmt: skip
  return _saved(pipeline, folder)


def save_large_pipeline(folder):
  """The same of Stable Diffusion XL: two text encoders, and a UNet that reads sizes."""
  text_encoder, tokenizer = clip_reader(folder.parent / "first")
  second, second_tokenizer = clip_reader(folder.parent / "second", transformers.CLIPTextModelWithProjection, 16)
  unet = tiny_unet(
    24 + 16, addition_embed_type="text_time", addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=12 + 6 * 8, transformer_layers_per_block=1, use_linear_projection=True,
  )  # fmt: skip
  schedule = {name: value for name, value in SCHEDULE.items() if name not in ("skip_prk_steps", "set_alpha_to_one")}
  pipeline = diffusers.StableDiffusionXLPipeline(
    vae=tiny_autoencoder(), text_encoder=text_encoder.eval(), text_encoder_2=second.eval(), tokenizer=tokenizer,
    tokenizer_2=second_tokenizer, unet=unet, scheduler=diffusers.EulerDiscreteScheduler(**schedule),
    add_watermarker=False,
  )  # fmt: skip
  return _saved(pipeline, folder)


def _saved(pipeline, folder):
  # Weights as large as trained ones, so that steps, texts and images matter.
  with torch.no_grad():
    for module in (pipeline.unet, pipeline.vae):
      for name, weight in module.named_parameters():
        if name.endswith("weight") and weight.ndim > 1:
          weight.mul_(1.5)
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(folder)
  return pipeline
