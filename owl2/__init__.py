"""mPLUG-Owl2."""
