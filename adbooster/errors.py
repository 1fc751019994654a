"""What this package can name. Errors of S3, CUDA and Ray pass through as they are.

AdboosterError          something this package can name
  ConfigError           the settings cannot work; raised before cluster time is spent
  SchemaError           a table is not what schema.py says: the column, the wanted and the found type
  TooManyRejects        more rows rejected than allowed: how many, why, where to look
  CoverageTooLow        too few requests filled to publish
  PublishConflict       another run committed first
  LockHeld              another night runs below this root: which, where, since when
  LockLost              this night's lock expired and another night has taken it over
  CanaryRefused         new weights did worse on the panel than the rule allows
  TrainingDiverged      the loss is no number any more

Each takes one sentence: what, which value, what would be right. One string argument, so that it survives pickling.
"""


class AdboosterError(Exception):
    """Something this package can name; its text is one sentence for the operator."""


class ConfigError(AdboosterError):
    """The settings cannot work; raised before cluster time is spent."""


class SchemaError(AdboosterError):
    """A table is not what schema.py says."""


class TooManyRejects(AdboosterError):
    """More rows were rejected than allowed."""


class CoverageTooLow(AdboosterError):
    """Too few requests were filled to publish."""


class PublishConflict(AdboosterError):
    """Another run committed first; nothing of this one is live."""


class LockHeld(AdboosterError):
    """Another night runs below this root."""


class LockLost(AdboosterError):
    """Another night has taken over; nothing more of this one is published."""


class CanaryRefused(AdboosterError):
    """New weights did worse on the panel than the rule allows; they are not used."""


class TrainingDiverged(AdboosterError):
    """The loss of a training run is no number any more; its weights are not given out."""
