"""DreamBooth, full fine-tuning: `accelerate launch train_dreambooth.py --help`."""

import sys

from dreambooth_core.doors.flags import DREAMBOOTH
from dreambooth_core.doors.main import main

if __name__ == "__main__":
    sys.exit(main(DREAMBOOTH))
