"""The whole night: prepare, cohorts, finetune, generate.

python -m jobs.nightly --config nightly.yaml --root-uri s3://shop/adbooster
"""

from adbooster.cli import main
from adbooster.nightly import NightlyConfig, nightly

if __name__ == "__main__":
    main(NightlyConfig, nightly)
