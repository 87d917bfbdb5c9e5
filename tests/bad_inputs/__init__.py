"""A good setup in a directory of its own, the ways to break it, and what must still be whole.

A `Place` is a copy of the good setup that a case breaks before a verb runs in it, in this
process. Paths are relative, so that sentences and checkpoints say the same in every copy.
"""

import contextlib
import errno
import hashlib
import json
import pathlib
import shutil
import tempfile

import safetensors.numpy
import transformers

from jaxsft import checkpoint, command, evaluate, export, manifest, predict, train
from jaxsft.data import store
from tests import tiny

SETTINGS = {
  "task": "classify",
  "steps": 2,
  "batch_size": 8,
  "model.path": "bert",
  "data.path": "rows.jsonl",
  "data.id": "name",
  "data.split": 0.2,
  "optim.schedule": "constant",
  "evaluate.every": 0,
  "log.every": 1,
}
TASKS = {
  "answer": SETTINGS | {"task": "answer", "data.path": "questions.jsonl", "data.split": 0.0},
  "chat": SETTINGS | {"task": "chat", "model.path": "llama", "data.path": "chats.jsonl"},
  "seq2seq": SETTINGS | {"task": "seq2seq", "model.path": "t5", "data.path": "pairs.jsonl"},
  "tag": SETTINGS | {"task": "tag", "data.path": "tags.jsonl"},
}
TASKS["answer"] |= {"data.max_length": 32, "data.stride": 8}
TASKS["chat"] |= {"evaluate.max_new_tokens": 0}
TASKS["seq2seq"] |= {"evaluate.max_new_tokens": 0}


def build(root):
  """The good setup: two checkpoints, rows for both, and a finished run of the classifier."""
  tiny.checkpoint(root / "bert", "bert")
  tiny.checkpoint(root / "llama", "llama")
  tiny.checkpoint(root / "t5", "t5")
  tiny.translations(root / "pairs.jsonl", 12)
  tiny.sentences(root / "rows.jsonl", 30)
  tiny.chats(root / "chats.jsonl", 12)
  tiny.questions(root / "questions.jsonl", 12)
  tiny.entities(root / "tags.jsonl", 12)
  (root / "new.jsonl").write_text('{"text": "the film was good"}\n{"text": "a dull cast"}\n')
  (root / "config.py").write_text(_config_file(SETTINGS))


def _config_file(settings):
  lines = [f"  c = config.override(c, {key!r}, {value!r})" for key, value in settings.items()]
  body = "\n".join(["  c = config.Config()", *lines, "  return c"])
  return f'from jaxsft import config\n\n\ndef get_config(arg=""):\n{body}\n'


