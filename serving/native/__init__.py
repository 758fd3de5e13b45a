"""A version folder under TensorFlow's own C++ loader, the code that TF Serving runs: its answers and its clock."""
