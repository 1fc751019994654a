"""Product and cohort to text: the paper's z_QC by a template, z_P by a language model, cut to the encoder's window.

Enters: pairs of products and cohorts (schema.PAIRS). Leaves: the same rows with prompt and negative prompt (schema.PROMPTED),
and scenes kept in tables/prompts. A prompt is part of a request's name: another wording repaints.
"""

__all__ = ["checks", "config", "endpoint", "language_model", "templates", "writer"]
