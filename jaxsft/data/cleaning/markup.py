"""HTML taken out of texts: only what is surely HTML, since "a < b" and "a<b and c>d" are texts.

A tag is an element's name that HTML has, in one case, with attributes as HTML writes them, of
those without a value only the ones that it knows. What is not closed stays.
"""

import html
import re
from collections.abc import Iterator

from jaxsft.data.cleaning import edits

BLOCKS = frozenset(
  "address article aside blockquote body br caption center dd details dialog dir div dl dt "
  "fieldset figcaption figure footer form frameset h1 h2 h3 h4 h5 h6 head header hgroup hr "
  "html legend li main menu nav noframes ol optgroup option p pre search section summary table "
  "tbody td tfoot th thead title tr ul".split()
)
"""Elements between which words do not touch: a space takes the place of their tags."""
INLINE = frozenset(
  "a abbr acronym applet area audio b base basefont bdi bdo big button canvas cite code col "
  "colgroup data datalist del dfn em embed font frame i iframe img input ins kbd label link "
  "map mark marquee math meta meter nobr noscript object output param picture progress q rp rt "
  "ruby s samp select slot small source span strike strong sub sup svg template textarea time "
  "track tt u var video wbr".split()
)
"""The other elements of the HTML Standard (its sections 4 and 16)."""
HIDDEN = ("script", "style")
"""Elements that are taken out with what is in them, where they are closed."""
FLAGS = (
  "allowfullscreen async autofocus autoplay checked compact controls declare default defer "
  "disabled download formnovalidate hidden inert ismap itemscope loop multiple muted nohref "
  "nomodule noresize noshade novalidate nowrap open playsinline readonly required reversed "
  "selected"
)
"""Attributes without a value."""

_VALUE = r"[^\s\"'<>/=]+\s*=\s*(?:\"[^\"]*\"|'[^']*')|[^\s\"'<>/=]+=[^\s\"'=<>`]+"
_FLAG = rf"(?i:{'|'.join(FLAGS.split())}|(?:data|aria)-[\w-]+)(?=[\s/>])"
_ATTRIBUTES = rf"(?:\s+(?:{_VALUE}|{_FLAG}))*\s*"
TAG = re.compile(
  rf"<(?P<open>[A-Za-z][A-Za-z0-9]*){_ATTRIBUTES}/?>"
  r"|</(?P<close>[A-Za-z][A-Za-z0-9]*)\s*>"
  r"|(?P<begin><!--|<!\[CDATA\[)|<!(?i:doctype)\s[^<>]*>|<\?xml\s[^<>]*\?>"
)
REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
CLOSED = {"<!--": "-->", "<![CDATA[": "]]>"}


def edits_of(text: str) -> list[edits.Edit]:
  """What takes the tags, comments, scripts and styles of HTML out of a text, and makes
  characters of its entities, each once: "&lt;b&gt;" becomes "<b>", which stays.
  """
  found, at = [], 0
  if "<" in text:
    for start, end, new in _pieces(text):
      found += _characters(text, at, start)
      found += [] if new is None else [(start, end, new)]
      at = end
  return [*found, *_characters(text, at, len(text))]


def _characters(text: str, start: int, end: int) -> list[edits.Edit]:
  """Edits of the entities in a part of a text."""
  if "&" not in text[start:end]:
    return []
  matches = REFERENCE.finditer(text, start, end)
  return edits.differences(text, ((m.span(), html.unescape(m.group())) for m in matches))


def _pieces(text: str) -> Iterator[tuple[int, int, str | None]]:
  """(start, end, what takes its place) of all markup, in order; None: it stays as it is."""
  at, unclosed = 0, set()
  while match := TAG.search(text, at):
    start, at = match.span()
    name = match["open"] or match["close"] or match["begin"] or ""
    plain = name.lower() if name in (name.lower(), name.upper()) else ""
    if match["begin"]:
      end = CLOSED[name]
      stop = -1 if name in unclosed else text.find(end, at)
      if stop < 0:
        unclosed.add(name)
      elif name == "<!--":
        at = stop + len(end)
        yield start, at, ""
      else:
        yield start, at, ""
        yield at, stop, None
        at = stop + len(end)
        yield stop, at, ""
    elif plain in HIDDEN and match["open"]:
      closing = None if plain in unclosed else _closing(plain).search(text, at)
      if closing is None:
        unclosed.add(plain)
      else:
        at = closing.end()
        yield start, at, ""
    elif not name or plain in BLOCKS or plain in INLINE:
      yield start, at, " " if plain in BLOCKS else ""


def _closing(name: str) -> re.Pattern:
  return re.compile(rf"</{name}\s*>", re.IGNORECASE)
