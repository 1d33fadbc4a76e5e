"""Tiny random pipelines of diffusers, saved as folders."""

import torch
import transformers
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

PROMPTS = ("一只黑猫，坐着", "飞流直下三千尺")
# 16 tokens are read at once.
LENGTH = 16
SIDE = 16
SCHEDULE = dict(
  beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
  set_alpha_to_one=False,
)  # fmt: skip


def tiny_unet(in_channels=4, **options):
  options = dict(
    sample_size=SIDE // 2, in_channels=in_channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
    cross_attention_dim=24, attention_head_dim=4, norm_num_groups=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
  ) | options  # fmt: skip
  return UNet2DConditionModel(**options)


def tiny_autoencoder():
  blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
  return AutoencoderKL(
    block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=SIDE, **blocks
  )


def bert_reader(folder):
  """A BERT text encoder and its tokenizer, as Taiyi's Chinese Stable Diffusion has them."""
  characters = sorted(set("".join(PROMPTS)) | set("模糊,."))
  vocab = folder / "vocab.txt"
  vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]), encoding="utf-8")
  tokenizer = transformers.BertTokenizer(str(vocab), model_max_length=LENGTH)
  config = transformers.BertConfig(
    vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=LENGTH, initializer_range=0.3,
  )  # fmt: skip
  return transformers.BertModel(config), tokenizer


def save_pipeline(folder, unet, reader):
  """Writes a pipeline and gives it back."""
  text_encoder, tokenizer = reader
  pipeline = StableDiffusionPipeline(
    vae=tiny_autoencoder(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet,
    scheduler=PNDMScheduler(**SCHEDULE), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
  )  # fmt: skip
  # Weights as large as trained ones, so that steps, texts and images matter.
  with torch.no_grad():
    for module in (pipeline.unet, pipeline.vae):
      for name, weight in module.named_parameters():
        if name.endswith("weight") and weight.ndim > 1:
          weight.mul_(1.5)
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(folder)
  return pipeline
