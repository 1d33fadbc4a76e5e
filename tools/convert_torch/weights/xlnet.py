"""XLNet: https://github.com/huggingface/transformers, models/xlnet/modeling_xlnet.py."""

from convert_torch.ops import Op, linear, pad_vocab, then
from convert_torch.weights import Row, Table
from convert_torch.weights._bert_form import dense, norm

OURS, THEIRS = "encoder/layers_{i}", "transformer.layer.{i}"
ATTENTION = f"{OURS}/attention", f"{THEIRS}.rel_attn"

# Of projections to heads both sides have [e, h, d]; this one is kept so as well, though it comes from heads.
out = Op(lambda x, config: x.transpose(1, 2, 0), lambda x, config: x.transpose(2, 0, 1))
vector = Op(lambda x, config: x.reshape(-1), lambda x, config: x.reshape(1, 1, -1))

TABLE = Table(
  prefix="transformer.",
  rows=(
    Row("token_embed/embedding", "transformer.word_embedding.weight", pad_vocab),
    Row("mask_embed", "transformer.mask_emb", vector),
    *(
      Row(f"{ATTENTION[0]}/{ours}", f"{ATTENTION[1]}.{theirs}")
      for ours, theirs in (
        ("query/kernel", "q"),
        ("key/kernel", "k"),
        ("value/kernel", "v"),
        ("distance/kernel", "r"),
        ("content_bias", "r_w_bias"),
        ("distance_bias", "r_r_bias"),
        ("segment_bias", "r_s_bias"),
        ("segment_embed", "seg_embed"),
      )
    ),
    Row(f"{ATTENTION[0]}/out/kernel", f"{ATTENTION[1]}.o", out),
    *norm(f"{OURS}/attention_norm", f"{ATTENTION[1]}.layer_norm"),
    *dense(f"{OURS}/mlp/wi", f"{THEIRS}.ff.layer_1"),
    *dense(f"{OURS}/mlp/wo", f"{THEIRS}.ff.layer_2"),
    *norm(f"{OURS}/mlp_norm", f"{THEIRS}.ff.layer_norm"),
    Row("head/lm/bias", "lm_loss.bias", pad_vocab),
    Row(
      "head/lm/decoder/kernel",
      "lm_loss.weight",
      then(pad_vocab, linear),
      tied_to="transformer.word_embedding.weight",
    ),
    Row("head/lm/decoder/bias", "lm_loss.bias", pad_vocab),
    *dense("head/summary", "sequence_summary.summary"),
    *dense("head/summary_classifier", "logits_proj"),
    *dense("head/classifier", "classifier"),
    *dense("head/span", "qa_outputs"),
  ),
  # Its codes of distances are float32, and do not multiply with parameters of another dtype.
  float64_in_transformers=False,
)
