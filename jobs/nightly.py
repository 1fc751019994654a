"""The whole night: prepare, cohorts, finetune, canary, generate, evaluate.

python -m jobs.nightly --config nightly.yaml --root-uri s3://shop/adbooster
"""

from adbooster.cli import main
from adbooster.night.config import NightlyConfig

if __name__ == "__main__":
    main(NightlyConfig, "adbooster.night.job:nightly")
