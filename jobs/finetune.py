"""Teach outpainting the catalog's own scenes.

python -m jobs.finetune --config nightly.yaml --steps 2000
"""

from adbooster.cli import main
from adbooster.finetune.config import FinetuneConfig

if __name__ == "__main__":
    main(FinetuneConfig, "adbooster.finetune.job:finetune")
