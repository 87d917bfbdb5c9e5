"""Conversations about Python's standard library, made from its own docstrings.

    python configs/data/python_facts.py rows.jsonl

writes one JSON object a line: an "id" and "messages". What an answer says is read off the
running Python: the first sentence of a docstring, the names of parameters, the module of a
function. The functions below are those for which 3.11, 3.12 and 3.13 say the same, so that
the rows are the same everywhere; a function that is missing is left out and counted.
"""

import builtins
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import sys
from typing import NamedTuple

FUNCTIONS = {
  "base64": """
    a85decode a85encode b16decode b16encode b32decode b32encode
    b32hexdecode b32hexencode b64decode b64encode b85encode decodebytes
    encodebytes standard_b64decode standard_b64encode urlsafe_b64decode
    urlsafe_b64encode
  """,
  "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
  "builtins": """
    abs aiter all any ascii bin callable chr delattr divmod eval exec
    globals hasattr hash hex id input isinstance issubclass len locals oct
    ord repr round setattr sorted
  """,
  "dict": "fromkeys get popitem setdefault",
  "difflib": "get_close_matches ndiff restore",
  "fnmatch": "filter fnmatch fnmatchcase translate",
  "glob": "escape glob iglob",
  "heapq": """
    heapify heappop heappush heappushpop heapreplace merge nlargest
    nsmallest
  """,
  "list": "append clear copy count extend index insert pop remove sort",
  "math": """
    acos acosh asin asinh atan atan2 atanh cbrt ceil comb copysign cos
    cosh degrees dist erf erfc exp exp2 expm1 fabs floor fmod frexp gamma
    gcd isfinite isinf isnan isqrt lcm ldexp lgamma log10 log1p log2 modf
    perm pow prod radians remainder sin sinh sqrt tan tanh trunc ulp
  """,
  "operator": """
    abs concat contains countOf delitem eq floordiv ge iadd iand iconcat
    ifloordiv ilshift imatmul imod imul indexOf ior ipow irshift is_
    is_not isub itruediv ixor le length_hint lshift ne pow rshift setitem
    truth
  """,
  "pprint": "isreadable isrecursive pformat saferepr",
  "random": """
    betavariate choice choices expovariate gauss getrandbits getstate
    lognormvariate normalvariate paretovariate randbytes randint random
    randrange sample seed setstate shuffle triangular uniform
    vonmisesvariate weibullvariate
  """,
  "re": "compile escape findall finditer fullmatch match search",
  "secrets": "token_bytes token_hex token_urlsafe",
  "shlex": "join quote split",
  "shutil": """
    copy copy2 copyfile copymode copytree disk_usage get_archive_formats
    get_terminal_size get_unpack_formats ignore_patterns
    register_archive_format register_unpack_format
    unregister_unpack_format
  """,
  "statistics": """
    fmean geometric_mean harmonic_mean linear_regression mean median
    median_grouped median_high median_low mode multimode pstdev pvariance
    quantiles stdev variance
  """,
  "str": """
    capitalize casefold center encode expandtabs isalnum isalpha isascii
    isdecimal isdigit isidentifier islower isnumeric isprintable isspace
    istitle isupper join ljust lower lstrip partition removeprefix
    removesuffix replace rjust rpartition rsplit rstrip split splitlines
    strip swapcase title translate upper zfill
  """,
  "struct": "calcsize iter_unpack unpack unpack_from",
  "textwrap": "dedent indent",
  "unicodedata": """
    bidirectional category combining decomposition east_asian_width
    is_normalized lookup mirrored normalize
  """,
  "urllib.parse": """
    parse_qs parse_qsl unquote_plus urldefrag urlencode urljoin
  """,
  "uuid": "getnode uuid3 uuid4 uuid5",
  "warnings": """
    filterwarnings formatwarning resetwarnings showwarning simplefilter
  """,
  "zlib": "adler32 compress compressobj crc32 decompress decompressobj",
}
NAMESAKES = ("cmath", "os", "gzip", "codecs", "tarfile", "bytes", "tuple")
"""Places that share names with those above, for which "where is it?" is no fair question."""


