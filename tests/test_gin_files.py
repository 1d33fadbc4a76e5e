"""Every shipped gin file is read, and every model it names takes shape."""

from pathlib import Path

import flax.linen as nn
import jax
import pytest

import gin
from fsb_jax import models
from fsb_jax.errors import UserError
from fsb_jax.training import gin_utils, train_diffusion
from fsb_jax.training.benchmark import benchmark
from fsb_jax.training.evaluate import evaluate
from fsb_jax.training.infer import infer
from fsb_jax.training.train import train

GIN = Path(__file__).parent.parent / "gin"
SIZES = sorted(str(path.relative_to(GIN)) for path in GIN.glob("models/*/*.gin") if path.name != "base.gin")
FUNCTIONS = {
  "finetune": train, "eval": evaluate, "infer": infer, "benchmark": benchmark, "draw_finetune": train_diffusion.train
}
BENCHMARKS = ("clue", "fewclue", "zeroclue")
RUN = ["MIXTURE_OR_TASK_NAME=tnews", "MODEL_DIR=run", "TRAIN_STEPS=5"]


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def test_every_gin_file_is_covered():
  found = {str(path.relative_to(GIN)) for path in GIN.rglob("*.gin")}
  bases = {f"models/{family}/base.gin" for family in models.all_families()}
  runs = {f"runs/{name}.gin" for name in FUNCTIONS}
  others = {
    "runs/unimc.gin", "runs/cache.gin", "tasks/table.gin", "tasks/text.gin", "experiments/quickstart.gin",
    *(f"runs/{name}.gin" for name in BENCHMARKS),
  }  # fmt: skip
  assert found == {*SIZES, *bases, *runs, *others}


def test_every_size_has_a_gin_file():
  sizes = {f"models/{family.name}/{size}.gin" for family in models.all_families().values() for size in family.sizes}
  assert set(SIZES) == sizes


@pytest.mark.parametrize("path", SIZES)
def test_models_take_shape(path):
  call, text = gin_utils.configured(train, ["runs/finetune.gin", path], RUN)
  assert callable(call) and 'size = %SIZE' in text
  model = gin.query_parameter("%MODEL").scoped_configurable_fn()
  config = models.sized(model.family, model.size)
  boxed = models.abstract_params(models.build(model.family, config))
  assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in models.flatten(boxed).values())
  shapes = jax.tree.map(lambda leaf: leaf.shape, nn.meta.unbox(boxed), is_leaf=lambda x: hasattr(x, "shape"))
  tables = [shape for path, shape in models.flatten(shapes).items() if path.endswith("token_embed/embedding")]
  # A tower that reads images has none.
  assert (config.vocab_size, config.token_width) in tables or (not config.vocab_size and not tables)


@pytest.mark.parametrize("family", sorted(models.all_families()))
def test_a_family_without_a_size_asks_for_one(family):
  with pytest.raises(UserError, match="leave SIZE to you"):
    gin_utils.configured(train, ["runs/finetune.gin", f"models/{family}/base.gin"], RUN)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_runs_say_what_is_required(name):
  data = "DATA" if name == "draw_finetune" else "MIXTURE_OR_TASK_NAME"
  with pytest.raises(UserError, match=f"leave .*{data}.* to you"):
    gin_utils.configured(FUNCTIONS[name], [f"runs/{name}.gin"], [])
  header = (GIN / "runs" / f"{name}.gin").read_text().split("from __gin__")[0]
  body = (GIN / "runs" / f"{name}.gin").read_text()
  required = [line.split(" =")[0] for line in body.splitlines() if line.endswith("= %gin.REQUIRED")]
  listed = header.split("# COMMON")[0]
  assert required and all(macro in listed for macro in required)
  macros = [line.split(" =")[0] for line in body.splitlines() if line.split(" =")[0].isupper()]
  # MODEL of a training run is set by including a size.
  assert [macro for macro in macros if macro not in header] == []


def test_every_argument_can_be_set():
  """A setting that a function has and its run file does not bind would be out of reach."""
  import inspect

  for name, function in FUNCTIONS.items():
    body = (GIN / "runs" / f"{name}.gin").read_text()
    arguments = set(inspect.signature(function).parameters) - {"config_text"}
    assert [argument for argument in sorted(arguments) if f"\n  {argument} = " not in body] == []


def test_a_file_may_configure_another_function():
  values = ["INITIAL_CHECKPOINT_PATH=x", "DATA=y", "MODEL_DIR=z", "TRAIN_STEPS=3", "LORA=@train_diffusion.Factors()"]
  bindings = [*values, "LORA_RANK=7", "BATCH_SIZE=0"]
  call, _ = gin_utils.configured(train, ["runs/draw_finetune.gin"], bindings, or_else=[train_diffusion.train])
  with pytest.raises(UserError, match="^BATCH_SIZE must be a whole number above 0"):
    call(config_text="of the run")
  assert gin.query_parameter("%LORA").scoped_configurable_fn() == train_diffusion.Factors(rank=7)


def test_the_resolved_config_can_be_run_again(tmp_path):
  overrides = ["LEARNING_RATE=3e-5", "INITIAL_CHECKPOINT_PATH=some/where", *RUN]
  _, text = gin_utils.configured(train, ["gin/runs/finetune.gin"], overrides)
  (tmp_path / "config.gin").write_text(text)
  _, again = gin_utils.configured(train, [str(tmp_path / "config.gin")], [])
  assert again == text and "LEARNING_RATE = 3e-05" in text and "'some/where'" in text


def test_quickstart_is_the_lexicon():
  gin_utils.configured(train, ["gin/experiments/quickstart.gin"], [])
  assert gin.query_parameter("%MIXTURE_OR_TASK_NAME") == "jieba_lexicon"
  assert gin.query_parameter("%SIZE") == "tiny"


@pytest.mark.parametrize(
  ("binding", "value"),
  [("SCHEDULE=cosine", "cosine"), ("SCHEDULE='cosine'", "cosine"),
   ("MODEL_DIR=/data/my runs, 2/中文-1", "/data/my runs, 2/中文-1"),
   ("BUCKETS=(8, 16)", (8, 16)), ("TASK_FEATURE_LENGTHS={'inputs': 64}", {"inputs": 64}), ("EVAL_PERIOD=None", None),
   ("LEARNING_RATE=1e-4", 1e-4)],
)
def test_values_from_the_shell(binding, value):
  others = [each for each in RUN if each.split("=")[0] != binding.split("=")[0]]
  gin_utils.configured(train, ["runs/finetune.gin"], ["INITIAL_CHECKPOINT_PATH=x", *others, binding])
  assert gin.query_parameter(f"%{binding.split('=')[0]}") == value


def test_unimc_is_a_training_run_with_its_view():
  call, text = gin_utils.configured(train, ["runs/unimc.gin", "models/bert/tiny.gin"], RUN)
  assert callable(call) and gin.query_parameter("%VIEW") == "unimc" and gin.query_parameter("%BATCH_SIZE") == 16
  assert "view = %VIEW" in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_found_by_what_their_files_configure(name, tmp_path):
  (tmp_path / "there").mkdir()
  settings = ["MODEL=x", f"OUTPUT_DIR={tmp_path / 'there'}"]
  call, text = gin_utils.configured(evaluate, [f"runs/{name}.gin"], settings, or_else=[benchmark])
  assert f"MIXTURE_OR_TASK_NAME = '{name}'" in text
  with pytest.raises(UserError, match="there already exists"):
    call()
  with pytest.raises(UserError, match="the gin files configure no train"):
    gin_utils.configured(train, [f"runs/{name}.gin"], settings)
