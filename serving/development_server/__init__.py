"""A development server with TF Serving's gRPC and REST interface, for machines without Docker. Not for production.

Errors are worded as in TensorFlow Serving's sources (model_servers/, util/json_tensor.cc, servables/tensorflow/), with
the name of the input where TF Serving leaves it out.
"""
