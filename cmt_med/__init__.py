"""CMT for medical images: segmentation networks, training, inference and reports."""

import getpass
import os

__version__ = "0.1.0"


def _name_the_user() -> None:
    """Give the user a name where the system has none (``docker run --user 1234``): MONAI asks for it while it is imported."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        os.environ["USER"] = f"user{os.getuid()}"


_name_the_user()
