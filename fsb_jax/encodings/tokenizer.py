"""Tokenizers from Hub folders, without the two seconds of torch that `AutoTokenizer` brings."""

import json
from collections.abc import Iterable
from pathlib import Path

from fsb_jax.errors import UserError

TOKENIZER_FILES = (
  "tokenizer.json",
  "vocab.txt",
  "vocab.json",
  "spiece.model",
  "spm.model",
  "tokenizer.model",
  "sentencepiece.bpe.model",
)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Only asked where the folder names no tokenizer class and has neither tokenizer.json nor vocab.txt.
_CLASS_OF_MODEL_TYPE = {
  "albert": "AlbertTokenizer",
  "bart": "BartTokenizer",
  "clip": "CLIPTokenizer",
  "deberta-v2": "DebertaV2Tokenizer",
  "gpt2": "GPT2Tokenizer",
  "llama": "LlamaTokenizer",
  "mt5": "T5Tokenizer",
  "pegasus": "PegasusTokenizer",
  "t5": "T5Tokenizer",
  "xlnet": "XLNetTokenizer",
}


def load_tokenizer(folder):
  """Loads the tokenizer of a checkpoint: a transformers fast tokenizer (callable, batched, with `decode`).

  The class is the one that tokenizer_config.json names; else tokenizer.json is read as it is; else vocab.txt makes a
  BERT tokenizer (with `do_lower_case` and its like from tokenizer_config.json); else config.json's model type decides.

  Args:
    folder: path of a folder in the Hub's layout.

  Returns:
    The tokenizer, or None where the folder holds no tokenizer files.

  Raises:
    UserError: the folder does not exist, or its tokenizer files cannot be read.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; a tokenizer is loaded from a checkpoint's folder.")
  if not any((folder / name).is_file() for name in TOKENIZER_FILES):
    return None
  tokenizer_class = _tokenizer_class(folder)
  try:
    return tokenizer_class.from_pretrained(str(folder))
  # The Rust library raises bare Exception on a malformed file.
  except Exception as error:
    raise UserError(f"The tokenizer files in {folder} cannot be read as {tokenizer_class.__name__}: {error}") from error


def save_tokenizer(tokenizer, folder) -> list[Path]:
  """Writes the tokenizer's own files (tokenizer.json, tokenizer_config.json, ...) and returns their paths.

  A WordPiece vocabulary is written as vocab.txt too, which older tools ask for.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  paths = {Path(name) for name in tokenizer.save_pretrained(str(folder)) if Path(name).is_file()}
  if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
    paths.update(Path(name) for name in tokenizer.backend_tokenizer.model.save(str(folder)))
  return sorted(paths)


def bert_tokenizer_from_characters(characters: Iterable[str], folder):
  """Makes a BERT tokenizer that knows single characters: writes vocab.txt into `folder` and loads it.

  Args:
    characters: the characters, one string each; their order is kept, repetitions are dropped.
    folder: where vocab.txt goes; it is made where it is missing. The ids are [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3,
      [MASK] 4, then the characters.

  Returns:
    The tokenizer. It lower-cases, so an upper-case letter counts as its lower-case one.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  characters = list(dict.fromkeys(characters))
  unfit = [character for character in characters if len(character) != 1 or character.isspace()]
  if unfit:
    raise UserError(f"A character vocabulary is made of single visible characters, not of {unfit[0]!r}.")
  (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in (*SPECIAL_TOKENS, *characters)), "utf-8")
  return load_tokenizer(folder)


def special_id(tokenizer, name: str) -> int:
  """Id of the special token called "cls", "sep" or "mask"; UserError where the tokenizer has none."""
  found = getattr(tokenizer, f"{name}_token_id")
  if found is None:
    raise UserError(f"the tokenizer has no {name} token; use that of a masked language model.")
  return found


def _tokenizer_class(folder: Path) -> type:
  # Each of these modules is loaded lazily by transformers, and none of them imports torch.
  import transformers
  from transformers.tokenization_utils_tokenizers import TokenizersBackend

  def fast_class(name):
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, TokenizersBackend) else None

  named = _read_json(folder / "tokenizer_config.json").get("tokenizer_class")
  if isinstance(named, str) and named.endswith(("Tokenizer", "TokenizerFast")) and fast_class(named):
    return fast_class(named)
  if (folder / "tokenizer.json").is_file():
    return TokenizersBackend
  if (folder / "vocab.txt").is_file():
    return fast_class("BertTokenizer")
  model_type = _read_json(folder / "config.json").get("model_type")
  if model_type not in _CLASS_OF_MODEL_TYPE:
    raise UserError(
      f"{folder} has tokenizer files but nothing says of which kind: add tokenizer_class to its tokenizer_config.json."
    )
  return fast_class(_CLASS_OF_MODEL_TYPE[model_type])


def _read_json(path: Path) -> dict:
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not valid JSON ({error}).") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} must hold one JSON object.")
  return content
