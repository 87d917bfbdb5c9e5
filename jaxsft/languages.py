"""Languages of multilingual tokenizers (mBART): a token of every text says which it is in.

Where it stands, before the text or behind its stop token, is read off what the tokenizer adds
to an empty text. No class of tokenizer is needed, so an exported directory works as well.
"""

from jaxsft.errors import UsageError

KEY = "config.data.languages"


def code(tokenizer, name):
  """The id of a language code; raises UsageError where the tokenizer has no such token."""
  found = tokenizer.convert_tokens_to_ids(name)
  if found is None or found == tokenizer.unk_token_id:
    raise UsageError(
      f"{KEY}: the tokenizer has no token {name!r}, expected its codes of the source's and the "
      "target's language, such as ('en_XX', 'de_DE')"
    )
  return found


def place(tokenizer):
  """Where the language stands in the ids of a text: 0, its first, or -1, its last.

  Raises UsageError for a tokenizer that writes none.
  """
  added = tokenizer("")["input_ids"]
  names = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
  plain = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
  places = [at for at in (0, -1) if added and added[at] not in plain]
  if len(added) < 2 or len(places) != 1:
    raise UsageError(
      f"{KEY}: the tokenizer adds {tokenizer.convert_ids_to_tokens(added)} to a text, expected "
      "a language code first or last; remove the setting"
    )
  return places[0]


def with_language(ids, tokenizer, name):
  """The ids of a text with that language in the place of another."""
  at, ids = place(tokenizer), list(ids)
  ids[at] = code(tokenizer, name)
  return ids


def set_source(tokenizer, name):
  """Makes the tokenizer write that language into every text."""
  if hasattr(tokenizer, "src_lang"):
    tokenizer.src_lang = name
    return
  from tokenizers import processors  # needed with such tokenizers alone

  added = with_language(tokenizer("")["input_ids"], tokenizer, name)
  tokens = tokenizer.convert_ids_to_tokens(added)
  text = ["$A", *tokens] if place(tokenizer) == -1 else [tokens[0], "$A", *tokens[1:]]
  pair = [part for token in text for part in (("$A", "$B") if token == "$A" else (token,))]
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single=text, pair=pair, special_tokens=list(zip(tokens, added, strict=True))
  )


def frame(tokenizer, name):
  """Keys of config.json by which generation begins in that language.

  Where the code stands last, the target is shifted so that it comes first (mBART); where it
  stands first, it is the first token that is chosen (mBART-50).
  """
  key = "decoder_start_token_id" if place(tokenizer) == -1 else "forced_bos_token_id"
  return {key: code(tokenizer, name)}
