"""Learn from outcomes: lift over originals, shares of variants and arms, variants to be replaced.

python -m jobs.learn --config nightly.yaml --outcomes-uri s3://shop/outcomes.parquet
"""

from adbooster.cli import main
from adbooster.learn.config import LearnConfig

if __name__ == "__main__":
    main(LearnConfig, "adbooster.learn.job:learn")
