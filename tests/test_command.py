"""Flags of the verbs, and exit codes."""

import os
import sys
import types

import pytest

from jaxsft import command
from jaxsft.errors import JaxsftError, Preempted, UsageError

FLAGS = {"workdir": None, "print_config": False, "max_new_tokens": 64, "model": ""}


def test_forms_of_a_flag():
  _, flags = command.parse(
    ["--model", "m", "--print_config", "--max_new_tokens=7"], FLAGS, needs_config=False
  )
  assert flags == {"workdir": None, "print_config": True, "max_new_tokens": 7, "model": "m"}


BAD = [
  (["--modle=m"], "--modle: unknown flag; did you mean 'model'?"),
  (["model"], "found 'model', expected --flag=value"),
  (["--model"], "--model: has no value"),
  ([], "--model: missing"),
  (["--model=m", "--max_new_tokens=many"], "--max_new_tokens=many: expected int"),
  (["--model=m", "--print_config=perhaps"], "expected true or false"),
  (["--model=m", "--config.seed=1"], "--config: missing"),
]


@pytest.mark.parametrize(("argv", "sentence"), BAD)
def test_bad_flags(argv, sentence):
  with pytest.raises(UsageError) as error:
    command.parse(argv, FLAGS, needs_config=False)
  assert sentence in str(error.value)


def test_config_is_required_where_asked():
  with pytest.raises(UsageError, match="--config: missing"):
    command.parse([], {}, needs_config=True)


@pytest.mark.parametrize(
  ("error", "code"), [(JaxsftError("x"), 1), (UsageError("x"), 2), (Preempted("x"), 3)]
)
def test_exit_codes(error, code, capsys):
  def main(argv):
    raise error

  with pytest.raises(SystemExit) as stop:
    command.run(main, [])
  assert stop.value.code == code
  assert capsys.readouterr().err == "error: x\n"


@pytest.mark.parametrize(
  ("system", "tunables", "main", "expected"),
  [
    ("always [madvise] never", None, "jaxsft.train", "glibc.malloc.hugetlb=1"),
    ("always [madvise] never", "a.b=1", "jaxsft.train", "a.b=1:glibc.malloc.hugetlb=1"),
    ("always [madvise] never", "glibc.malloc.hugetlb=0", "jaxsft.train", None),
    ("[always] madvise never", None, "jaxsft.train", None),
    (None, None, "jaxsft.train", None),
    ("always [madvise] never", None, "somebody.elses", None),
    ("always [madvise] never", None, None, None),
  ],
)
def test_training_starts_anew_with_huge_pages(
  monkeypatch, tmp_path, system, tunables, main, expected
):
  """Once, with the same arguments, and only where it is our command and has an effect."""
  page = tmp_path / "enabled"
  if system:
    page.write_text(system)
  monkeypatch.setattr(command, "HUGE_PAGES_OF_SYSTEM", str(page))
  monkeypatch.setattr(command.os, "confstr", lambda _: "glibc 2.36", raising=False)
  spec = main and types.SimpleNamespace(name=main)
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxsft.train", "--config=x y.py"])
  monkeypatch.setenv("GLIBC_TUNABLES", tunables or "")
  started = []
  monkeypatch.setattr(command.os, "execve", lambda *a: started.append(a))
  monkeypatch.setattr(sys, "gettrace", lambda: None)  # a coverage run is a debugger too
  command.use_huge_pages()
  if not expected:
    assert started == []
    return
  ((path, arguments, environment),) = started
  assert path == sys.executable and environment["GLIBC_TUNABLES"] == expected
  assert arguments == [sys.executable, "-m", "jaxsft.train", "--config=x y.py"]
  monkeypatch.setenv(command.STARTED_ANEW, environment[command.STARTED_ANEW])
  command.use_huge_pages()  # as in the process that was started, had glibc's own been removed
  monkeypatch.delenv(command.STARTED_ANEW)
  monkeypatch.setattr(sys, "gettrace", lambda: print)
  command.use_huge_pages()
  assert len(started) == 1


def test_training_goes_on_where_it_may_not_start_anew(monkeypatch, tmp_path):
  page = tmp_path / "enabled"
  page.write_text("[madvise]")
  monkeypatch.setattr(command, "HUGE_PAGES_OF_SYSTEM", str(page))
  spec = types.SimpleNamespace(name="jaxsft.train")
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
  monkeypatch.setattr(sys, "gettrace", lambda: None)
  monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
  monkeypatch.setenv("GLIBC_TUNABLES", "")
  command.use_huge_pages()
  assert os.environ["GLIBC_TUNABLES"] == ""
