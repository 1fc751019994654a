"""Teach outpainting the catalog's own scenes.

python -m jobs.finetune --config nightly.yaml --steps 2000
"""

from adbooster.cli import main
from adbooster.finetune import FinetuneConfig, finetune

if __name__ == "__main__":
    main(FinetuneConfig, finetune)
