"""Fetch, mask, caption and judge a product feed.

python -m jobs.prepare --config nightly.yaml --feed-uri s3://shop/feed.tsv
"""

from adbooster.cli import main
from adbooster.prepare.config import PrepareConfig

if __name__ == "__main__":
    main(PrepareConfig, "adbooster.prepare.job:prepare")
