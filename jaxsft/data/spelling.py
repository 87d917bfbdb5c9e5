"""How rows spell their tags: ids or names, in which scheme, and as which labels.

Labels are "O" and then the others, sorted. Rows in IOB1 are trained on, and shown, in IOB2.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxsft.data import spool, words
from jaxsft.data.read import Row, near
from jaxsft.errors import JaxsftError
from jaxsft.metrics import tagging


@functools.cache
def scheme(labels: tuple[str, ...]) -> str:
  """The scheme of label names, one of tagging.SCHEMES; B and I alone are IOB2.

  Names of which some fit no scheme are plain: the heads of others have such.
  """
  try:
    found = tagging.scheme_of([[label] for label in labels])
  except JaxsftError:
    return "plain"
  return "IOB2" if found == "IOB1" else found


def label_names(rows: Sequence[Row], own: tuple[str, ...] = ()) -> tuple[str, ...]:
  """The labels of labelled rows in id order: `own`, those of a trained head, if they suffice.

  Else every type of entity has all tags of its scheme, so that any entity of it can be said.
  Raises JaxsftError for tags that are no names, or of which some fit no scheme.
  """
  spelt = settled(rows, own) if own else rows
  found = [_tags(row) for row in spelt if _has_tags(row)]
  flat = {tag for tags in found for tag in tags}
  if numbers := sorted(tag for tag in flat if isinstance(tag, int)):
    raise JaxsftError(
      f"the training rows have the numbers {numbers[0]} to {numbers[-1]} for tags; give the "
      'names that these are the ids of: config.data.labels=("O", "B-…", …)'
    )
  kinds = {entity.label for row in rows for entity in _entities(row)}
  if own and flat <= set(own) and kinds <= types(own):
    return own
  scheme_here = _scheme_of(filter(_has_tags, spelt), found) if flat else "IOB2"
  if scheme_here == "plain" and kinds:
    raise JaxsftError(
      f"some training rows have entities, others tags without a scheme, such as {min(flat)!r}; "
      "expected one kind"
    )
  if scheme_here != "plain":
    scheme_here = "IOB2" if scheme_here == "IOB1" else scheme_here
    kinds |= {span.type for tags in found for span in tagging.spans(tags, scheme_here)}
    entities = [(tagging.Span(name, 0, n), n) for name in kinds for n in (1, 3)]
    flat = {"O"} | {tag for e, n in entities for tag in tagging.tags_of([e], n, scheme_here)}
  return tuple(sorted(flat, key=lambda tag: (tag != "O", tag)))


def types(labels: tuple[str, ...]) -> set[str]:
  """The types of entities that labels can say; of plain labels none."""
  known = scheme(labels)
  if known == "plain":
    return set()
  return {span.type for label in labels for span in tagging.spans([label], known)}


def settled(rows: Sequence[Row], labels: tuple[str, ...]) -> Sequence[Row]:
  """Labelled rows with tags as `labels` spell them: ids become names, IOB1 becomes IOB2 …

  The scheme of the rows is judged by all of them; what breaks it is read leniently (see
  tagging) where it is changed, and left as it is where not. Raises JaxsftError with the row's
  place for a row without tags and entities, or with tags that are no list of names or ids.
  """
  found = {n: _named(row, labels) for n, row in enumerate(rows) if _has_tags(row)}
  target = scheme(labels)
  if target != "plain" and any(found.values()):
    own = _scheme_of((rows[n] for n in found), list(found.values()))
    if own not in (target, "plain"):
      found = {n: tagging.convert(tags, own, target) for n, tags in found.items()}
  respelt = lambda row, tags: row._replace(fields=row.fields | {"tags": tags})
  return spool.Spool(respelt(r, found[n]) if n in found else r for n, r in enumerate(rows))


def _scheme_of(rows, found):
  """tagging.scheme_of of their tags; its error with the place of the row."""
  try:
    return tagging.scheme_of(found)
  except JaxsftError as error:
    for row, tags in zip(rows, found, strict=True):
      for tag in tags:
        try:
          tagging.scheme_of([["B-X"], [tag]])
        except JaxsftError:
          raise JaxsftError(f"{row.where}: {error}") from error
    raise


def _has_tags(row):
  if row.fields.get("tags") is not None:
    return True
  if row.fields.get("entities") is None:
    raise JaxsftError(
      f"{row.where}: no field 'tags' or 'entities', which the task needs"
      f'{near("tags", row.fields)}; map a column to it: data.columns={{"tags": …}}'
    )
  return False


def _entities(row):
  try:
    return words.entities(row.fields) or ()
  except JaxsftError as error:
    raise JaxsftError(f"{row.where}: {error}") from error


def _tags(row):
  """The tags of a row, names or ids."""
  found = row.fields["tags"]
  found = found.tolist() if isinstance(found, np.ndarray) else found
  right = lambda tag: isinstance(tag, str | int) and not isinstance(tag, bool) and tag != ""
  what = f"{found!r} for the tags"
  if isinstance(found, list | tuple):
    bad = [tag for tag in found if not right(tag)]
    what = f"{bad[0]!r} among the tags" if bad else ""
  if what:
    raise JaxsftError(
      f"{row.where}: found {what}, expected a list with a name for each token; correct the row "
      "or map another column to it in config.data.columns"
    )
  return list(found)


def _named(row, labels):
  tags = _tags(row)
  wrong = [tag for tag in tags if isinstance(tag, int) and not 0 <= tag < len(labels)]
  if wrong:
    raise JaxsftError(
      f"{row.where}: found the tag {wrong[0]}, expected 0 to {len(labels) - 1}, the ids of "
      f"{', '.join(labels)}; correct the row or set config.data.labels"
    )
  return [labels[tag] if isinstance(tag, int) else tag for tag in tags]
