"""Settings that must hold before TensorFlow is imported, and fixtures that several folders share."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `twotower` sets it: a fit in this process and one in a process that a test starts must add in the same order.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
