"""LoRA of rank 16 on all projections beside full tuning and beside PEFT with the Trainer.

    python benchmarks/lora.py --smollm2=DIR --peers=PEERS/bin/python --json=FILE

The chat config's training as benchmarks/chat.py has it (SmolLM2-135M-Instruct, float32, the
same packed rows of 4 x 512 tokens, AdamW, dropout and penalty 0), the base frozen. Sides:

  jaxsft-lora   tune.method="lora": rank 16, alpha 32, every projection of attention and MLP
  jaxsft-full   every weight
  peft          PEFT's LoRA with the same numbers, its A and B in float32, under Trainer on the
                very rows of jaxsft, where Trainer is told to keep their conversations apart

Losses begin alike, as B is zero, and then go apart: A is drawn by other numbers.
Rates are those of whole updates without the first ones and without compiling. Claims: at least
1.3 times the tokens/s of jaxsft-full in less memory, and at least those of peft.
"""

import pathlib
import sys
import tempfile

import chat
import jaxsft_side
import rounds

RANK, ALPHA = 16, 32


def ours(settings, method):
  overrides = {"steps": settings["steps"], "evaluate.max_new_tokens": 0, "tune.method": method}
  if method == "lora":
    overrides |= {"tune.lora.rank": RANK, "tune.lora.alpha": float(ALPHA)}
  return jaxsft_side.finetune(
    jaxsft_side.config_of("configs/chat_smollm2.py", overrides), settings
  )


def adapt(model):
  import peft

  config = peft.LoraConfig(
    r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
  )
  return peft.get_peft_model(model, config)


SIDES = {
  "jaxsft-lora": lambda settings: ours(settings, "lora"),
  "jaxsft-full": lambda settings: ours(settings, "all"),
  "peft": lambda settings: chat.trainer(settings, packed=True, adapt=adapt),
}


def main():
  parser = rounds.flags(__doc__, steps=12, skip=2)
  parser.add_argument("--smollm2", required=True, help="Hugging Face directory for the peer")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    settings = {
      "steps": args.steps,
      "single": False,
      "smollm2": args.smollm2,
      "exchange": str(pathlib.Path(directory) / "exchange.json"),
    }
    rounds.run_side(__file__, "exchange", args, settings, sys.executable)
    found = rounds.alternate(__file__, SIDES, args, settings)
  print(f"\n{args.steps} updates; rates without the first {args.skip} and compiling")
  columns = {
    "tokens/s": lambda r: rounds.rate(r, "tokens", args.skip),
    "start → first update, s": lambda r: r["first_update"],
    "start → last update, s": lambda r: r["last_update"],
    "peak RSS training, GB": lambda r: r["rss"] / 1e9,
  }
  rounds.show(found, columns, "tokens/s")
  rounds.save(args, found, rounds.curves(found, [("jaxsft-lora", "peft")]))


if __name__ == "__main__":
  rounds.child({"exchange": chat.exchange, **SIDES})
  main()
