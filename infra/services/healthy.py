"""Exit with 0 if a URL answers: `python healthy.py URL`. The images have no curl."""

import sys
import urllib.request

urllib.request.urlopen(sys.argv[1], timeout=8).close()
