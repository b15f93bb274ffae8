"""DreamBooth through JAX, for TPUs: `python train_dreambooth_flax.py --help`."""

import sys

from dreambooth_core.scripts.flags import DREAMBOOTH_FLAX
from dreambooth_core.scripts.main import main

if __name__ == "__main__":
    sys.exit(main(DREAMBOOTH_FLAX))
