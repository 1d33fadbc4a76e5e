"""Our encoders against `transformers` on PyTorch: forward pass and full train step, on the CPU.

6 layers x 768 with the language model's head over 21128 words, float32, no dropout, rows without padding (8 x 128
tokens, Longformer's 1 x 4096), AdamW after clipping on both sides. Both have the same weights; loss, every gradient,
and the loss after all steps are asserted to agree before a number is printed. As `fsb train` does, ours scores the
vocabulary at the masked positions alone in a train step, to the same loss and gradients; "every position" is ours
without that.

  python benchmarks/encoder.py [--model deberta_v2] [--head sequence_classification] [--unrolled] [--rounds 20]
    [--global_tokens 1] [--json FILE]
"""

import argparse
import dataclasses
import itertools
import tempfile
from pathlib import Path

from side_by_side import compare, prepare, quartiles, write_json
from usual_torch import adamw

VOCABULARY, LABELS, LAYERS, WIDTH, HEADS, MLP = 21128, 15, 6, 768, 12, 3072
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-4, 0.01, 1.0
SHAPE = dict(
  vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP,
  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
  """A model to measure: its language model's head, its rows, and its config."""

  lm: str
  batch: int
  length: int
  config: dict


MODELS = {
  "bert": Model("masked_lm", 8, 128, SHAPE),
  # As Erlangshen-DeBERTa has it.
  "deberta_v2": Model(
    "masked_lm", 8, 128,
    dict(
      **SHAPE, relative_attention=True, position_buckets=256, pos_att_type=["p2c", "c2p"], share_att_key=True,
      norm_rel_ebd="layer_norm", conv_kernel_size=3, conv_act="gelu", position_biased_input=False, type_vocab_size=0,
      pooler_dropout=0, cls_dropout=0.0,
    ),
  ),
  "longformer": Model(
    "masked_lm", 1, 4096, dict(**SHAPE, attention_window=512, max_position_embeddings=4098, type_vocab_size=1)
  ),
  "xlnet": Model(
    "lm", 8, 128,
    dict(
      vocab_size=VOCABULARY, d_model=WIDTH, n_layer=LAYERS, n_head=HEADS, d_inner=MLP, dropout=0.0, use_mems_eval=False,
      use_mems_train=False,
    ),
  ),
}  # fmt: skip


def make_batch(model, head, global_tokens=0):
  import numpy as np

  random = np.random.default_rng(0)
  ids = random.integers(106, VOCABULARY, (model.batch, model.length))
  if head == "sequence_classification":
    labels = random.integers(0, LABELS, model.batch)
  else:
    masked = random.permuted(np.arange(model.length) < round(0.15 * model.length) * np.ones((model.batch, 1)), axis=1)
    labels = np.where(masked, ids, -100)
  batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
  if global_tokens:
    batch["global_attention_mask"] = np.zeros_like(ids)
    batch["global_attention_mask"][:, :global_tokens] = 1
  return batch


def asked_alone(batch):
  """The batch as our loader gives it: labels of the masked positions alone."""
  from fsb_jax.encodings import asked_positions

  positions, labels = asked_positions(batch["labels"])
  return {**batch, "masked_lm_positions": positions, "labels": labels}


class Theirs:
  """A PyTorch model with its optimizer."""

  def __init__(self, chosen, config, attention, batch):
    import torch

    torch.manual_seed(0)
    self.model = chosen(chosen.config_class(**config, num_labels=LABELS, attn_implementation=attention))
    self.batch = {name: torch.from_numpy(x) for name, x in batch.items()}
    self.optimizer = adamw(self.model, LEARNING_RATE, WEIGHT_DECAY)
    self.losses = []

  def forward(self):
    import torch

    with torch.inference_mode():
      return self.model(**{name: x for name, x in self.batch.items() if name != "labels"}).logits.numpy()

  def gradients(self):
    self.optimizer.zero_grad()
    loss = self.model(**self.batch).loss
    loss.backward()
    return loss.item()

  def step(self):
    import torch

    loss = self.gradients()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
    self.optimizer.step()
    self.losses.append(loss)

  def as_ours(self, run, tensor_of):
    """Our tree of `tensor_of(parameter)`: every row of the weight tables is linear, so it carries gradients too."""
    import convert_torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
      self.model.config.architectures = [type(self.model).__name__]
      self.model.config.save_pretrained(folder)
      tensors = {name: tensor_of(p).detach().contiguous() for name, p in self.model.named_parameters()}
      save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
      return convert_torch.load_hub_folder(folder, run=run)


class Ours:
  """Our model, with the weights of `theirs`, and its optimizer."""

  def __init__(self, head, theirs, run, batch):
    import jax
    import jax.numpy as jnp

    from fsb_jax import models
    from fsb_jax.training import optimizers
    from fsb_jax.training.flops import matmul_flops
    from fsb_jax.training.losses import OBJECTIVES
    from fsb_jax.training.step import Update

    self.run = models.Run(**run)
    hub = theirs.as_ours(self.run, lambda parameter: parameter)
    model = models.build(hub.family, hub.config, hub.head, hub.num_labels)
    objective = OBJECTIVES[head]
    self.batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    self.batch["weights"] = jnp.ones(len(batch["input_ids"]))
    self.params = jax.tree.map(jnp.asarray, hub.params)
    self.losses = []
    optimizer = optimizers.adamw(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_gradient_norm=MAX_NORM)
    inputs = {name: self.batch[name] for name in models.input_names(model) if name in batch}
    everywhere = {name: x for name, x in inputs.items() if name != "masked_lm_positions"}

    def forward(params, inputs):
      return model.apply({"params": params}, **inputs).logits

    def loss(params, batch):
      inputs = {name: batch[name] for name in models.input_names(model) if name in batch}
      return objective(model.apply({"params": params}, **inputs), batch)

    # Three forward passes' worth is a step.
    self.operations = {
      "forward": matmul_flops(forward, self.params, everywhere), "step": 3 * matmul_flops(forward, self.params, inputs)
    }
    self.jit_forward = jax.jit(lambda params: forward(params, everywhere))
    self.jit_gradients = jax.jit(jax.value_and_grad(loss))
    update = Update(model, objective, optimizer)
    self.jit_step = jax.jit(update, donate_argnums=0)
    # Copied: the step gives its state's memory away.
    self.state = update.first_state(jax.tree.map(jnp.copy, self.params))

  def forward(self):
    return self.jit_forward(self.params).block_until_ready()

  def gradients(self):
    return self.jit_gradients(self.params, self.batch)

  def step(self):
    import jax

    self.state, metrics = self.jit_step(self.state, self.batch)
    jax.block_until_ready(self.state)
    self.losses.append(float(metrics["loss"]))


def check(ours, theirs):
  """SystemExit where the two disagree on logits, loss or a gradient by more than float32's rounding."""
  import jax
  import numpy as np

  def require(what, got, want):
    # Rounding in float32 is relative to the largest numbers that are summed.
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-8)
    if not error < 1e-3:
      raise SystemExit(f"{what} differs by {error:.1e} of its largest number: nothing measured")
    return error

  errors = {"logits": require("logits", np.asarray(ours.forward()), theirs.forward())}
  (loss, gradients), their_loss = ours.gradients(), theirs.gradients()
  errors["loss"] = require("loss", np.asarray(loss), np.asarray(their_loss))
  # What the loss does not reach, such as XLNet's segments where none are given, has no gradient in PyTorch.
  wanted = theirs.as_ours(ours.run, lambda p: p.new_zeros(p.shape) if p.grad is None else p.grad).params
  largest = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
  for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True):
    if np.abs(want).max() > 1e-5 * largest:  # a key's bias has a gradient of zero, and rounding noise in its place
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      errors[name] = require(f"the gradient of {name}", np.asarray(got), want)
  worst = max(errors, key=errors.get)
  print(f"same weights: logits, loss and {len(errors) - 2} gradients agree; worst {worst}, {errors[worst]:.1e}")


