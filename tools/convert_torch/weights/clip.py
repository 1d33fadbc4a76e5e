"""CLIP: https://github.com/huggingface/transformers, models/clip/modeling_clip.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS
from convert_torch.weights._clip_form import projections, text_tower, vision_tower, within

TABLE = Table(
  prefix="",
  rows=(*within("text", text_tower()), *within("vision", vision_tower()), *projections()),
  ignore=BUFFERS,
  # Its softmax is in float32 whatever it runs in.
  float64_in_transformers=False,
)
