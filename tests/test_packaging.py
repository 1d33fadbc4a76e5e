"""A wheel built from the tree works where the tree is not; so does the editable installation."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GIN_FILES = {str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin")}
# Reads a gin file by its relative name and says which package did it.
PROBE = """
import fsb_jax, convert_torch, sys
print(fsb_jax.__file__); print(convert_torch.__file__); sys.stdout.flush()
from fsb_jax import cli
sys.argv = ["fsb", "train", "--gin_file=gin/runs/finetune.gin", "--gin_file=models/bert/tiny.gin"]
cli.main()
"""


def probe(folder, environment=None):
  done = subprocess.run(
    [sys.executable, "-c", PROBE], cwd=folder, capture_output=True, text=True, env={**os.environ, **(environment or {})}
  )
  assert done.returncode == 2, done.stderr
  assert "leave MIXTURE_OR_TASK_NAME, MODEL_DIR, TRAIN_STEPS to you" in done.stderr
  return done.stdout.splitlines()


@pytest.mark.slow  # every other test runs from an editable installation
def test_editable_from_any_folder(tmp_path):
  assert probe(tmp_path)[0] == str(ROOT / "fsb_jax" / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  # A copy of what is tracked, so that building leaves nothing in the tree.
  listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
  for name in tracked:
    target = source / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / name).is_symlink():
      target.symlink_to(os.readlink(ROOT / name))
    elif (ROOT / name).is_file():
      target.write_bytes((ROOT / name).read_bytes())
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)], check=True
  )
  return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_and_gin_file(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fsb_jax").rglob("*.py")}
  modules |= {str(path.relative_to(ROOT / "tools")) for path in (ROOT / "tools" / "convert_torch").rglob("*.py")}
  assert modules <= names, modules - names
  assert {f"fsb_jax/{name}" for name in GIN_FILES} <= names
  assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_wheel_works_outside_the_tree(wheel, tmp_path):
  site = tmp_path / "site"
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True
  )
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  package, tools = probe(elsewhere, {"PYTHONPATH": str(site)})[:2]
  assert package == str(site / "fsb_jax" / "__init__.py")
  assert tools == str(site / "convert_torch" / "__init__.py")
