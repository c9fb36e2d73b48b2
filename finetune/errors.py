"""What a caller of this room can get wrong."""


class DeltaError(ValueError):
    """A delta does not fit the subject, or its folder is damaged or no delta."""


class TuneError(ValueError):
    """A training run cannot start, or diverged."""