class Fact(NamedTuple):
  """What Python says about one function or method."""

  owner: str
  """Module, or built-in type."""
  name: str
  does: str
  """First paragraph of the docstring, on one line."""
  parameters: tuple[str, ...]

  @property
  def title(self):
    """As a user writes it: heapq.merge, str.split, len."""
    return self.name if self.owner == "builtins" else f"{self.owner}.{self.name}"


def home_of(owner):
  """The module or built-in type of that name."""
  kind = getattr(builtins, owner, None)
  return kind if isinstance(kind, type) else importlib.import_module(owner)


def facts():
  """(facts, names that this Python lacks or says nothing about)."""
  found, missing = [], []
  for owner, names in FUNCTIONS.items():
    home = home_of(owner)
    for name in names.split():
      function = getattr(home, name, None)
      does = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
      if function is None or not does.endswith("."):
        missing.append(f"{owner}.{name}")
        continue
      parameters = tuple(inspect.signature(function).parameters)
      own = tuple(p for p in parameters if p != "self")
      found.append(Fact(owner, name, does, own))
  return found, missing


def listed(words):
  """`a`, `b` and `c`."""
  words = [f"`{word}`" for word in words]
  return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def choice(key, options):
  """One of the options, the same on every machine."""
  digest = hashlib.sha256(key.encode()).digest()
  return options[int.from_bytes(digest[:8], "big") % len(options)]


def what(fact, others):
  """What does it do?"""
  question = choice(
    fact.title,
    ("What does `{}` do in Python?", "Explain Python's `{}`.", "What is `{}` for?"),
  )
  return [question.format(fact.title), fact.does]


def where(fact, others):
  """Which module is it in? No question, if the name alone does not tell."""
  if fact.owner == "builtins":
    answer = f"Nothing: `{fact.name}` is built in."
    return [f"What must I import to use `{fact.name}` in Python?", answer]
  homes = [home_of(owner) for owner in (*FUNCTIONS, *NAMESAKES)]
  if sum(hasattr(home, fact.name) for home in homes) > 1:
    return []
  if isinstance(home_of(fact.owner), type):
    answer = f"`{fact.owner}` has the method `{fact.name}`."
    return [f"Which built-in type of Python has the method `{fact.name}`?", answer]
  answer = f"`{fact.name}` is in the module `{fact.owner}`."
  return [f"Which module of Python has the function `{fact.name}`?", answer]


def parameters(fact, others):
  """Which parameters does it take, and is this one of them?"""
  takes = f"takes {listed(fact.parameters)}" if fact.parameters else "takes no parameters"
  talk = [f"Which parameters does `{fact.title}` take?", f"`{fact.title}` {takes}."]
  known = sorted({name for other in others for name in other.parameters})
  foreign = [name for name in known if name not in fact.parameters]
  asked = choice(fact.title + "?", (choice(fact.title, foreign), *fact.parameters[:1]))
  answer = f"Yes, it takes `{asked}`." if asked in fact.parameters else f"No, it {takes}."
  return [*talk, f"Is there a parameter `{asked}`?", answer]


def rows():
  """({"id", "messages"} of every conversation, missing names)."""
  found, missing = facts()
  made = []
  for fact in found:
    for ask in (what, where, parameters):
      talk = ask(fact, found)
      messages = [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(talk)
      ]
      if messages:
        name = f"{fact.owner}.{fact.name}/{ask.__name__}"
        made.append({"id": name, "messages": messages})
  return made, missing


def write(directory):
  """Path of the rows in `directory`, named by a hash of what they say; written once."""
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()[0]]
  text = "".join(lines).encode()
  name = f"python_facts-{hashlib.sha256(text).hexdigest()[:12]}.jsonl"
  path = pathlib.Path(directory) / name
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_bytes(text)
    temporary.replace(path)
  return path


def main(out):
  made, missing = rows()
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
  pathlib.Path(out).write_text("".join(lines), encoding="utf-8", newline="")
  print(f"{len(made)} rows in {out}; left out: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
  main(*sys.argv[1:])
