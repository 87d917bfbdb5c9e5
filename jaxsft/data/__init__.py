"""From a name in the config to batches: fetch, read, clean, store, order, feed."""
