"""Bring the cohorts up to date with a cohort file.

python -m jobs.cohorts --config nightly.yaml --cohorts-uri s3://shop/cohorts.yaml
"""

from adbooster.cli import main
from adbooster.cohorts import CohortsConfig, cohorts

if __name__ == "__main__":
    main(CohortsConfig, cohorts)
