"""A report as one HTML file: no script, nothing loaded from elsewhere, readable in light and in dark.

Confusion matrices are tables with coloured cells, which need no Chinese font of a plotting library and stay sharp.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fsb_jax.reports.content import Report, Spread, TaskReport
from fsb_jax.reports.published import Reference
from fsb_jax.reports.wording import interval, one_line, percent, ranked, seconds

# Percent of colour in a cell that holds its whole row; the number in it must stay readable.
_DEEPEST = 65
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #667080; --line: #d5dae1; --paper: #fff; --band: #f3f5f8;
  --right: 26 127 90; --wrong: 209 67 47; --mark: 47 111 222; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --faint: #98a2b0; --line: #39404a; --paper: #15181c;
  --band: #20252b; --right: 53 181 137; --wrong: 240 112 92; --mark: 122 167 255; } }
body { font: 15px/1.55 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } p { color: var(--faint); margin: .3rem 0; }
.wide { overflow: auto; max-height: 85vh; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--faint); white-space: nowrap; } td.number { text-align: right; white-space: nowrap; }
tr.own td { font-weight: 700; background: var(--band); } td.text { min-width: 22rem; overflow-wrap: anywhere; }
.scale { position: relative; width: 14rem; height: .9rem; margin-top: .3rem; background: var(--band);
  border-radius: .2rem; }
.scale i { position: absolute; top: 0; bottom: 0; }
.scale .range { background: rgb(var(--mark) / 40%); }
.scale .point { width: 2px; background: rgb(var(--mark)); }
.scale .baseline { width: 2px; background: rgb(var(--wrong)); }
.confusion { border-collapse: separate; border-spacing: 1px; font-size: .8rem; }
.confusion th, .confusion td { border: 0; padding: .15rem .35rem; white-space: nowrap; }
.confusion td { text-align: right; min-width: 1.2rem; }
.confusion td.right { background: rgb(var(--right) / var(--share)); }
.confusion td.wrong { background: rgb(var(--wrong) / var(--share)); }
.confusion thead th { position: sticky; top: 0; z-index: 1; background: var(--paper); vertical-align: bottom;
  writing-mode: vertical-rl; }
.confusion tbody th { position: sticky; left: 0; background: var(--paper); text-align: right; }
.confusion thead th:first-child { writing-mode: horizontal-tb; left: 0; z-index: 2; }
"""


def to_html(report: Report) -> str:
  """The report as one HTML page; texts of examples are escaped, and the page forbids scripts and loading."""
  parts = [f"<h1>{_plain(report.title)}</h1>"]
  facts = [("model", report.model), ("created", report.created), *report.settings.items()]
  parts.append(_table((), ((f"<th>{_plain(name)}</th>", _cell(value)) for name, value in facts)))
  if report.tasks:
    parts += [
      "<h2>Scores</h2>",
      f"<p>In percent, with {report.confidence:.0%} bootstrap intervals over the examples. The scale runs from 0 to "
      "100: the band is the interval, red the accuracy of always answering the most common label.</p>",
      _table(
        ("task", "split", "examples", "score", "", "interval", "", "most common label", "time"),
        map(_summary, report.tasks),
      ),
    ]
  if report.spreads:
    parts += ["<h2>Training sets</h2>", _spreads(report.spreads)]
    for each in report.spreads:
      parts += _published({each.metric: each.mean}, "", each.references)
  for task in report.tasks:
    parts += _task(task)
  return f"""<!doctype html>
<html lang="zh">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_plain(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{chr(10).join(parts)}
</body>
</html>
"""


def _summary(task: TaskReport) -> Iterable[str]:
  score = task.scores[task.metric]
  marks = [
    f'<i class="range" style="left:{percent(score.low)}%;width:{percent(score.high - score.low)}%"></i>',
    f'<i class="point" style="left:{percent(score.value)}%"></i>',
  ]
  if task.majority_baseline is not None:
    marks.append(f'<i class="baseline" style="left:{percent(task.majority_baseline)}%"></i>')
  return (
    _cell(task.task),
    _cell(task.split),
    _number(f"{task.examples:,}"),
    _cell(task.metric),
    _number(percent(score.value)),
    _number(interval(score)),
    f'<td><div class="scale">{"".join(marks)}</div></td>',
    _number("" if task.majority_baseline is None else percent(task.majority_baseline)),
    _number(seconds(task.seconds)),
  )


def _spreads(spreads: Sequence[Spread]) -> str:
  runs = map(str, range(len(spreads[0].values)))
  rows = []
  for each in spreads:
    numbers = map(percent, (each.mean, each.standard_deviation, *each.values))
    rows.append((_cell(each.task), _cell(each.metric), *map(_number, numbers)))
  return _table(("task", "score", "mean", "standard deviation", *runs), rows)


def _task(task: TaskReport) -> list[str]:
  parts = [f"<h2>{_plain(task.task)}</h2>"]
  rows = ((_cell(name), _number(percent(each.value)), _number(interval(each))) for name, each in task.scores.items())
  parts.append(_table(("score", "", "interval"), rows))
  parts += _published({name: each.value for name, each in task.scores.items()}, task.split, task.references)
  if task.confusion:
    parts += [
      "<h3>Confusions</h3>",
      "<p>A row for each target, a column for each prediction; colour is the share of the row.</p>",
      _confusion(task),
    ]
  if task.worst_errors:
    rows = (
      (
        _cell(error.id), _cell(error.target), _cell(error.prediction), _number(percent(error.score)),
        f'<td class="text"><bdi>{_plain(error.text)}</bdi></td>',
      )
      for error in task.worst_errors
    )  # fmt: skip
    header = ("id", "target", "predicted", task.score_kind, "text")
    parts += ["<h3>Worst errors</h3>", _table(header, rows)]
  return parts


def _published(scores: Mapping[str, float], split: str, references: Sequence[Reference]) -> list[str]:
  if not references:
    return []
  rows = ranked(scores, split, references)
  cells = (
    (
      _cell(row.model), _cell(row.metric), _number(percent(row.value)), _cell(row.split), _cell(row.source),
    )
    for row in rows
  )  # fmt: skip
  table = _table(("model", "score", "", "split", "source"), cells, {i for i, row in enumerate(rows) if not row.source})
  return ["<h3>Beside published scores</h3>", table]


def _confusion(task: TaskReport) -> str:
  names = [_plain(name) for name in task.label_names]
  header = "".join(f"<th>{name}</th>" for name in ("", *names))
  rows = []
  for i, counts in enumerate(task.confusion):
    total = sum(counts)
    cells = "".join(
      f'<td class="{"right" if i == j else "wrong"}" style="--share:{_DEEPEST * count / total:.1f}%" '
      f'title="{names[i]} → {names[j]}">{count}</td>' if count else "<td></td>"
      for j, count in enumerate(counts)
    )  # fmt: skip
    rows.append(f"<tr><th>{names[i]}</th>{cells}</tr>")
  table = f"<thead><tr>{header}</tr></thead><tbody>{chr(10).join(rows)}</tbody>"
  return f'<div class="wide"><table class="confusion">{table}</table></div>'


def _table(header: Sequence[str], rows: Iterable[Iterable[str]], own: set[int] = frozenset()) -> str:
  head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr></thead>" if header else ""
  body = "\n".join(
    f"<tr{' class=own' if i in own else ''}>{''.join(cells)}</tr>" for i, cells in enumerate(rows)
  )
  return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _cell(text: str) -> str:
  return f"<td>{_plain(text)}</td>"


def _number(text: str) -> str:
  return f'<td class="number">{text}</td>'


def _plain(text: str) -> str:
  return escape(one_line(text))
