"""The networks: from an image and conditioning to the parameters of each pixel."""
