"""Measure what creatives are worth: the paper's table, what CLIP does not see, outcomes, a blind sheet.

python -m jobs.evaluate --config nightly.yaml --judge-model s3://shop/models/judge
"""

from adbooster.cli import main
from adbooster.evaluate.config import EvaluateConfig

if __name__ == "__main__":
    main(EvaluateConfig, "adbooster.evaluate.job:evaluate")