class Place:
  """One copy of the good setup, and the command line that will run in it."""

  def __init__(self, root, patch, verb="train", task="classify"):
    self.root, self.patch, self.verb, self.code = root, patch, verb, None
    self.flags = {
      "train": {"config": "config.py", "workdir": "out"},
      "evaluate": {"config": "config.py", "model": "run", "out": "measured"},
      "predict": {"model": "run", "data": "new.jsonl", "out": "out.jsonl"},
      "generate": {"model": "llama", "prompt": "2 plus 2"},
      "export": {"run": "run", "out": "out"},
    }[verb]
    self.rest = []
    if task in TASKS:
      (root / "config.py").write_text(_config_file(TASKS[task]))

  @property
  def argv(self):
    return [*(f"--{name}={value}" for name, value in self.flags.items()), *self.rest]

  def path(self, name):
    return self.root / name

  def write(self, name, content):
    """A file of text, bytes, or objects (one JSON a line)."""
    if isinstance(content, list):
      content = "".join(json.dumps(row) + "\n" for row in content)
    data = content if isinstance(content, bytes) else content.encode()
    self.path(name).write_bytes(data)

  def rows(self, *rows, count=12):
    """`rows`, after as many good ones as make `count` together."""
    good = self.path("rows.jsonl").read_text().splitlines()[: count - len(rows)]
    self.write("rows.jsonl", [*map(json.loads, good), *rows])

  def table(self, name, text):
    """Rows in a file of another format, without ids of their own."""
    self.write(name, text)
    self.set("data.path", name)
    self.set("data.id", None)

  def chats(self, *rows):
    self.write("chats.jsonl", [{"name": f"c{i}", **row} for i, row in enumerate(rows)])

  def messages(self, *pairs, count=3):
    """`count` conversations of these (role, content) messages."""
    self.chats(*[{"messages": [{"role": r, "content": c} for r, c in pairs]}] * count)

  def set(self, key, value):
    """An override on the command line."""
    text = json.dumps(value) if isinstance(value, dict | list) else value
    self.rest.append(f"--config.{key}={text}")

  def json(self, name, **changes):
    """Changes keys of a JSON file; None removes one."""
    value = json.loads(self.path(name).read_text()) | changes
    value = {k: v for k, v in value.items() if v is not None}
    self.write(name, json.dumps(value))

  def tensors(self, name, change):
    """`change` the dict of tensors of a safetensors file."""
    tensors = safetensors.numpy.load_file(self.path(name))
    change(tensors)
    safetensors.numpy.save_file(tensors, self.path(name), {"format": "pt"})

  def remove(self, name):
    found = self.path(name)
    shutil.rmtree(found) if found.is_dir() else found.unlink()

  def cut(self, name, size):
    """Keeps the first bytes of a file."""
    self.write(name, self.path(name).read_bytes()[:size])

  def template(self, text):
    self.write("own.jinja", text)
    self.set("data.chat_template", "own.jinja")

  def tokenizer(self, model, **settings):
    """Saves the checkpoint's tokenizer again, with other settings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.path(model)))
    for key, value in settings.items():
      setattr(tokenizer, key, value)
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
      self.path(model).joinpath(name).unlink(missing_ok=True)
    tokenizer.save_pretrained(str(self.path(model)))

  def run(self, capsys):
    """(exit code, what was printed, the sentence of an error)."""
    capsys.readouterr()
    main = MAINS[self.verb]()
    code = 0
    try:
      command.run(main, self.argv)
    except SystemExit as stop:
      code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def _generate():
  from jaxsft import generate

  return generate.main


MAINS = {
  "train": lambda: train.main,
  "evaluate": lambda: evaluate.main,
  "predict": lambda: predict.main,
  "generate": _generate,
  "export": lambda: export.main,
}


@contextlib.contextmanager
def full_disk(size=4096):
  """No file may grow beyond `size` bytes: what every writer sees of a full disk."""
  import resource  # not on Windows

  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def disk_full(*_, **__):
  """Stands for a write."""
  raise OSError(errno.ENOSPC, "No space left on device")


def hashes(root):
  """Relative name -> sha256 of every file."""
  return {
    path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


def check_whole(root, before):
  """Fails for anything half-written under `root` that was not there before."""
  for name in sorted(hashes(root).keys() - before.keys()):
    parts, path = pathlib.PurePosixPath(name).parts, root / name
    temporary = [p for p in parts if p.startswith((".", "tmp-", "old-")) or p.endswith(".tmp")]
    assert not temporary, f"left behind: {name}"
    if path.suffix == ".json":
      json.loads(path.read_text())
    elif path.suffix == ".jsonl":
      [json.loads(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".safetensors":
      safetensors.numpy.load_file(path)
  for path in root.rglob("*"):
    if path.is_dir() and path.name.startswith((".", "tmp-", "old-")):
      raise AssertionError(f"left behind: {path}")
  for path in root.glob("cache/stores/*"):
    store.open_store(path)
  for path in [*root.glob("out/checkpoints/*"), *root.glob("out/best/*")]:
    assert manifest.problem(path) is None, path


def no_temporaries(directory):
  """Fails where the system's temporary directory still holds something."""
  assert not list(pathlib.Path(directory).iterdir())


def send_temporaries_to(directory, patch):
  directory.mkdir()
  patch.setattr(tempfile, "tempdir", str(directory))


def limited_saves(patch):
  """From now on, checkpoints are saved on a full disk."""
  save = checkpoint.Checkpoints.save

  def limited(self, *args):
    with full_disk():
      return save(self, *args)

  patch.setattr(checkpoint.Checkpoints, "save", limited)
