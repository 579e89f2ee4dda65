"""Where the machine has Chromium, if it has."""

import shutil

import pytest

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(PATH is None, reason="Chromium is not there: apt-get install chromium")
