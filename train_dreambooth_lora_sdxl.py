"""DreamBooth, LoRA of SDXL: `accelerate launch train_dreambooth_lora_sdxl.py --help`."""

import sys

from dreambooth_core.scripts.flags import DREAMBOOTH_LORA_SDXL
from dreambooth_core.scripts.main import main

if __name__ == "__main__":
    sys.exit(main(DREAMBOOTH_LORA_SDXL))
