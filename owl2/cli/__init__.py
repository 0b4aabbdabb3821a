"""The commands of `owl2`: a module each, whose function's signature gives the options and docstring the help.

Start with `parser.py` (signature to options) and `owl2/__main__.py` (which command, and errors to messages).
For a new command copy `report.py` and name it in `COMMANDS` of `owl2/__main__.py`; import what is heavy in
the function, so that help comes at once.
"""
