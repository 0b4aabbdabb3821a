"""The base of every error that a user can cause, and the category of our warnings.

An error's message names the file, option or record, says what is wrong with numbers, and ends with what to
do. The command line prints that message and exits with 1; a program catches `owl2.Owl2Error`. Any other
exception is a defect of ours.
"""


class Owl2Error(Exception):
    """Something a user can put right; the message says how."""


class Owl2Warning(UserWarning):
    """Something that works but may not do what the user expects; the message says what to change."""
