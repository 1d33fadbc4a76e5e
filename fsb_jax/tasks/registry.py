"""The known tasks and mixtures by name, with their labels; needs neither a tokenizer nor TensorFlow."""

import dataclasses

from fsb_jax.errors import UserError
from fsb_jax.tasks import clue, hfl, jieba_lexicon
from fsb_jax.tasks.text_task import PlainTextTask, TextTask

Task = TextTask | PlainTextTask

_BUILT_IN = {task.name: task for task in (*clue.TASKS, *hfl.TASKS, jieba_lexicon.TASK)}
_DECLARED: dict[str, Task] = {}

# A mixture is one classification head over the labels of all its tasks, side by side.
MIXTURES = {"clue_classification": ("tnews", "afqmc", "ocnli", "iflytek")}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
  """What a model's head and its metric need to know of a task.

  Attributes:
    name: the task's name.
    label_names: names of all outputs of the head; for a mixture and its members `task/label` of every member; none for
      plain text.
    label_slice: `(start, stop)`, the task's own outputs among them: predictions are the argmax inside.
    has_pair: whether its examples have a second text.
    members: for a mixture, the names of its tasks.
    summary: what is classified, in a few words.
    head: the head it trains: sequence_classification, or masked_lm for plain text.
  """

  name: str
  label_names: tuple[str, ...]
  label_slice: tuple[int, int]
  has_pair: bool
  summary: str
  members: tuple[str, ...] = ()
  head: str = TextTask.head

  def describe(self) -> str:
    """One line for people."""
    if self.head == "masked_lm":
      return f"{self.name}: {self.summary}; plain text, for masked language modelling"
    start, stop = self.label_slice
    texts = "pairs of texts" if self.has_pair else "single texts"
    shown = ", ".join(self.label_names[start : min(stop, start + 5)]) + (", ..." if stop - start > 5 else "")
    return f"{self.name}: {self.summary}; {texts}; {stop - start} labels: {shown}"


def declare(task: Task) -> Task:
  """Makes a task known by its name; a task declared before under the same name is replaced.

  Raises:
    UserError: the name belongs to a task or mixture that comes with the package.
  """
  if task.name in _BUILT_IN or task.name.split(".")[0] in MIXTURES:
    raise UserError(f"Task name {task.name!r} is taken by a task of fsb_jax; choose another.")
  _DECLARED[task.name] = task
  return task


def known_tasks() -> dict[str, Task]:
  """The known tasks by name, those that come with the package first."""
  return {**_BUILT_IN, **_DECLARED}


def names() -> list[str]:
  """Names of all known tasks, mixtures and members of mixtures."""
  members = [member for mixture in MIXTURES for member in mixture_members(mixture)]
  return [*known_tasks(), *MIXTURES, *members]


def mixture_members(mixture: str) -> dict[str, TextTask]:
  """The members of a mixture, by the names under which they are registered (`clue_classification.tnews`, ...)."""
  return {f"{mixture}.{name}": known_tasks()[name] for name in MIXTURES[mixture]}


def info(name: str) -> TaskInfo:
  """What is known of a task, a mixture, or a member of one.

  Raises:
    UserError: nothing has this name.
  """
  tasks = known_tasks()
  if name in tasks:
    task = tasks[name]
    return TaskInfo(
      name, task.label_names, (0, len(task.label_names)), task.has_pair, task.summary, head=task.head
    )
  mixture = name.split(".")[0]
  if mixture not in MIXTURES or name not in (mixture, *mixture_members(mixture)):
    raise UserError(f"There is no task {name!r}; the known ones are {', '.join(names())}.")
  members = mixture_members(mixture)
  label_names = tuple(f"{task.name}/{label}" for task in members.values() for label in task.label_names)
  if name == mixture:
    summary = f"{', '.join(MIXTURES[mixture])} under one head"
    has_pair = any(task.has_pair for task in members.values())
    return TaskInfo(name, label_names, (0, len(label_names)), has_pair, summary, tuple(members))
  start = 0
  for member, task in members.items():
    if member == name:
      break
    start += len(task.label_names)
  return TaskInfo(name, label_names, (start, start + len(task.label_names)), task.has_pair, task.summary)
