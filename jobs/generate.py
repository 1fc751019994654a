"""Paint, rank and publish creatives.

python -m jobs.generate --config nightly.yaml --weights s3://shop/adbooster/weights/1a2b3c4d5e6f7081
"""

from adbooster.cli import main
from adbooster.generate.config import GenerateConfig

if __name__ == "__main__":
    main(GenerateConfig, "adbooster.generate.job:generate")
