"""The known tasks and mixtures by name, with their labels; needs neither a tokenizer nor TensorFlow."""

import dataclasses
import itertools

from fsb_jax.errors import UserError
from fsb_jax.tasks import clue, corpora, fewclue, hfl, jieba_lexicon, ner
from fsb_jax.tasks.kinds import TAGGING, RowsTask
from fsb_jax.tasks.text_task import PlainTextTask, TextTask

Task = TextTask | PlainTextTask | RowsTask | corpora.CorpusTask

_BUILT_IN = {
  task.name: task
  for task in (*clue.TASKS, *hfl.TASKS, jieba_lexicon.TASK, *fewclue.TASKS, *ner.TASKS, *corpora.TASKS)
}
_DECLARED: dict[str, Task] = {}

# A mixture is one head over the labels of all its tasks of one kind, side by side: the classifications, or where it has
# none the taggings. Its other tasks are trained and scored each on its own.
_FEWCLUE = tuple(task.name for task in fewclue.TASKS)
MIXTURES = {
  "clue_classification": ("tnews", "afqmc", "ocnli", "iflytek"),
  "clue": ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl", "cmrc2018", "chid", "c3"),
  "fewclue": _FEWCLUE,
  "zeroclue": _FEWCLUE,
  "hfl": ("chnsenticorp", "lcqmc", "bq", "xnli", "thucnews", "cmrc2018", "drcd", "cjrc"),
  "ner": ("cluener", "msra", "weibo", "resume"),
}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
  """What a model's head and its metric need to know of a task.

  Attributes:
    name: the task's name.
    label_names: names of all outputs of the head; for a mixture and its members `task/label` of every member; of a
      tagging task the kinds of entities; none for the others.
    label_slice: `(start, stop)`, the task's own outputs among them: predictions are the argmax inside.
    has_pair: whether its examples have a second text.
    members: for a mixture, the names of its tasks under its head.
    summary: what is classified, in a few words.
    head: the head it trains: sequence_classification, masked_lm for plain text, or the kind's.
    kind: its kind, for people.
    splits: its splits.
    alone: for a mixture, those of its tasks that are not under its head.
  """

  name: str
  label_names: tuple[str, ...]
  label_slice: tuple[int, int]
  has_pair: bool
  summary: str
  members: tuple[str, ...] = ()
  head: str = TextTask.head
  kind: str = ""
  splits: tuple[str, ...] = ()
  alone: tuple[str, ...] = ()

  def describe(self) -> str:
    """One line for people."""
    start, stop = self.label_slice
    shown = ", ".join(self.label_names[start : min(stop, start + 5)]) + (", ..." if stop - start > 5 else "")
    if self.head == PlainTextTask.head:
      what = "plain text, for masked language modelling"
    elif self.kind:
      what = self.kind + (f"; {stop - start} kinds of entities: {shown}" if stop > start else "")
    else:
      what = f"{'pairs of texts' if self.has_pair else 'single texts'}; {stop - start} labels: {shown}"
    alone = f"; each on its own: {', '.join(self.alone)}" if self.alone else ""
    return f"{self.name}: {self.summary}; {what}{alone}"


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


def declared_tasks() -> list[Task]:
  """The tasks that `declare` made known."""
  return list(_DECLARED.values())


def known_task(name: str) -> Task:
  """The task behind a name that `info` knows, a mixture's aside."""
  tasks = known_tasks()
  return tasks[name] if name in tasks else mixture_members(name.split(".")[0])[name]


def names() -> list[str]:
  """Names of all known tasks, mixtures and members of mixtures."""
  members = [member for mixture in MIXTURES for member in mixture_members(mixture)]
  return [*known_tasks(), *MIXTURES, *members]


def mixture_members(mixture: str) -> dict[str, TextTask | RowsTask]:
  """A mixture's tasks under its head, by the names under which they are registered (`clue.tnews`, ...)."""
  chosen = [known_tasks()[name] for name in MIXTURES[mixture]]
  members = [task for task in chosen if isinstance(task, TextTask)]
  members = members or [task for task in chosen if isinstance(task, RowsTask) and task.kind is TAGGING]
  return {f"{mixture}.{task.name}": task for task in members}


def joint_label_names(mixture: str) -> tuple[str, ...]:
  """The labels of a mixture's head: `task/label` of every member."""
  return tuple(f"{task.name}/{label}" for task in mixture_members(mixture).values() for label in task.label_names)


def info(name: str) -> TaskInfo:
  """What is known of a task, a mixture, or a member of one.

  Raises:
    UserError: nothing has this name.
  """
  tasks = known_tasks()
  if name in tasks:
    return _info(name, tasks[name], tasks[name].label_names, 0)
  mixture = name.split(".")[0]
  if mixture not in MIXTURES or name not in (mixture, *mixture_members(mixture)):
    raise UserError(f"There is no task {name!r}; the known ones are {', '.join([*tasks, *MIXTURES])}.")
  members, label_names = mixture_members(mixture), joint_label_names(mixture)
  if name == mixture:
    under_one_head = [task.name for task in members.values()]
    first = next(iter(members.values()))
    return dataclasses.replace(
      _info(name, first, label_names, 0),
      label_slice=(0, len(label_names)),
      summary=f"{', '.join(under_one_head)} under one head",
      has_pair=any(task.has_pair for task in members.values()),
      members=tuple(members),
      alone=tuple(each for each in MIXTURES[mixture] if each not in under_one_head),
    )
  before = itertools.takewhile(lambda member: member != name, members)
  start = sum(len(members[member].label_names) for member in before)
  return _info(name, members[name], label_names, start)


def _info(name: str, task: Task, label_names: tuple[str, ...], start: int) -> TaskInfo:
  return TaskInfo(
    name, label_names, (start, start + len(task.label_names)), task.has_pair, task.summary,
    head=task.head, kind=task.kind.name if isinstance(task, RowsTask) else "", splits=task.splits,
  )
