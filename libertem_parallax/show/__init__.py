"""What is shown: pictures, and the image while it grows."""
