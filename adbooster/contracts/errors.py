"""The errors that this package raises itself. Other errors of S3, CUDA and Ray pass through as they are.

AdboosterError          base of all of these
  ConfigError           the settings cannot work; raised before cluster time is spent
  SchemaError           a table does not match schema.py: the column, the expected and the actual type
  TooManyRejects        more rows rejected than allowed: how many, why, where to look
  CoverageTooLow        too few requests filled to publish
  PublishConflict       another run committed first
  LockHeld              another night runs below this root: which, where, since when
  LockLost              this night's lock expired and another night holds it now
  StorageError          the storage does not answer, credentials have expired, a disk is full; an OSError too
  SigningError          files cannot be signed: a program or authority does not answer, a key does not fit
  CanaryRefused         new weights did worse on the panel than the rule allows, or a reward is not surely better than CLIP
  TrainingDiverged      the loss became NaN or infinite

Each takes one sentence: what is wrong, which value, what would be right. The only argument is a string, so that the
error survives pickling.
"""


class AdboosterError(Exception):
    """An error that this package raises itself; its text is one sentence for the operator."""


class ConfigError(AdboosterError):
    """The settings cannot work; raised before cluster time is spent."""


class SchemaError(AdboosterError):
    """A table does not match schema.py."""


class TooManyRejects(AdboosterError):
    """More rows were rejected than allowed."""


class CoverageTooLow(AdboosterError):
    """Too few requests were filled to publish."""


class PublishConflict(AdboosterError):
    """Another run committed first; nothing of this one is live."""


class LockHeld(AdboosterError):
    """Another night runs below this root."""


class LockLost(AdboosterError):
    """Another night holds the lock now; nothing more of this one is published."""


class StorageError(AdboosterError, OSError):
    """The storage cannot go on: it does not answer, credentials have expired, a clock is wrong, a disk is full."""


class SigningError(AdboosterError):
    """Files cannot be signed: the program with the key or the timestamp authority does not answer, or a key does not fit."""


class CanaryRefused(AdboosterError):
    """New weights did worse on the panel than the rule allows, or a reward is not surely better than CLIP; it is not used."""


class TrainingDiverged(AdboosterError):
    """The loss of a training run became NaN or infinite; its weights are not published."""
