"""Text out of a language model: from prompts to token ids and back."""
