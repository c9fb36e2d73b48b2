"""What a caller of this room can get wrong."""


class SubjectError(ValueError):
    """A model, tokenizer or device is not what was expected."""


class SiteError(ValueError):
    """A site is unknown to the subject, or did not stand its check."""


class SetError(ValueError):
    """A neuron set does not fit the subject, the site or another set."""


class AtlasError(ValueError):
    """An atlas is damaged, of another subject, or lacks what was asked for."""
