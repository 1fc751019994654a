"""Compare new weights with those that are live; exit code 1 and the reasons if they are refused.

python -m jobs.canary --config nightly.yaml --weights s3://shop/adbooster/weights/1a2b3c4d5e6f7081
"""

from adbooster.canary.config import CanaryConfig
from adbooster.cli import main

if __name__ == "__main__":
    main(CanaryConfig, "adbooster.canary.job:require")
