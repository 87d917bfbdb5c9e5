"""What stands on the screen: progress bars and the last page. The only importer of rich."""

import contextlib

import rich.box
import rich.console
import rich.progress
import rich.table

from jaxsft import report as report_lib

MOST = 20  # types in the table of the last page


def console() -> rich.console.Console:
  return rich.console.Console()


def training_bar(
  console: rich.console.Console, total: int, first: int
) -> rich.progress.Progress:
  """A started bar over updates, with one task that has a text field `status`."""
  bar = rich.progress.Progress(
    "{task.completed}/{task.total}",
    rich.progress.BarColumn(20),
    "{task.fields[status]}",
    console=console,
  )
  bar.add_task("", total=total, completed=first, status="")
  bar.start()
  return bar


@contextlib.contextmanager
def counting(what: str, total: int | None = None):
  """Yields a function that is called with how many are done; shown only on a terminal."""
  columns = ("{task.completed}", what, rich.progress.BarColumn(20))
  with rich.progress.Progress(
    *columns,
    rich.progress.TimeRemainingColumn(),
    transient=True,
    disable=not console().is_terminal,
  ) as bar:
    task = bar.add_task("", total=total)
    yield lambda done: bar.update(task, completed=done)


def closing(console: rich.console.Console, result: dict) -> None:
  """The last page: final metrics, confusion table, three examples, where things are.

  result: as in result.json: "metrics" {name: number, "confusion": [C, C] rows = true,
  "labels": C names, "per_type": {type: numbers}}, "intervals", "slices", "best", "examples",
  "steps", "seconds", "export", "report" …
  """
  show = lambda *a: console.print(*a, markup=False, highlight=False, soft_wrap=True)
  metrics, best = result.get("metrics") or {}, result.get("best")
  show("")
  when = f" (best, after update {best['step']})" if best else ""
  numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
  words = ", ".join(f"{name} {report_lib.shorten(value)}" for name, value in numbers.items())
  show(f"final metrics{when}: {words or 'none'}")
  if metrics.get("confusion"):
    _show_confusion(console, show, metrics["confusion"], metrics["labels"])
  if metrics.get("per_type"):
    _show_types(console, show, metrics["per_type"])
  for name, found in report_lib.by_set(result.get("sets") or {}).items():
    words = ", ".join(f"{key} {report_lib.shorten(value)}" for key, value in found.items())
    show(f"  of {name}: {words}")
  if result.get("slices"):
    for title, found in report_lib.parts(result):
      _show_parts(console, title, found)
  for example in (result.get("examples") or [])[:3]:
    show("")
    for name, value in example.items():
      text = report_lib.shorten(value)
      show(f"  {name:>10}  {text if len(text) <= 400 else text[:399] + '…'}")
  show("")
  spent = [("steps", "updates"), ("tokens", "tokens"), ("seconds", "seconds")]
  spent += [("compile_seconds", "seconds of them compiling")]
  spent += [("tokens_per_second", "tokens/s"), ("examples_per_second", "examples/s")]
  found = [
    f"{report_lib.shorten(result[key])} {unit}" for key, unit in spent if result.get(key)
  ]
  if result.get("mfu"):
    found.append(f"MFU {result['mfu']:.1%}")
  show(", ".join(found))
  for name in ("export", "report"):
    if result.get(name):
      show(f"{name:>10}  {result[name]}")


def _show_confusion(console, show, counts, labels):
  pairs = [(n, t, p) for t, row in enumerate(counts) for p, n in enumerate(row)]
  if len(labels) > 10:  # too wide for a screen: report.html has the table
    show("most frequent confusions (true → predicted):")
    for n, true, predicted in sorted((x for x in pairs if x[1] != x[2]), reverse=True)[:10]:
      if n:
        show(f"  {n:,}  {labels[true]} → {labels[predicted]}")
    return
  table = rich.table.Table("true \\ predicted", box=rich.box.SIMPLE_HEAD)
  for label in labels:
    table.add_column(rich.text.Text(str(label)), justify="right")
  for label, row in zip(labels, counts, strict=True):
    table.add_row(rich.text.Text(str(label)), *(f"{n:,}" for n in row))
  console.print(table)


def _show_types(console, show, per_type):
  """The numbers of each type, the most frequent first."""
  table = rich.table.Table("type", box=rich.box.SIMPLE_HEAD)
  for name in report_lib.OF_TYPES:
    table.add_column(name, justify="right")
  found = report_lib.by_support(per_type)
  for name, cells in found[:MOST]:
    table.add_row(rich.text.Text(name), *cells)
  console.print(table)
  if len(found) > MOST:
    show(f"and {len(found) - MOST} more types, which report.html has")


def _show_parts(console, title, found):
  """Numbers with their intervals, or a number by slices of the rows."""
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  table.add_column(rich.text.Text(title))
  for name in report_lib.OF_PARTS:
    table.add_column(name, justify="right")
  for name, cells in found:
    table.add_row(rich.text.Text(name), *cells)
  console.print(table)
