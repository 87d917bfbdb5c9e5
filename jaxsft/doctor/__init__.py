"""The doctor: looks at prepared data before a run, and says what it finds in three grades."""
