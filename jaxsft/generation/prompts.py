"""What a model reads before it answers: prompts to token ids, as training reads them."""

from jaxsft.data import chat, control, messages
from jaxsft.errors import JaxsftError
from jaxsft.models import decoder


def encode(prompt, tokenizer, template=None, escape=False):
  """Token ids of a prompt: those that training uses, up to where the answer begins.

  A text becomes one user message where there is a chat template (Jinja text; None: the
  tokenizer's own). Elsewhere it is tokenised with the tokenizer's own special tokens, but none
  that would end it. escape: control tokens in what is said are text, as in training with
  config.data.control_tokens. Raises JaxsftError for messages that training refuses, and for
  such a token where it is not escaped.
  """
  if isinstance(prompt, str):
    if template is None and not tokenizer.chat_template:
      ids = chat.text_ids(prompt, tokenizer, escape)
      return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    prompt = [{"role": "user", "content": prompt}]
  read = messages.checked({"messages": prompt})
  return chat.prompt_ids(read, tokenizer, template, escape=escape).tolist()


def encode_source(prompt, tokenizer, instruction=""):
  """Token ids of an encoder-decoder's source: a text and the tokenizer's special tokens.

  instruction: what it was trained to see before every source; the text may begin with it
  already. Raises JaxsftError for a control token in the text.
  """
  if not isinstance(prompt, str):
    raise JaxsftError(
      f"the prompt is {prompt!r:.60}, expected a text: an encoder-decoder reads no messages"
    )
  text = prompt.removeprefix(instruction)
  control.refuse(text, tokenizer)
  return tokenizer(instruction + text)["input_ids"]


def room(network, tokens, max_new_tokens):
  """Why so many new tokens cannot follow a prompt of `tokens` tokens; None where they can."""
  most, source = network.arch.max_positions, network.has_source
  needed = max(tokens, 1 + max_new_tokens) if source else tokens + max_new_tokens
  if needed > most:
    return (
      f"has {tokens} tokens, with max_new_tokens={max_new_tokens} that is more than the "
      f"model's {most} positions; shorten it or ask for fewer"
    )
  return None if source else decoder.crossing(network.arch, tokens, max_new_tokens)