def matmul_peak():
  """Operations a second of the faster library's product of 1024 x 1024 matrices, in its faster quarter of rounds."""
  import jax
  import jax.numpy as jnp
  import torch

  a = torch.randn(1024, 1024)
  x, product = jnp.asarray(a.numpy()), jax.jit(jnp.matmul)
  sides = {"jax": lambda: product(x, x).block_until_ready(), "torch": lambda: a @ a}
  result = compare("1024 x 1024 product", sides, baseline="torch", rounds=60, warmup=5)
  return 2 * 1024**3 / min(quartiles(seconds)[0] for seconds in result.seconds.values())


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", choices=MODELS, default="bert")
  parser.add_argument("--head", choices=("lm", "sequence_classification"), default="lm")
  parser.add_argument("--unrolled", action="store_true", help="our layers unrolled; scanned otherwise")
  parser.add_argument("--global_tokens", type=int, default=0, help="longformer: how many each row is given")
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--json", help="write every second measured to this file")
  arguments = parser.parse_args()
  prepare(arguments.threads)
  import transformers

  from fsb_jax import models

  model = MODELS[arguments.model]
  if arguments.global_tokens and arguments.model != "longformer":
    parser.error(f"--global_tokens is of longformer, not of {arguments.model}")
  head = model.lm if arguments.head == "lm" else arguments.head
  batch = make_batch(model, head, arguments.global_tokens)
  chosen = getattr(transformers, models.family(arguments.model).architecture(head))
  kinds = ("eager", "sdpa") if chosen._supports_sdpa else ("eager",)
  theirs = {name: Theirs(chosen, model.config, name, batch) for name in kinds}
  run = {"scan_layers": not arguments.unrolled}
  ours = {"fsb_jax": Ours(head, theirs["eager"], run, batch)}
  if head == "masked_lm":
    ours = {"fsb_jax every position": ours["fsb_jax"]}
    ours["fsb_jax"] = Ours(head, theirs["eager"], run, asked_alone(batch))
  for our, side in itertools.product(ours.values(), theirs.values()):
    check(our, side)

  peak, comparisons = matmul_peak(), []
  print(f"largest rate of a plain matrix product: {peak / 1e9:.0f} GFLOP/s on {arguments.threads} threads\n")
  for title, method in (("forward", "forward"), ("train step", "step")):
    title = f"{arguments.model} {head} {title}"
    rivals = {f"torch {name}": getattr(side, method) for name, side in theirs.items()}
    fastest = next(iter(rivals))
    if len(rivals) > 1:
      trial = compare(title, rivals, baseline=fastest, rounds=4)
      fastest = min(rivals, key=lambda name: quartiles(trial.seconds[name])[1])
    # Forward, all of ours do the same.
    sides = {name: getattr(our, method) for name, our in ours.items() if method == "step" or name == "fsb_jax"}
    result = compare(title, {**sides, fastest: rivals[fastest]}, baseline=fastest, rounds=arguments.rounds)
    print(result.table())
    everywhere = ours.get("fsb_jax every position", ours["fsb_jax"])
    shares = (
      f"{name} {ours.get(name, everywhere).operations[method] / quartiles(seconds)[1] / peak:.0%}"
      for name, seconds in result.seconds.items()
    )
    # Theirs held to our count of what is to be done.
    print(f"of that rate: {', '.join(shares)}\n")
    comparisons.append(result)
  for name, our in ours.items():
    step = len(our.losses)
    loss, their_loss = our.losses[-1], theirs[fastest.removeprefix("torch ")].losses[step - 1]
    print(f"loss of step {step}: {name} {loss:.4f}, {fastest} {their_loss:.4f}")
    if abs(loss - their_loss) > 1e-2 * abs(their_loss):
      raise SystemExit("the two did not train alike: the times compare different work")
  if arguments.json:
    facts = dict(model=arguments.model, head=head, scan_layers=not arguments.unrolled, matmul_peak=peak)
    write_json(arguments.json, comparisons, global_tokens=arguments.global_tokens, **facts)


if __name__ == "__main__":
  main()
