"""Samples → weights; with the jobs that train, the only place of torch."""

import os
import tempfile

# Where PyTorch would keep what it compiles: it makes a folder as it is imported, though nothing here is compiled.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
