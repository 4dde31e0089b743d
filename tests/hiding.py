"""What lies on a machine outside of .venv is hidden from tests and from the processes that they start.

All of it is found through the environment: an empty home and, with it, caches and settings; no data of the system's;
no network. The compiled scan is kept in .venv, under a name that its sources, flags and processor give it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

# Where libraries look for caches and settings, and who started this process.
DROPPED = ("XDG_", "TORCH", "HF_", "HUGGINGFACE_", "WANDB_", "MPL", "TRITON_", "GOMP_", "OMP_WAIT_POLICY", "SLURM_")
DROPPED += ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "PYTHONPATH")
NOBODY = "http://127.0.0.1:9"  # a proxy that doesn't answer


def hide() -> None:
    """Change this process's environment, once: processes that it starts find it changed."""
    if "TESTS_HOME" in os.environ:
        return
    for name in [name for name in os.environ if name.startswith(DROPPED)]:
        del os.environ[name]
    hide.home = tempfile.TemporaryDirectory(prefix="tests-home-")  # deleted when this process ends
    home = Path(hide.home.name)
    compiler = shutil.which(os.environ.get("CXX", "c++"))  # without one, a build that is kept would hide that
    kept = Path(sys.prefix) if compiler and os.access(sys.prefix, os.W_OK) else home
    os.environ |= {
        "TESTS_HOME": str(home),
        "HOME": str(home),
        "XDG_DATA_DIRS": str(home / "share"),
        "TORCH_EXTENSIONS_DIR": str(kept / "torch_extensions"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "no_proxy": "localhost,127.0.0.1",
    }
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOBODY)
