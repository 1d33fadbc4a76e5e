"""Taiyi-CLIP: https://github.com/IDEA-CCNL/Fengshenbang-LM, fengshen/models/clip/modeling_taiyi_clip.py."""

from convert_torch.weights import Table
from convert_torch.weights._bert_form import BUFFERS, encoder
from convert_torch.weights._clip_form import projections, vision_tower, within

TABLE = Table(
  prefix="",
  rows=(*within("text", encoder("text_model")), *within("vision", vision_tower()), *projections()),
  ignore=BUFFERS,
  in_transformers=False,
)
