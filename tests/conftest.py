"""What all tests share."""

import os

from hypothesis import settings

# CI tries the same examples every time, so that a change is judged by what it changed; everywhere else they are new.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")
