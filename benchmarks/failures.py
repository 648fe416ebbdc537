"""The two ways in which a measurement does not come about."""


class NotAvailable(Exception):
    """This machine, or this user, cannot provide what a side needs; the text says what and why."""


class MeasurementFailed(Exception):
    """Something that was started did not do what it must: no figure of it may be used."""
