"""Bring the cohorts up to date with a cohort file or an interest log.

python -m jobs.cohorts --config nightly.yaml --cohorts-uri s3://shop/cohorts.yaml
python -m jobs.cohorts --config nightly.yaml --interests-uri s3://shop/interests/ --text-model s3://shop/models/clip
"""

from adbooster.cli import main
from adbooster.cohorts.config import CohortsConfig

if __name__ == "__main__":
    main(CohortsConfig, "adbooster.cohorts.job:cohorts")
