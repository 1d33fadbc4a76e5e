"""CLIP's text tower: https://github.com/huggingface/transformers, models/clip/modeling_clip.py."""

from convert_torch.ops import linear
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import BUFFERS
from convert_torch.weights._clip_form import text_tower

TABLE = Table(
  prefix="",
  rows=(*text_tower(), Row("head/text_projection/kernel", "text_projection.weight", linear)),
  ignore=BUFFERS,
  # Version 5 of transformers calls them so in its class, though not in its files.
  rename=((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
  float64_in_transformers=False,
)
