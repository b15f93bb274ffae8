"""DreamBooth, full fine-tuning: `accelerate launch train_dreambooth.py --help`."""

import sys

from dreambooth_core.scripts.flags import DREAMBOOTH
from dreambooth_core.scripts.main import main

if __name__ == "__main__":
    sys.exit(main(DREAMBOOTH))
