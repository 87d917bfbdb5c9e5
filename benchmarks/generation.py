"""Greedy generation beside transformers: SmolLM2-135M-Instruct, float32, batches of 1 and 8.

    python benchmarks/generation.py --smollm2=DIR --peers=PEERS/bin/python --json=FILE

Both sides answer the same chat prompts with exactly --tokens tokens (nothing stops them
earlier); jaxsft reads its GGUF file, transformers DIR. A call with one token gives the time
of the first token, the rest of a call with all tokens the rate; both are medians of --repeats
calls after one that warmed up. From the process's start to the end of the very first call:
loading and compiling.
"""

import statistics
import time

import rounds

PROMPTS = (
  "What does os.path.join do?",
  "Name three large rivers of Europe and say where they end.",
  "Why is the sky blue?",
  "Write a short poem about the sea.",
  "What is the difference between a list and a tuple in Python?",
  "How do I boil an egg?",
  "Tell me a story about a fox that cannot sleep.",
  "Explain what a prime number is, with examples.",
)
BATCHES = (1, 8)


def measure(settings, answer):
  """Times of answer(prompts, tokens) -> texts, for every batch size."""
  tokens, result = settings["tokens"], {}
  for size in BATCHES:
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS[:size]]
    texts = answer(prompts, tokens)
    result.setdefault("first_call", time.time() - settings["started"])
    answer(prompts, 1)
    spent = {1: [], tokens: []}
    for _ in range(settings["repeats"]):
      for count, seconds in spent.items():
        began = time.perf_counter()
        answer(prompts, count)
        seconds.append(time.perf_counter() - began)
    first, whole = (statistics.median(spent[count]) for count in (1, tokens))
    result[str(size)] = {
      "first_token": first,
      "rate": size * (tokens - 1) / (whole - first),
      "whole_rate": size * tokens / whole,
      "texts": texts,
    }
  return result


def ours(settings):
  import jaxsft_side

  import jaxsft
  from jaxsft.generation import writing

  config = jaxsft_side.config_of("configs/chat_smollm2.py", {})
  model = jaxsft.load(config.model.path, config.model.sha256)

  def answer(prompts, tokens):
    return writing.answers(
      model.network,
      model.params,
      model.tokenizer,
      prompts,
      stop_ids=[],
      template=None,
      max_new_tokens=tokens,
    )

  return measure(settings, answer)


def peer(settings):
  import torch
  import transformers

  path = settings["smollm2"]
  tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
  model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
  model.to("cuda" if torch.cuda.is_available() else "cpu")
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = tokenizer.pad_token_id

  def answer(prompts, tokens):
    inputs = tokenizer.apply_chat_template(
      prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    with torch.inference_mode():
      ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    new = ids[:, inputs["input_ids"].shape[1] :]
    assert new.shape[1] == tokens, new.shape
    return tokenizer.batch_decode(new, skip_special_tokens=True)

  return measure(settings, answer)


SIDES = {"jaxsft": ours, "transformers": peer}


def main():
  parser = rounds.flags(__doc__, tokens=128, repeats=3)
  parser.add_argument("--smollm2", required=True, help="Hugging Face directory for the peer")
  args = parser.parse_args()
  settings = {"tokens": args.tokens, "repeats": args.repeats, "smollm2": args.smollm2}
  found = rounds.alternate(__file__, SIDES, args, settings)
  for size in map(str, BATCHES):
    print(f"\nbatch {size}, {args.tokens} tokens each")
    columns = {
      "tokens/s": lambda r, size=size: r[size]["rate"],
      "with the prompt, tokens/s": lambda r, size=size: r[size]["whole_rate"],
      "first token, s": lambda r, size=size: r[size]["first_token"],
      "start → first call, s": lambda r: r["first_call"],
      "peak RSS, GB": lambda r: r["peak_rss"] / 1e9,
    }
    rounds.show(found, columns, "tokens/s")
    texts = [results[0][size]["texts"] for results in found.values()]
    if len(texts) == 2:
      same = sum(a.strip() == b.strip() for a, b in zip(*texts, strict=True))
      print(f"{same} of {size} answers are the same")
  rounds.save(args, found)


if __name__ == "__main__":
  rounds.child(SIDES)
  main()
