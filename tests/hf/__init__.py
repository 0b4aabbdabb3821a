"""mPLUG-Owl2 in transformers."""
