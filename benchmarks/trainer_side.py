"""What the training benchmarks run with Hugging Face's Trainer and what is built on it."""

import itertools
import time

import torch
import transformers
from jaxsft_side import peak_rss


def arguments(kind, settings, optim, **extra):
  """Training arguments of class `kind` with the update rule of a jaxsft config's `optim`.

  extra: more of them, or others than these.
  """
  own = {
    "output_dir": settings["workdir"],
    "max_steps": settings["steps"],
    "learning_rate": optim["peak_lr"],
    "lr_scheduler_type": optim["schedule"],
    "warmup_steps": 0,
    "weight_decay": optim["weight_decay"],
    "adam_beta1": optim["b1"],
    "adam_beta2": optim["b2"],
    "adam_epsilon": optim["eps"],
    "max_grad_norm": optim["clip"],
    "seed": 0,
    "save_strategy": "no",
    "report_to": "none",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "remove_unused_columns": False,
  }
  return kind(**own | extra)


def train(base, settings, batches, count, **parts):
  """Trains with a Trainer class; returns what `jaxsft_side.finetune` does.

  batches: lists of indices into the training set, one an update; None: the Trainer's own
  order. count: inputs -> (tokens, examples) of an update.
  """
  done, ends, losses, rss = [], [], [], []

  class Recorded(base):
    def get_train_dataloader(self):
      if batches is None:
        return super().get_train_dataloader()
      return torch.utils.data.DataLoader(
        self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
      )

    def compute_loss(self, model, inputs, *args, **kwargs):
      done.append(count(inputs))
      result = super().compute_loss(model, inputs, *args, **kwargs)
      losses.append((result[0] if isinstance(result, tuple) else result).detach())
      return result

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
      if torch.cuda.is_available():
        torch.cuda.synchronize()
      ends.append(time.time())
      rss[:] = [peak_rss()]

  trainer = Recorded(**parts, callbacks=[Clock()])
  trainer.train()
  tokens, examples = (list(itertools.accumulate(column)) for column in zip(*done, strict=True))
  return {
    "first_update": ends[0] - settings["started"],
    "last_update": ends[-1] - settings["started"],
    "compiled": None,
    "compile_seconds": None,
    "rss": rss[0],
    "losses": [loss.item() for loss in losses],
    "seconds": [end - ends[0] for end in ends],
    "tokens": tokens,
    "examples": examples,
  }
