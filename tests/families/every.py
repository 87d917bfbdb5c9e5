"""The tiny cases of all families under one name: what a config.json of each says."""

import json

from tests.families import decoder_configs, encoder_configs, encoder_decoder_configs

CASES = (*encoder_configs.TINY, *decoder_configs.CONFIGS, *encoder_decoder_configs.CONFIGS)


def config(case, **changes):
  """config.json of a case as a dict, as the installed transformers writes it."""
  return json.loads(config_object(case, **changes).to_json_string())


def config_object(case, **changes):
  """The config object of transformers."""
  import transformers

  if case in encoder_configs.TINY:
    model_type, fields = encoder_configs.TINY[case]
    return transformers.CONFIG_MAPPING[model_type](**{**fields, **changes})
  where = decoder_configs if case in decoder_configs.CONFIGS else encoder_decoder_configs
  return where.config_of(case, **changes)
