"""What tests of model folders share."""

from tests.model_folder.test_follow import folder

__all__ = ["folder"]
