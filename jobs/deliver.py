"""Give what is live to the ad channels: renditions, provenance, feeds.

python -m jobs.deliver --config nightly.yaml --public-base-url https://cdn.shop.example/ads
"""

from adbooster.cli import main
from adbooster.deliver.config import DeliverConfig

if __name__ == "__main__":
    main(DeliverConfig, "adbooster.deliver.job:deliver")
