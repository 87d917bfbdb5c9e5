"""Download one pinned file of a package through the index settings that pip has.

`unearth` finds the files of a version and fetches them without installing or running
anything; what counts is the file whose sha256 is the pinned one, wheel or source archive.
"""

import configparser
import hashlib
import logging
import os
import re
import shutil
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jaxsft.errors import JaxsftError


class Candidate(NamedTuple):
  """A file of the wanted version at one source."""

  finder: Any
  """unearth.PackageFinder of that source."""
  link: Any
  """unearth.Link."""
  stated: str | None
  """sha256 that the index states, if it does."""


def download(name: str, version: str, sha256: str | None, target: Path) -> dict[str, str]:
  """Put the file of `name==version` with that sha256 at `target`, whole or not at all.

  Returns {}, or, where no file has that hash (or `sha256` is None), {filename: sha256} of
  those found. Raises JaxsftError where no source has the version; OSError of the disk.
  """
  settings = pip_settings()
  sources = _sources(settings)
  work = tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-")
  with work as directory, _session(settings, sources) as session:
    candidates, problems = _find(f"{name}=={version}", session, sources)
    hashes = {}
    # The file whose hash the index states goes first; one with another hash cannot match.
    for finder, link, stated in sorted(candidates, key=lambda c: c.stated != sha256):
      digest = stated
      if stated in (None, sha256):
        try:
          file = finder.download(link, directory)
        except Exception as error:  # unearth's, its HTTP library's (httpx or httpx2)
          if isinstance(error, OSError) and error.errno and not link.is_file:
            raise  # the disk's: a connection that breaks is not an OSError there
          problems.append(f"{link.filename}: {reason(error)}")
          continue
        digest = digest_of(file)
        if digest == sha256:
          copy = Path(directory, ".archive")
          shutil.copyfile(file, copy)  # a file of a local index stays where it is
          os.replace(copy, target)
          return {}
      hashes[link.filename] = digest
  if not hashes:
    raise JaxsftError(
      f"{name}=={version} could not be fetched: {'; '.join(problems) or 'no index is set'}"
    )
  return hashes


def _session(settings: dict[str, str], sources: list[tuple[str, str]]) -> Any:
  """unearth's HTTP client, which also opens file:// URLs; a context manager."""
  import unearth.auth  # late: only needed for what is not in the cache
  import unearth.fetchers

  options: dict[str, Any] = {"timeout": float(settings.get("timeout", 15))}
  if "cert" in settings:
    options["verify"] = ssl.create_default_context(cafile=settings["cert"])
  if "client-cert" in settings:
    options["cert"] = settings["client-cert"]
  if "proxy" in settings:
    options["proxy"] = settings["proxy"]
  session = unearth.fetchers.PyPIClient(
    trusted_hosts=settings.get("trusted-host", "").split(), follow_redirects=True, **options
  )
  indexes = [url for kind, url in sources if kind == "index_urls"]
  session.auth = unearth.auth.MultiDomainBasicAuth(index_urls=indexes)
  return session


def _find(
  requirement: str, session: Any, sources: list[tuple[str, str]]
) -> tuple[list[Candidate], list[str]]:
  """The files of that version, and what went wrong at which source.

  Each source has its own finder, so that one which is down does not hide the others.
  """
  import unearth

  logging.getLogger("unearth").setLevel(logging.ERROR)  # misses are told in our sentence
  found, problems = [], []
  for kind, url in sources:
    try:
      finder = unearth.PackageFinder(session, ignore_compatibility=True, **{kind: [url]})
      matches = list(finder.find_matches(requirement))
    except Exception as error:  # unearth's, its HTTP library's (httpx or httpx2)
      problems.append(f"{_redact(url)}: {reason(error)}")
      continue
    if not matches:
      problems.append(f"{_redact(url)}: no such version")
    for match in matches:
      stated = (match.link.hash_option or {}).get("sha256", [None])[0]
      found.append(Candidate(finder, match.link, stated))
  return found, problems


def pip_settings() -> dict[str, str]:
  """pip's own settings, by long option name: its files, then PIP_* variables over them.

  Files and their order: https://pip.pypa.io/en/stable/topics/configuration/. Of the
  sections, `global`, `install` and `download` are read, later ones winning.
  """
  parser = configparser.RawConfigParser()
  parser.optionxform = _option
  for file in _pip_files():
    try:
      parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
      raise JaxsftError(f"pip's settings in {file} cannot be read: {error}") from error
  settings: dict[str, str] = {}
  for section in ("global", "install", "download"):
    if parser.has_section(section):
      settings.update(parser.items(section))
  for name, value in os.environ.items():
    if name.startswith("PIP_"):
      settings[_option(name[4:])] = value
  if "default-timeout" in settings:
    settings.setdefault("timeout", settings["default-timeout"])
  for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # pip honours these as well
    settings["cert"] = settings.get("cert") or os.environ.get(name, "")
  return {name: value for name, value in settings.items() if value}


def digest_of(file: Path) -> str:
  """sha256 of a file, as hexadecimal digits."""
  with open(file, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def reason(error: Exception) -> str:
  """One line about a foreign error: its type and the first line of its text."""
  first = next(iter(str(error).strip().splitlines()), "")
  return _redact(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _sources(settings: dict[str, str]) -> list[tuple[str, str]]:
  """(unearth's keyword, location), in pip's order."""
  links = [os.path.expanduser(link) for link in settings.get("find-links", "").split()]
  indexes = [settings.get("index-url", "https://pypi.org/simple")]
  indexes += settings.get("extra-index-url", "").split()
  if settings.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
    indexes = []
  keyed = [("find_links", link) for link in links]
  return keyed + [("index_urls", url) for url in indexes]


def _pip_files() -> list[Path]:
  """pip's configuration files, weakest first."""
  own = os.environ.get("PIP_CONFIG_FILE")
  if own == os.devnull:  # pip's way to say: no files at all
    return []
  name = "pip.ini" if sys.platform == "win32" else "pip.conf"
  home = Path.home()
  if sys.platform == "win32":
    shared = [Path(os.environ.get("PROGRAMDATA", "C:/ProgramData"), "pip")]
    user = [home / "pip", Path(os.environ.get("APPDATA", home), "pip")]
  elif sys.platform == "darwin":
    support = home / "Library/Application Support/pip"
    shared = [Path("/Library/Application Support/pip")]
    user = [home / ".pip", support if support.is_dir() else home / ".config/pip"]
  else:
    roots = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    shared = [*(Path(root, "pip") for root in roots if root), Path("/etc")]
    user = [home / ".pip"]
    user += [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip")]
  if own and os.path.exists(own):
    user = []
  files = [directory / name for directory in [*shared, *user, Path(sys.prefix)]]
  return [*files, Path(own)] if own else files


def _option(name: str) -> str:
  return name.lower().replace("_", "-").removeprefix("--")


def _redact(text: str) -> str:
  """`text` without the credentials that a URL may hold."""
  return re.sub(r"//[^/\s@]+@", "//***@", text)
