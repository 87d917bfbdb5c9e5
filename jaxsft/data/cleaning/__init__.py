"""Rules that change texts or leave rows out, each off unless named, all of them counted."""
