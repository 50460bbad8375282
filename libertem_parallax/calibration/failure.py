"""What is raised where data do not say what is asked."""

__all__ = ["CalibrationError"]


class CalibrationError(RuntimeError):
    """Nothing stands out of the noise, or there is no beam."""
