"""Settings that must hold before TensorFlow is imported, and fixtures that several folders share."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
