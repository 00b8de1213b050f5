"""How a judge refuses a bundle."""


class Refused(ValueError):
    """What was found and what is allowed; the recipe adds what to export instead."""
