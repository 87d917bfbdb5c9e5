"""pip's settings are read as pip reads them."""

import os
from pathlib import Path

import pytest

from jaxsft.data import index
from jaxsft.errors import JaxsftError


@pytest.fixture
def bare(monkeypatch):
  for name in list(os.environ):
    if name.startswith("PIP_") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
      monkeypatch.delenv(name)
  return monkeypatch


def test_precedence(bare, tmp_path):
  weak, strong = tmp_path / "weak.conf", tmp_path / "strong.conf"
  weak.write_text("[global]\nindex-url = http://weak\ncert = /weak.pem\ntimeout = 7\n")
  strong.write_text(
    "[global]\nindex_url = http://strong\nextra-index-url =\n  http://a\n  http://b\n"
    "[install]\ntrusted-host = h\n"
  )
  bare.setattr(index, "_pip_files", lambda: [weak, tmp_path / "absent.conf", strong])
  bare.setenv("PIP_CERT", "/env.pem")
  bare.setenv("PIP_FIND_LINKS", "~/wheels http://links")
  bare.setenv("REQUESTS_CA_BUNDLE", "/bundle.pem")
  settings = index.pip_settings()
  assert settings["index-url"] == "http://strong"
  assert settings["cert"] == "/env.pem"
  assert settings["timeout"] == "7"
  assert settings["trusted-host"] == "h"
  assert index._sources(settings) == [
    ("find_links", str(Path.home() / "wheels")),
    ("find_links", "http://links"),
    ("index_urls", "http://strong"),
    ("index_urls", "http://a"),
    ("index_urls", "http://b"),
  ]


def test_defaults(bare):
  bare.setattr(index, "_pip_files", list)
  assert index._sources(index.pip_settings()) == [("index_urls", "https://pypi.org/simple")]
  bare.setenv("PIP_NO_INDEX", "true")
  bare.setenv("PIP_DEFAULT_TIMEOUT", "9")
  bare.setenv("CURL_CA_BUNDLE", "/bundle.pem")
  settings = index.pip_settings()
  assert index._sources(settings) == []
  assert (settings["timeout"], settings["cert"]) == ("9", "/bundle.pem")


def test_files(bare, tmp_path):
  bare.setattr(index.sys, "platform", "linux")
  bare.setenv("XDG_CONFIG_DIRS", "/one:/two")
  bare.setenv("XDG_CONFIG_HOME", "/mine")
  files = [str(file) for file in index._pip_files()]
  assert files[:3] == ["/one/pip/pip.conf", "/two/pip/pip.conf", "/etc/pip.conf"]
  assert files[4] == "/mine/pip/pip.conf" and len(files) == 6
  own = tmp_path / "own.conf"
  own.write_text("")
  bare.setenv("PIP_CONFIG_FILE", str(own))
  files = [str(file) for file in index._pip_files()]
  assert files[-1] == str(own) and "/mine/pip/pip.conf" not in files
  bare.setenv("PIP_CONFIG_FILE", os.devnull)
  assert index._pip_files() == []


def test_broken_file_is_named(bare, tmp_path):
  broken = tmp_path / "pip.conf"
  broken.write_text("index-url = x\n")
  bare.setattr(index, "_pip_files", lambda: [broken])
  with pytest.raises(JaxsftError, match=r"pip's settings in .*pip\.conf cannot be read"):
    index.pip_settings()


def test_credentials_are_not_shown():
  error = ValueError("404 for url 'https://me:secret@host/simple'\nsecond line")
  assert index.reason(error) == "ValueError: 404 for url 'https://***@host/simple'"
