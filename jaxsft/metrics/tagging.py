"""Entities of tag sequences and their precision, recall and F1 (CoNLL 2000), scale 0 to 1.

A tag is "O", or a prefix and a type ("B-PER"); a prefix alone has the type "_". Schemes:

  IOB1   I inside, B only where an entity follows one of its own type (CoNLL-2003)
  IOB2   B first, I after it (also called BIO)
  IOBES  B first, I inside, E last, S for an entity of one token (BIOES)
  BILOU  the same with L last and U for one
  BMES   the same with M inside
  BMEWO  the same with M inside and W for one
  plain  no entities: the tags are classes of tokens, such as parts of speech

Sequences that break their scheme are read in one of two ways, both those of seqeval. Lenient
(its default, and conlleval's): an entity starts at every B or S, at an I or E after O, E or S,
and wherever the type changes; it ends before O, before the next start, and after E or S.
Strict: an entity counts only if it is spelt as its scheme says: B I* in IOB2, and B I* E or S
in IOBES, all of one type.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jaxsft.errors import JaxsftError

DIRECTIONS = {
  f"{average}{name}": "max"
  for average in ("", "macro_", "weighted_")
  for name in ("precision", "recall", "f1")
} | {"accuracy": "max"}
_PREFIXES = {
  "IOB1": {"B": "B", "I": "I"},
  "IOB2": {"B": "B", "I": "I"},
  "IOBES": {"B": "B", "I": "I", "E": "E", "S": "S"},
  "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
  "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
  "BMEWO": {"B": "B", "M": "I", "E": "E", "W": "S"},
}
SCHEMES = (*_PREFIXES, "plain")


class Span(NamedTuple):
  """An entity: its type and the tokens from `start` up to, not including, `end`."""

  type: str
  start: int
  end: int


def scheme_of(sequences: Sequence[Sequence[str]]) -> str:
  """The scheme of gold tag sequences, one of SCHEMES.

  Judged by the prefixes that occur. With B and I alone it is IOB1 if more entities start with I
  than with a B for which IOB1 would write I (CoNLL-2003 has a few), else IOB2. A set in which
  no tag has a prefix and a type is "plain", unless it is made of bare prefixes with B or S in
  it. Raises JaxsftError where some tags have a prefix and a type and others fit no scheme.
  """
  tags = sorted({tag for sequence in _sequences(sequences) for tag in sequence})
  if not tags:
    raise JaxsftError("there is no tag; give sequences with at least one token")
  split = {tag: _split(tag) for tag in tags}
  typed = [tag for tag in tags if split[tag] and "-" in tag]
  odd = [tag for tag in tags if not split[tag]]
  prefixes = {split[tag][0] for tag in tags if split[tag]} - {"O"}
  if not typed and (odd or not prefixes & set("BS")):
    return "plain"
  if odd:
    raise JaxsftError(
      f"the tag {odd[0]!r} has no prefix of a scheme although {typed[0]!r} has; correct the "
      'tags, or name the scheme ("plain" scores tags alone)'
    )
  fits = [name for name, known in _PREFIXES.items() if prefixes <= set(known)]
  if not fits or (prefixes != {"I"} and not prefixes & set("BSUW")):
    raise JaxsftError(
      f"the prefixes {', '.join(sorted(prefixes))} belong to no known scheme, expected those "
      f"of {', '.join(f'{name} ({known})' for name, known in _letters().items())}"
    )
  if fits[0] != "IOB1":
    return fits[0]
  return "IOB1" if _is_iob1(sequences) else "IOB2"


def spans(tags: Sequence[str], scheme: str = "IOB2", strict: bool = False) -> list[Span]:
  """The entities of one sequence, in order; raises JaxsftError for a tag outside the scheme.

  Lenient reading (strict False) treats IOB1 and IOB2 alike.
  """
  known = _known(scheme)
  pairs = []
  for index, tag in enumerate(tags):
    prefix, kind = _split(tag) or ("?", "")
    if prefix != "O" and prefix not in known:
      raise JaxsftError(
        f"tag {index} is {tag!r}, expected O or a prefix of {scheme} "
        f"({_letters()[scheme]}), a hyphen and a type"
      )
    pairs.append((known.get(prefix, "O"), kind))
  return _strict(pairs, scheme) if strict else _lenient(pairs)


def tags_of(entities: Sequence[Span], length: int, scheme: str = "IOB2") -> list[str]:
  """The tags of `length` tokens with these entities; the opposite of `spans`.

  Raises JaxsftError for entities that overlap, are empty, or reach beyond the tokens.
  """
  names = {meaning: letter for letter, meaning in _known(scheme).items()}
  tags = ["O"] * length
  before = Span("", 0, 0)
  for kind, start, end in sorted(entities, key=lambda e: e[1]):
    if not before.end <= start < end <= length:
      raise JaxsftError(
        f"entity {(kind, start, end)} after {tuple(before)} in {length} tokens: expected "
        "entities that have tokens and do not overlap"
      )
    letters = ["B"] + ["I"] * (end - start - 1)
    if "E" in names:
      letters = ["S"] if end - start == 1 else [*letters[:-1], "E"]
    if scheme == "IOB1" and (before.type, before.end) != (kind, start):
      letters[0] = "I"
    untyped = kind == "_"
    tags[start:end] = [names[x] if untyped else f"{names[x]}-{kind}" for x in letters]
    before = Span(kind, start, end)
  return tags


def convert(tags: Sequence[str], source: str, target: str = "IOB2") -> list[str]:
  """One sequence in another scheme; a broken one is read leniently and comes out well spelt."""
  return tags_of(spans(tags, source), len(tags), target)


def broken(tags: Sequence[str], scheme: str) -> int:
  """How many tokens have another tag than the scheme would give to the same entities."""
  return sum(a != b for a, b in zip(tags, convert(tags, scheme, scheme), strict=True))


def counts(
  predicted: Sequence[Sequence[str]],
  gold: Sequence[Sequence[str]],
  scheme: str = "IOB2",
  strict: bool = False,
) -> list[dict[str, tuple[int, int, int]]]:
  """For each sequence {type: (right, predicted, gold)} entities; right: type and both ends.

  With the scheme "plain" every token is an entity of its tag.
  """
  rows = []
  for guess, true in _pairs(predicted, gold):
    if scheme == "plain":
      found, wanted = ({Span(t, i, i + 1) for i, t in enumerate(x)} for x in (guess, true))
    else:
      found, wanted = (set(spans(x, scheme, strict)) for x in (guess, true))
    right, found_of, wanted_of = (
      Counter(e.type for e in group) for group in (found & wanted, found, wanted)
    )
    kinds = sorted(found_of | wanted_of)
    rows.append({k: (right[k], found_of[k], wanted_of[k]) for k in kinds})
  return rows


def scores(
  predicted: Sequence[Sequence[str]],
  gold: Sequence[Sequence[str]],
  scheme: str = "IOB2",
  strict: bool = False,
) -> dict:
  """Precision, recall and F1 of whole entities, and the accuracy of single tags.

  precision, recall and f1 are over all entities (micro averages, as CoNLL reports them); macro
  and weighted ones are means over the types in gold or predicted entities, plain or by number
  of gold entities. Where nothing was predicted, precision is 0, as in seqeval. `right`,
  `predicted` and `support` (gold) count entities, overall and in `per_type` {type: the same};
  `broken` counts tokens that break the scheme, see `broken`. With the scheme "plain" types are
  tags, and precision, recall and f1, all equal to the accuracy, are left out.
  """
  rows = counts(predicted, gold, scheme, strict)
  kinds = sorted({kind for row in rows for kind in row})
  columns = {kind: [row[kind] for row in rows if kind in row] for kind in kinds}
  table = {
    kind: [sum(x) for x in zip(*column, strict=True)] for kind, column in columns.items()
  }
  same = [
    a == b for x, y in zip(predicted, gold, strict=True) for a, b in zip(x, y, strict=True)
  ]
  if not same:
    raise JaxsftError("there is no token to score; give a held-out set that has rows")
  per_type = {kind: _prf(*table[kind]) for kind in kinds}
  result = {"accuracy": sum(same) / len(same)} | (_averages(per_type) if kinds else {})
  result |= {"per_type": per_type, "scheme": scheme, "strict": strict, "undefined": {}}
  if scheme == "plain":
    return {k: v for k, v in result.items() if k not in ("precision", "recall", "f1")}
  if not kinds:
    why = "there is no entity, gold or predicted"
    result["undefined"] = {name: why for name in DIRECTIONS if name != "accuracy"}
  gold, predicted = (sum(broken(tags, scheme) for tags in x) for x in (gold, predicted))
  return result | {"broken": {"gold": gold, "predicted": predicted}}


def _averages(per_type):
  rows = list(per_type.values())
  right, found, wanted = (sum(r[k] for r in rows) for k in ("right", "predicted", "support"))
  result = _prf(right, found, wanted)
  for name in ("precision", "recall", "f1"):
    result[f"macro_{name}"] = sum(row[name] for row in rows) / len(rows)
    weighted = sum(row[name] * row["support"] for row in rows)
    result[f"weighted_{name}"] = weighted / wanted if wanted else 0.0
  return result


def _prf(right, found, wanted):
  return {
    "precision": right / found if found else 0.0,
    "recall": right / wanted if wanted else 0.0,
    "f1": 2 * right / (found + wanted),
    "right": right,
    "predicted": found,
    "support": wanted,
  }


def _sequences(sequences):
  if any(isinstance(s, str) for s in sequences):
    raise JaxsftError("expected sequences of tags, found one of strings; put it in a list")
  return sequences


def _pairs(predicted, gold):
  if len(_sequences(predicted)) != len(_sequences(gold)):
    raise JaxsftError(
      f"{len(predicted)} predicted sequences for {len(gold)} gold ones, expected as many"
    )
  for index, (guess, true) in enumerate(zip(predicted, gold, strict=True)):
    if len(guess) != len(true):
      raise JaxsftError(
        f"sequence {index} has {len(guess)} predicted tags for {len(true)} gold ones, expected "
        "one for each token"
      )
    yield guess, true


def _split(tag):
  """(prefix, type) of a tag, or None if it is not spelt like one of any scheme."""
  if tag == "O":
    return "O", "_"
  prefix, hyphen, kind = tag.partition("-")
  known = len(prefix) == 1 and prefix in "BIESLUMW" and bool(kind or not hyphen)
  return (prefix, kind or "_") if known else None


def _known(scheme):
  if scheme not in _PREFIXES:
    raise JaxsftError(
      f"scheme {scheme!r} has no entities, expected one of {', '.join(_PREFIXES)}"
    )
  return _PREFIXES[scheme]


def _letters():
  return {name: "".join(known) for name, known in _PREFIXES.items()}


def _is_iob1(sequences):
  """Of the entities that follow none of their own type, more start with I than with B."""
  starts = Counter()
  for tags in sequences:
    before = ("O", "_")
    for prefix, kind in map(_split, tags):
      if before[0] == "O" or before[1] != kind:
        starts[prefix] += 1
      before = (prefix, kind)
  return starts["I"] > starts["B"]


def _lenient(pairs):
  found, start, before, kind = [], 0, "O", "_"
  for index, (letter, kind_here) in enumerate([*pairs, ("O", "_")]):
    other = kind_here != kind
    if before != "O" and (before in "ES" or letter in "BSO" or other):
      found.append(Span(kind, start, index))
    if letter in "BS" or (letter in "IE" and (before in "OES" or other)):
      start = index
    before, kind = letter, kind_here
  return found


def _strict(pairs, scheme):
  """Entities by the scheme's own patterns; `same`: the token before has the same type."""
  ended = "ES" if scheme not in ("IOB1", "IOB2") else "BI"
  found, index, padded = [], 0, [("O", "_"), *pairs, ("O", "_")]

  def step(i):  # letter before token i, letter of token i, same type
    (before, kind_before), (letter, kind) = padded[i], padded[i + 1]
    return before, letter, kind_before == kind

  while index < len(pairs):
    before, letter, same = step(index)
    opens = letter in "BS"
    if scheme == "IOB1":
      opens = (letter == "I" and (before in "OB" or not same)) or (
        letter == "B" and before in "IB" and same
      )
    if not opens:
      index += 1
      continue
    end = index + 1
    while True:
      before, letter, same = step(end)
      if not (letter in "IE" and before in "BI" and same):
        break
      end += 1
    odd = scheme == "IOB1" and before == "B" and letter == "B" and not same
    if before in ended and not odd:
      found.append(Span(pairs[index][1], index, end))
    index = end
  return found
