"""The HTML pages of all reports: templates, one stylesheet, curves. No scripts, no outside files.

Start in `page.py` (`render`), then `templates/base.html` and `templates/pieces.html`. For a new page copy
`templates/inspect.html` and `owl2/data/inspect/page.py`, which gathers what it shows.
"""
