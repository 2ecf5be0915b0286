"""One image: decoding, and the transforms of training and evaluation."""
